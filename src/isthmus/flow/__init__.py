"""The flow: open, inspect, plan, narrow, compare, audit; a function a step, the same from Python and the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.budget import parse_budget, parse_floor
from isthmus.errors import BadBudget, BadInput
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task, load_task

if TYPE_CHECKING:
    from isthmus.flow.narrowing import Narrowed
    from isthmus.relevance.estimator import Relevance
    from isthmus.report import AuditData, ReportData

DEFAULT_CODES = "deepcabac"
_DEFAULTS = {"method": "vib", "codes": DEFAULT_CODES, "sites": "all", "precision": "float32", "activations": None}

open = open_network
load = open_network
task = load_task


@dataclass(frozen=True)
class Inspection:
    """What each site of a network costs and carries, and the page that shows it."""

    network: Network
    relevance: Relevance
    report: ReportData

    def save(self, path: str | Path) -> None:
        """Write the page."""
        from isthmus.report import write

        write(self.report, path)


@dataclass(frozen=True)
class Audited:
    """What an audit found, and the page that shows it."""

    report: AuditData

    def save(self, path: str | Path) -> None:
        """Write the page."""
        from isthmus.report import write_audit

        write_audit(self.report, path)


def inspect(
    network: Network, task: Task, *, method: str = "fisher", seed: int = 0, progress: Progress | None = None
) -> Inspection:
    """Measure where the parameters, bytes, MACs and the information of a network are.

    Parameters
    ----------
    network : Network
    task : Task
        What it is for: relevance is measured on its training texts.
    method : str
        The estimator of relevance; see ``isthmus methods``.
    seed : int
    progress : Progress, optional

    Returns
    -------
    Inspection

    Raises
    ------
    BadInput
        If the method is unknown or the task has nothing to calibrate on.
    """
    from isthmus.flow.inspecting import inspect_network

    relevance, page = inspect_network(network, task, method=method, seed=seed, progress=progress or silent)
    return Inspection(network, relevance, page)


def plan(
    network: Network,
    task: Task,
    *,
    to: str | None = None,
    keep: str | float | None = None,
    method: str = "vib",
    effort: str = "fast",
    codes: str = DEFAULT_CODES,
    sites: str = "all",
    precision: str = "float32",
    activations: int | None = None,
    seed: int = 0,
    engine: str = "openvino",
    progress: Progress | None = None,
) -> Plan:
    """Decide what every site keeps, before anything is touched.

    Parameters
    ----------
    to : str, optional
        A budget, such as ``params=50%,latency=0.5x``.
    keep : str or float, optional
        A floor instead: the share of the original's quality that must stay, such as ``98%``. Found by trial, which
        takes a few short recoveries.
    effort : {"none", "faster", "fast", "full"}
        How long gates are trained, for methods that train.
    codes : str
        The coders that a budget of bytes may be met with, parted by commas; ``none`` leaves weights plain.
    sites : str
        The kinds of sites that may become narrower, parted by commas; ``all``, or ``none`` to take no units away.
    precision : str
        What the engine computes in: ``float32``, or ``w8a8``, ``int8`` or ``int4``, see ``isthmus.export.quantized``.
    activations : int, optional
        Bits that what enters each linear map is rounded to; by default it stays as it is.

    Returns
    -------
    Plan

    Raises
    ------
    BadBudget, UnreachableBudget
        If the budget cannot be read, or not be met.
    BadInput
        If a method, effort, engine or kind of site is unknown.
    """
    from isthmus.export.quantized import check_precision
    from isthmus.flow.activations import add_rounding, check_activations
    from isthmus.flow.efforts import check_effort
    from isthmus.flow.floors import search_floor
    from isthmus.flow.planning import make_plan
    from isthmus.flow.study import start_study
    from isthmus.relevance.registry import get

    floor = _goal(to, keep, None)
    _nothing_passed_over(keep, None, codes=codes, precision=precision, activations=activations)
    get(method)
    check_effort(effort)
    coders = _coders(codes)
    check_precision(engine, precision)
    check_activations(activations, to=to, precision=precision)
    budget = None if to is None else parse_budget(to)
    study = start_study(network, task, kinds=_kinds(sites), seed=seed, engine=engine)
    if budget is None:
        return search_floor(study, floor or 1.0, method=method, progress=progress or silent).plan
    planned = make_plan(
        study, budget, method=method, effort=effort, codes=coders, precision=precision, progress=progress or silent
    )
    return add_rounding(study, planned, activations).plan


def narrow(
    network: Network,
    task: Task,
    *,
    to: str | None = None,
    keep: str | float | None = None,
    plan: Plan | None = None,
    method: str = "vib",
    effort: str = "fast",
    codes: str = DEFAULT_CODES,
    sites: str = "all",
    precision: str = "float32",
    activations: int | None = None,
    time: float | None = None,
    seed: int | None = None,
    engine: str = "openvino",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Narrowed:
    """Make a network physically smaller, recover it, and measure the finished artifact.

    Parameters
    ----------
    to, keep, plan
        What to meet: a budget, a floor of quality, or the decisions of a plan; one of them.
    effort : {"none", "faster", "fast", "full"}
        How long to train; ``none`` cuts and codes only.
    codes : str
        The coders that a budget of bytes may be met with, parted by commas; ``none`` leaves weights plain.
    sites : str
        The kinds of sites that may become narrower, parted by commas; ``all``, or ``none`` to take no units away.
    precision : str
        What the engine computes in: ``float32``, or ``w8a8``, ``int8`` or ``int4``, see ``isthmus.export.quantized``.
    activations : int, optional
        Bits that what enters each linear map is rounded to; by default it stays as it is.
    time : float, optional
        Seconds that the whole may take; recovery is shortened or lengthened to fit.
    seed : int, optional
        The plan's own when None, and 0 without a plan.
    out : str or Path, optional
        Where to write the artifact and its page. With it, stages are kept beside it until it is finished.
    resume : bool
        Go on with the stages of a run that was stopped; the result is that of an undisturbed run.

    Returns
    -------
    Narrowed

    Raises
    ------
    BadBudget, UnreachableBudget
        If the budget cannot be read, or is not met by the finished artifact.
    BadInput
        If an option is unknown, the output folder is not empty, or stages of other arguments are to be resumed.
    """
    from isthmus.export.quantized import check_precision
    from isthmus.flow.activations import check_activations
    from isthmus.flow.efforts import check_effort
    from isthmus.flow.narrowing import narrow as carry_out
    from isthmus.flow.order import Order
    from isthmus.relevance.registry import get
    from isthmus.storage.artifact import check_output

    floor = _goal(to, keep, plan)
    _nothing_passed_over(
        keep, plan, method=method, codes=codes, sites=sites, precision=precision, activations=activations
    )
    get(method)
    check_effort(effort)
    coders = _coders(codes)
    check_precision(engine, precision if plan is None else plan.precision)
    check_activations(activations, to=to, precision=precision)
    if to is not None:
        parse_budget(to)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_output(folder)
    if seed is None:
        seed = 0 if plan is None else plan.seed
    decided = plan.method if plan else method
    order = Order(to, floor, plan, decided, effort, coders, _kinds(sites), precision, activations, time, seed, engine)
    return carry_out(network, task, order, out=folder, resume=resume, progress=progress or silent)


def compare(
    networks: Sequence[Network],
    task: Task,
    *,
    engine: str = "openvino",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure networks side by side, in one interleaved run; the first is what the others are held against.

    Returns
    -------
    list of dict
        For each network ``name, params, bytes`` (weight files on disk), ``macs, latency_ms`` (median of a batch),
        ``engine, batch, length, peak_bytes, metric_name, metric, ci95``, ``relative`` (to the first network)
        and ``notes`` on what was done to the task's data.

    Raises
    ------
    BadInput
        If the engine is unknown, or a network cannot be measured on the task.
    """
    from isthmus.flow.verifying import compare_networks

    if not networks:
        raise BadInput("compare: no networks; give at least one")
    return compare_networks(list(networks), task, engine=engine, seed=seed, progress=progress or silent)


