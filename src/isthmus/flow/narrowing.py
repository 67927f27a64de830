"""Narrow: plan, cut, recover, verify, write; each stage kept so that a run that was stopped goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus.bottlenecks.cache.saving import read_settings, settings_data
from isthmus.budget import Budget, parse_budget
from isthmus.errors import BadInput, IsthmusError
from isthmus.export.quantized import FLOAT
from isthmus.export.saved import save_export
from isthmus.flow import record as records
from isthmus.flow.activations import add_rounding
from isthmus.flow.caching import CACHE, limit_of, narrow_cache, with_cache
from isthmus.flow.floors import search_floor
from isthmus.flow.order import Order
from isthmus.flow.planning import Planned, check_plan, kept_of, make_plan, predicted_anew
from isthmus.flow.recovering import Trained, recover_stage
from isthmus.flow.study import Study, start_study
from isthmus.flow.together import from_main, join_processes
from isthmus.flow.verifying import changed_most, compare_networks, hold_budget
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.relevance.estimator import Curve, Relevance
from isthmus.relevance.probe import gated_sites, measure_closed, measure_vocabulary
from isthmus.report import ReportData, write
from isthmus.sites import VOCABULARY, closed_values
from isthmus.storage.artifact import check_output, save_artifact, update_record
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.storage.stages import StageStore
from isthmus.tasks import Task

REPORT_FILE = "report.html"
LATE = 1.1
"""A run that takes this many times what was asked for says so."""


@dataclass(frozen=True)
class Narrowed:
    """A narrowed network, the record of how it came to be, and its page."""

    network: Network
    record: Mapping[str, Any]
    report: ReportData

    def save(self, folder: str | Path) -> None:
        """Write the artifact and its page.

        Raises
        ------
        BadInput
            If the folder is there and not empty.
        """
        path = Path(folder)
        save_artifact(self.network, path, self.record)
        write(self.report, path / REPORT_FILE)


def narrow(
    network: Network, task: Task, order: Order, *, out: Path | None, resume: bool, progress: Progress = silent
) -> Narrowed:
    """Carry out an order; see ``isthmus.narrow``.

    Under ``accelerate launch`` all processes recover together; the main one alone decides, measures and writes.
    """
    started = clock.monotonic()
    if out is not None:
        check_output(out)
    if not join_processes().is_main_process:
        progress = silent
    study = start_study(network, task, kinds=order.sites, seed=order.seed, engine=order.engine)
    with _workplace(out) as work:
        arguments = _arguments(study, order)
        # Made in the main process first, for what is not to be resumed is removed by that.
        from_main(lambda: StageStore(work, arguments, resume=resume).key)
        stages = StageStore(work, arguments, resume=True)
        planned = _plan_stage(study, order, stages, progress)
        done = recover_stage(study, order, planned, stages, started, progress)
        finished = [done.network]

        def finish() -> tuple[Mapping[str, Any], ReportData]:
            made = _finish(study, order, planned, done, stages, started, progress)
            finished[0] = made.network
            if out is not None:
                _publish(work / "artifact", out)
                shutil.rmtree(work)
            return made.record, made.report

        made, page = from_main(finish)
        narrowed = replace(finished[0], record=made)
        if out is not None:
            narrowed = replace(narrowed, source=out, name=out.name)
        return Narrowed(narrowed, made, page)


@contextmanager
def _workplace(out: Path | None) -> Iterator[Path]:
    """Yield the folder where stages are kept: beside the output, so that it outlives a crash, or a temporary one."""
    if out is not None:
        yield out.absolute().with_name(f".{out.absolute().name}.stages")
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        yield Path(folder) / "stages"


def _arguments(study: Study, order: Order) -> dict[str, Any]:
    asked = {name: value for name, value in asdict(order).items() if name != "plan"}
    plan = None if order.plan is None else order.plan.model_dump(mode="json")
    return {
        **asked,
        "plan": plan,
        "network": fingerprint(study.network),
        "task": study.task.fingerprint,
        "versions": records.versions(),
    }


def _plan_stage(study: Study, order: Order, stages: StageStore, progress: Progress) -> Planned:
    """Decide, in all processes together; the main one keeps what was decided."""
    if not from_main(lambda: stages.done("plan")):
        planned = _decide(study, order, progress)
        from_main(lambda: _keep_plan(planned, stages))
    return from_main(lambda: _kept_plan(stages))


def _keep_plan(planned: Planned, stages: StageStore) -> None:
    nats = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in planned.relevance.nats.items()}
    written: dict[str, Any] = {
        "plan": planned.plan.model_dump(mode="json"),
        "curves": [asdict(curve) for curve in planned.relevance.curves],
        "details": dict(planned.relevance.details),
        "frontier": [dict(point) for point in planned.frontier],
    }
    stages.save("plan", nats, written)


def _kept_plan(stages: StageStore) -> Planned:
    tensors, data = stages.load("plan")
    found = tuple(
        Curve(c["name"], c["unit"], tuple((int(x), float(y)) for x, y in c["points"])) for c in data["curves"]
    )
    plan = Plan.model_validate(data["plan"])
    nats = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Planned(plan, Relevance(plan.method, nats, found, data["details"]), tuple(data["frontier"]))


def _decide(study: Study, order: Order, progress: Progress) -> Planned:
    if order.plan is not None:
        check_plan(study, order.plan)
        return Planned(predicted_anew(study, order.plan), Relevance(order.plan.method, {}))
    if order.to is not None:
        planned = make_plan(
            study,
            parse_budget(order.to),
            method=order.method,
            effort=order.effort,
            codes=order.codes,
            precision=order.precision,
            progress=progress,
        )
        return add_rounding(study, planned, order.activations)
    if order.keep is None:
        raise BadInput("narrow: neither a budget nor a floor; give --to params=50% or --keep 98%")
    return search_floor(study, order.keep, method=order.method, progress=progress)


def _finish(
    study: Study,
    order: Order,
    planned: Planned,
    done: Trained,
    stages: StageStore,
    started: float,
    progress: Progress,
) -> Narrowed:
    """Write the artifact among the stages, open it again, and measure what was opened."""
    folder = stages.folder / "artifact"
    if folder.exists():
        shutil.rmtree(folder)
    plan, curves, distortion = planned.plan, done.curves, done.distortion
    made: dict[str, Any] = {
        "created": records.now(),
        "network": study.network.name,
        "task": {"name": study.task.name, "fingerprint": study.task.fingerprint, "texts": len(study.task.train)},
        "plan": plan.model_dump(mode="json"),
        "seed": order.seed,
        "effort": order.effort,
        "recipe": None if done.recipe is None else asdict(done.recipe),
        "coding_recipe": None if done.coding_recipe is None else asdict(done.coding_recipe),
        "versions": records.versions(),
        "machine": records.machine(),
        "curves": curves,
    }
    save_artifact(_cache_stage(study, plan, done.network, stages, progress), folder, made)
    if plan.precision != FLOAT:
        progress("export", 0, 1, f"{order.engine}, {plan.precision}")
        made["exports"] = save_export(open_network(folder), order.engine, plan.precision, study.examples, folder)
        update_record(folder, {"exports": made["exports"]})
        progress("export", 1, 1)
    opened = replace(open_network(folder), name=f"{study.network.name} {plan.budget}")
    rows = compare_networks(
        [study.network, opened],
        study.task,
        engine=order.engine,
        seed=order.seed,
        macs_length=study.length,
        progress=progress,
    )
    limits, warnings = _hold(plan, order, study, opened, rows, progress)
    measured = site_distortions(study, kept_of(plan))
    made["measurements"] = {"original": rows[0], "narrowed": rows[1], "distortion": distortion, "sites": measured}
    made["seconds"] = clock.monotonic() - started
    if order.time is not None and made["seconds"] > LATE * order.time:
        warnings.append(
            f"took {made['seconds']:.0f} s where {order.time:.0f} s were asked for: recovery was cut to the shortest, "
            "and what is left (relevance, coding, measuring) takes this long"
        )
    page = records.narrow_page(
        study, plan, planned.relevance if planned.relevance.nats else None, rows, limits=limits, distortion=distortion,
        measured=measured, curves=curves, examples=changed_most(study.network, opened, study.task), record=made,
        floor=order.keep, warnings=warnings, frontier=planned.frontier,
    )  # fmt: skip
    made = update_record(folder, {"measurements": made["measurements"], "seconds": made["seconds"]})
    write(page, folder / REPORT_FILE)
    return Narrowed(opened, made, page)


def _cache_stage(study: Study, plan: Plan, network: Network, stages: StageStore, progress: Progress) -> Network:
    """Plan the cache of the network that is left, where the budget limits it."""
    limit = limit_of(_budget(plan))
    if limit is None:
        return network
    if not stages.done("cache"):
        settings = narrow_cache(network, study.examples, limit.amount(plan.original[CACHE]), progress=progress)
        stages.save("cache", {}, settings_data(settings))
    return with_cache(network, read_settings(stages.load("cache")[1]))


def _budget(plan: Plan) -> Budget:
    return parse_budget(plan.budget) if "=" in plan.budget else Budget(())


def _hold(
    plan: Plan, order: Order, study: Study, opened: Network, rows: list[dict[str, Any]], progress: Progress
) -> tuple[Mapping[str, float], list[str]]:
    """Hold the artifact against the budget or floor; a latency that misses by noise is measured again."""
    budget = _budget(plan)
    warnings = list(plan.notes)
    for attempt in range(3):
        try:
            verdict = hold_budget(budget, rows[0], rows[1])
            break
        except IsthmusError:
            if "latency" not in budget.currencies or attempt == 2:
                raise
            rows[:] = compare_networks(
                [study.network, opened],
                study.task,
                engine=order.engine,
                seed=order.seed,
                macs_length=study.length,
                progress=progress,
            )
    if order.keep is not None and rows[1]["relative"] < order.keep:
        held = rows[1]["relative"]
        warnings.append(f"the floor of {order.keep:.1%} held on training texts; on held-out data it is {held:.1%}")
    return verdict.limits, warnings


def site_distortions(study: Study, kept: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return what the plan did to each site alone, in nats of divergence from the original, before recovery."""
    found = {}
    for site in gated_sites(study.sites):
        if site.name in kept:
            found[site.name] = measure_closed(study.probe, [site], closed_values([site], {site.name: kept[site.name]}))
    if VOCABULARY in kept:
        found[VOCABULARY] = measure_vocabulary(study.probe, kept[VOCABULARY])
    return found


def _publish(folder: Path, out: Path) -> None:
    """Give the finished artifact its name, at once."""
    if out.exists():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, out)
