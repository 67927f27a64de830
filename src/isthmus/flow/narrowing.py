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

from isthmus.budget import Budget, parse_budget
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow import record as records
from isthmus.flow.efforts import most_steps, recipe_for, step_seconds, steps_within, with_steps
from isthmus.flow.floors import search_floor
from isthmus.flow.planning import Planned, check_plan, kept_of, make_plan, predicted_anew
from isthmus.flow.study import Study, cut, fingerprint, start_study
from isthmus.flow.together import from_main, join_processes
from isthmus.flow.verifying import changed_most, compare_networks, hold_budget
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.recovery.batches import TextBatches
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.train import recover
from isthmus.relevance.estimator import Curve, Relevance
from isthmus.relevance.probe import gated_sites, measure_closed, measure_network, measure_vocabulary
from isthmus.report import ReportData, write
from isthmus.sites import VOCABULARY, closed_values
from isthmus.storage.artifact import check_output, save_artifact, update_record
from isthmus.storage.opening import open as open_network
from isthmus.storage.stages import StageStore
from isthmus.tasks import Task

REPORT_FILE = "report.html"
VERIFY_SECONDS = 60.0
"""Kept free at the end of ``--time`` for exporting and measuring."""


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


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    to: str | None
    keep: float | None
    plan: Plan | None
    method: str
    effort: str
    time: float | None
    seed: int
    engine: str


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
    study = start_study(network, task, seed=order.seed, engine=order.engine)
    with _workplace(out) as work:
        arguments = _arguments(study, order)
        # Made in the main process first, for what is not to be resumed is removed by that.
        from_main(lambda: StageStore(work, arguments, resume=resume).key)
        stages = StageStore(work, arguments, resume=True)
        planned = _plan_stage(study, order, stages, progress)
        student, curves, distortion, recipe = _recover_stage(study, order, planned, stages, started, progress)
        finished = [student]

        def finish() -> tuple[Mapping[str, Any], ReportData]:
            done = _finish(study, order, planned, student, curves, distortion, recipe, stages, started, progress)
            finished[0] = done.network
            if out is not None:
                _publish(work / "artifact", out)
                shutil.rmtree(work)
            return done.record, done.report

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
    }
    stages.save("plan", nats, written)


def _kept_plan(stages: StageStore) -> Planned:
    tensors, data = stages.load("plan")
    found = tuple(
        Curve(c["name"], c["unit"], tuple((int(x), float(y)) for x, y in c["points"])) for c in data["curves"]
    )
    plan = Plan.model_validate(data["plan"])
    nats = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Planned(plan, Relevance(plan.method, nats, found, data["details"]))


def _decide(study: Study, order: Order, progress: Progress) -> Planned:
    if order.plan is not None:
        check_plan(study, order.plan)
        return Planned(predicted_anew(study, order.plan), Relevance(order.plan.method, {}))
    if order.to is not None:
        return make_plan(study, parse_budget(order.to), method=order.method, effort=order.effort, progress=progress)
    if order.keep is None:
        raise BadInput("narrow: neither a budget nor a floor; give --to params=50% or --keep 98%")
    return search_floor(study, order.keep, method=order.method, progress=progress)


def _recover_stage(
    study: Study, order: Order, planned: Planned, stages: StageStore, started: float, progress: Progress
) -> tuple[Network, list[dict[str, Any]], dict[str, float], Recipe]:
    """Cut and train; weights on the way and at the end are kept in the stages."""
    kept = kept_of(planned.plan)
    progress("cut", 0, 1)
    student = cut(study, kept)
    before = measure_network(study.probe, student)
    progress("cut", 1, 1)
    recipe = from_main(lambda: _recipe_stage(study, order, planned.plan, student, stages, started, progress))
    recovered = recover(
        student,
        study.network,
        study.texts,
        recipe,
        kept=kept,
        seed=order.seed,
        task=study.task,
        stages=stages,
        progress=progress,
    )
    curves = [asdict(curve) for curve in planned.relevance.curves]
    curves += [
        {"name": f"recovery: {name}", "unit": unit, "points": [list(point) for point in points]}
        for name, unit, points in recovered.curves
    ]
    distortion = {
        "predicted": planned.plan.distortion,
        "measured_before_recovery": before,
        "measured_after_recovery": measure_network(study.probe, recovered.network),
    }
    return recovered.network, curves, distortion, replace(recipe, steps=recovered.steps)


def _recipe_stage(
    study: Study, order: Order, plan: Plan, student: Network, stages: StageStore, started: float, progress: Progress
) -> Recipe:
    """Decide how many steps to train; kept as a stage, for a resumed run must decide the same."""
    share = plan.predicted["params"] / plan.original["params"]
    recipe = recipe_for(order.effort, share, classifier=study.network.pooling == "logits")
    if len(study.task.pairs) or len(study.task.labelled):
        recipe = replace(recipe, labels=0.1)
    if order.time is not None and not stages.done("preflight"):
        batches = TextBatches(study.texts, student, study.network, size=recipe.batch, seed=order.seed)
        seconds = step_seconds(student, study.network, batches)
        left = order.time - (clock.monotonic() - started) - VERIFY_SECONDS
        recipe = with_steps(replace(recipe, steps=most_steps()), steps_within(seconds, left, len(batches)))
        stages.save("preflight", {}, {"steps": recipe.steps, "seconds": list(seconds)})
    if stages.done("preflight"):
        recipe = with_steps(replace(recipe, steps=most_steps()), int(stages.load("preflight")[1]["steps"]))
    weights = sum(parameter.numel() * 4 for parameter in student.model.parameters())
    whole = sum(parameter.numel() * 4 for parameter in study.network.model.parameters())
    progress(
        "preflight", 1, 1, f"{recipe.steps} steps, about {(4 * weights + whole) / 1e6:.0f} MB for weights and moments"
    )
    return recipe


def _finish(
    study: Study,
    order: Order,
    planned: Planned,
    student: Network,
    curves: list[dict[str, Any]],
    distortion: dict[str, float],
    recipe: Recipe,
    stages: StageStore,
    started: float,
    progress: Progress,
) -> Narrowed:
    """Write the artifact among the stages, open it again, and measure what was opened."""
    folder = stages.folder / "artifact"
    if folder.exists():
        shutil.rmtree(folder)
    plan = planned.plan
    made: dict[str, Any] = {
        "created": records.now(),
        "network": study.network.name,
        "task": {"name": study.task.name, "fingerprint": study.task.fingerprint, "texts": len(study.task.train)},
        "plan": plan.model_dump(mode="json"),
        "seed": order.seed,
        "effort": order.effort,
        "recipe": asdict(recipe),
        "versions": records.versions(),
        "machine": records.machine(),
        "curves": curves,
    }
    save_artifact(student, folder, made)
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
    page = records.narrow_page(
        study, plan, planned.relevance if planned.relevance.nats else None, rows, limits=limits, distortion=distortion,
        measured=measured, curves=curves, examples=changed_most(study.network, opened, study.task), record=made,
        floor=order.keep, warnings=warnings,
    )  # fmt: skip
    made = update_record(folder, {"measurements": made["measurements"], "seconds": made["seconds"]})
    write(page, folder / REPORT_FILE)
    return Narrowed(opened, made, page)


def _hold(
    plan: Plan, order: Order, study: Study, opened: Network, rows: list[dict[str, Any]], progress: Progress
) -> tuple[Mapping[str, float], list[str]]:
    """Hold the artifact against the budget or floor; a latency that misses by noise is measured again."""
    budget = parse_budget(plan.budget) if "=" in plan.budget else Budget(())
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