def audit(
    originals: Network | Sequence[Network],
    narrowed: Network | Sequence[Network],
    task: Task,
    *,
    slices: str | Path | None = None,
    transfer: Sequence[Task] = (),
    parts: str = "all",
    seed: int = 0,
    progress: Progress | None = None,
) -> Audited:
    """Measure what narrowing took away: on which examples, in which slices, and in what respects.

    Parameters
    ----------
    originals, narrowed : Network or sequence of Network
        Two populations; several of each, from several seeds, tell what narrowing did from chance.
    task : Task
        What is audited is what it holds out.
    slices : str or Path, optional
        A table with a row an example; its columns beside the text or image become slices.
    transfer : sequence of Task
        Labelled sets for the transfer card.
    parts : str
        What to measure, parted by commas, of ``exemplars, slices, robustness, calibration, selective, neighbours,
        position, transfer``; or ``all``.
    seed : int

    Returns
    -------
    Audited

    Raises
    ------
    BadInput
        If a part is unknown, the examples are too few, or a network cannot be read on the task.
    """
    from isthmus.flow.auditing import audit_networks, chosen_parts

    wanted = chosen_parts(parts)
    first, second = ([each] if isinstance(each, Network) else list(each) for each in (originals, narrowed))
    if not first or not second:
        raise BadInput("audit: give at least one original and one narrowed network")
    return Audited(
        audit_networks(
            first,
            second,
            task,
            slices=None if slices is None else Path(slices),
            transfer=transfer,
            parts=wanted,
            seed=seed,
            progress=progress or silent,
        )
    )


def is_main_process() -> bool:
    """Return whether this process is the one that writes and prints: the only one, save under ``accelerate launch``."""
    from isthmus.flow.together import join_processes

    return bool(join_processes().is_main_process)


def _coders(codes: str) -> tuple[str, ...]:
    from isthmus.bottlenecks.registry import coder

    names = tuple(name.strip() for name in codes.split(",") if name.strip() not in ("", "none"))
    for name in names:
        coder(name)
    return names


def _kinds(sites: str) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in sites.split(",") if name.strip() not in ("", "none"))
    return None if names == ("all",) else names


def _nothing_passed_over(keep: object, plan: Plan | None, **asked: object) -> None:
    """Refuse options that would change nothing: a plan decides all, and a floor is searched over units alone."""
    for name, value in asked.items():
        if value == _DEFAULTS[name]:
            continue
        if plan is not None and value != getattr(plan, name, None):
            raise BadInput(f"{name} {value}: the plan decides that; make a plan with it, or leave it away")
        if keep is not None and (name, value) != ("codes", "none") and name not in ("method", "sites"):
            raise BadInput(
                f"{name} {value}: a floor is searched over units alone; give a budget, such as --to bytes=8MB"
            )


def _goal(to: str | None, keep: str | float | None, plan: Plan | None) -> float | None:
    given = [name for name, value in (("to", to), ("keep", keep), ("plan", plan)) if value is not None]
    if len(given) != 1:
        which = " and ".join(given) if given else "nothing"
        raise BadBudget(f"{which} given: give one of a budget (to), a floor (keep) or a plan")
    return None if keep is None else parse_floor(str(keep))
