"""Recover: cut, train, code, and train again on the grids of the codes; kept in stages, so that it can go on."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from isthmus.budget import parse_budget
from isthmus.errors import UnreachableBudget
from isthmus.flow.activations import with_rounded_inputs
from isthmus.flow.coding import (
    code_matrices,
    file_bytes,
    fit_scales,
    fit_settings,
    quantizers_of,
    student_statistics,
    takes_any_bits,
)
from isthmus.flow.efforts import (
    coding_recipe,
    convolutional,
    most_steps,
    recipe_for,
    step_seconds,
    steps_within,
    with_steps,
)
from isthmus.flow.order import Order
from isthmus.flow.planning import Planned, kept_of
from isthmus.flow.solving import solve
from isthmus.flow.study import Study, cut
from isthmus.flow.together import from_main
from isthmus.memory import give_back
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.recovery.drawing import draw
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.straight import straight_through, trained_codes
from isthmus.recovery.train import Recovered, recover
from isthmus.recovery.tuned_codes import tune_codes
from isthmus.relevance.probe import measure_network
from isthmus.storage.coded import Coded
from isthmus.storage.holders import with_codes
from isthmus.storage.stages import StageStore

VERIFY_SECONDS = 60.0
"""Kept free at the end of ``--time`` for exporting and measuring."""
GROWTH = 0.01
"""Weights that are trained on a grid spread a little, and with them their entropy: so much of the budget is kept."""
ROUNDS = {"faster": 10, "fast": 40, "full": 120}
"""Rounds of tuning codes that are looked up, by effort."""


@dataclass(frozen=True)
class Trained:
    """A network after recovery, its weights coded where the plan says so.

    Parameters
    ----------
    distortion : dict of str to float
        Nats from the original: predicted, measured before recovery and after it.
    recipe, coding_recipe : Recipe or None
        How it was trained after the cut, and on the grids of its codes; None where it was not.
    """

    network: Network
    curves: list[dict[str, Any]]
    distortion: dict[str, float]
    recipe: Recipe | None
    coding_recipe: Recipe | None


def recover_stage(
    study: Study, order: Order, planned: Planned, stages: StageStore, started: float, progress: Progress
) -> Trained:
    """Cut, solve, train and code; weights on the way and at the end are kept in the stages.

    Without training it is cut, solved and coded.
    """
    plan = planned.plan
    kept = kept_of(plan)
    progress("cut", 0, 1)
    student = _narrower(study, plan)
    untouched = not (kept or plan.codings or plan.activations)  # the budget is of the cache alone
    before = measure_network(study.probe, _coded_at_once(study, plan, student))
    progress("cut", 1, 1)
    student, solved = _solved(study, student, kept, stages, progress)
    curves = [asdict(curve) for curve in planned.relevance.curves]
    recipe: Recipe | None = None
    coding: Recipe | None = None
    # What lost no units has nothing to recover from before it is coded.
    if order.effort != "none" and (kept or not plan.codings) and not untouched:
        recipe = from_main(lambda: _recipe_stage(study, order, plan, student, solved, stages, started, progress))
        done = _train(study, order, plan, student, recipe, stages, "recovery", progress)
        student, recipe = done.network, replace(recipe, steps=done.steps)
        curves += _curves("recovery", done)
    if plan.codings:
        # The plan fitted the codes of what was only cut: other weights take other bytes.
        spare = GROWTH if order.effort != "none" else 0.0 if solved else None
        codes = _codes(study, plan, student, spare, progress)
        if order.effort != "none":
            coding = from_main(lambda: _coding_recipe(study, order, plan, student, stages, started, progress))
            quantizers = quantizers_of(plan.codings)
            with straight_through(student.model, codes, quantizers) as grids:
                done = _train(study, order, plan, student, coding, stages, "codes", progress)
                codes = trained_codes(codes, grids)
            student, coding = done.network, replace(coding, steps=done.steps)
            curves += _curves("codes", done)
            codes = fit_scales(student, codes, _limit(plan), progress, quantizers=quantizers)
            codes, losses = _tuned(study, order, student, codes, _limit(plan), progress)
            curves += losses
        fits = file_bytes(student, codes) <= _limit(plan)
        student = with_codes(student, codes)
    after = measure_network(study.probe, student)
    # A network that lost next to nothing can be spoilt by fitting it once more.
    if plan.codings and (after > before or not fits):
        student, after = _untrained(study, plan, before, stages, progress)
    distortion = {
        "predicted": plan.distortion,
        "measured_before_recovery": before,
        "measured_after_recovery": after,
    }
    return Trained(student, curves, distortion, recipe, coding)


def _solved(
    study: Study, student: Network, kept: Mapping[str, Sequence[int]], stages: StageStore, progress: Progress
) -> tuple[Network, bool]:
    """Solve projections anew, and say whether it was of use; a stage, for a resumed run must find the same numbers."""
    if not kept:
        return student, False
    if not from_main(lambda: stages.done("solved")):
        found = solve(study, student, kept, progress)
        weights = {} if found is None else found.model.state_dict()
        from_main(lambda: stages.save("solved", weights, {"solved": found is not None}))
        give_back()  # the streams of all texts were held
        return found or student, found is not None
    weights, data = from_main(lambda: stages.load("solved"))
    if data["solved"]:
        student.model.load_state_dict(weights)
    return student, bool(data["solved"])


def _untrained(
    study: Study, plan: Plan, before: float, stages: StageStore, progress: Progress
) -> tuple[Network, float]:
    """Return what is coded as it was solved, or as it was cut where that is nearer the original, and its nats."""
    student, solved = _solved(study, _narrower(study, plan), kept_of(plan), stages, progress)
    if solved:
        codes = _codes(study, plan, student, 0.0, progress)
        coded = with_codes(student, codes)
        nats = measure_network(study.probe, coded)
        if nats < before and file_bytes(student, codes) <= _limit(plan):
            return coded, nats
    return _coded_at_once(study, plan, _narrower(study, plan)), before


def _narrower(study: Study, plan: Plan) -> Network:
    return with_rounded_inputs(cut(study, kept_of(plan)), plan.activations)


def _coded_at_once(study: Study, plan: Plan, student: Network) -> Network:
    """Return the network as it would be without any training."""
    return with_codes(student, _codes(study, plan, student, None)) if plan.codings else student


def _codes(
    study: Study, plan: Plan, student: Network, spare: float | None, progress: Progress | None = None
) -> dict[str, Coded]:
    """Return codes fitted to the budget less what is kept spare; None: as the plan fitted them."""
    shown = progress or silent
    statistics = student_statistics(study, student, plan.codings, shown)
    if spare is None or not any(takes_any_bits(coding.coder) for coding in plan.codings):
        return code_matrices(student, plan.codings, statistics, seed=study.seed)
    limit = _limit(plan) * (1 - spare)
    try:
        return fit_settings(student, plan.codings, statistics, limit, seed=study.seed, progress=shown)[0]
    except UnreachableBudget:
        # Too few of the codes can give way before training: nothing is kept spare, and all give way afterwards.
        return code_matrices(student, plan.codings, statistics, seed=study.seed)


def _tuned(
    study: Study, order: Order, student: Network, codes: dict[str, Coded], limit: float, progress: Progress
) -> tuple[dict[str, Coded], list[dict[str, Any]]]:
    """Tune the codes that are looked up, which training on the grid leaves as they are; kept where the file still fits.

    Every process of several does the same, from the same seed.
    """
    tuned = tune_codes(
        student, codes, study.network, study.examples, rounds=ROUNDS[order.effort], seed=order.seed, progress=progress
    )
    if not tuned.losses or file_bytes(student, tuned.codes) > limit:
        return codes, []
    points = [[number, loss] for number, loss in enumerate(tuned.losses)]
    return tuned.codes, [{"name": "tuned codes: divergence", "unit": "nats", "points": points}]


def _limit(plan: Plan) -> float:
    """Return the bytes that the weight file may take; without a budget of bytes, those that were predicted."""
    for limit in parse_budget(plan.budget).limits if "=" in plan.budget else ():
        if limit.currency == "bytes":
            return limit.amount(plan.original["bytes"])
    return plan.predicted["bytes"]


def _train(
    study: Study,
    order: Order,
    plan: Plan,
    student: Network,
    recipe: Recipe,
    stages: StageStore,
    stage: str,
    progress: Progress,
) -> Recovered:
    return recover(
        student,
        study.network,
        study.examples,
        recipe,
        kept=kept_of(plan),
        seed=order.seed,
        task=study.task,
        stages=stages,
        stage=stage,
        progress=progress,
    )


def _curves(stage: str, recovered: Recovered) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{stage}: {name.removeprefix('recovery: ')}",
            "unit": unit,
            "points": [list(point) for point in points],
        }
        for name, unit, points in recovered.curves
    ]


def _with_labels(study: Study, recipe: Recipe) -> Recipe:
    return replace(recipe, labels=0.1) if len(study.task.pairs) or len(study.task.labelled) else recipe


def _coding_recipe(
    study: Study, order: Order, plan: Plan, student: Network, stages: StageStore, started: float, progress: Progress
) -> Recipe:
    """Decide how many steps to train on the grids of the codes."""
    weights = np.array([coding.bytes for coding in plan.codings], dtype=float)
    bits = float(np.average([coding.bits for coding in plan.codings], weights=np.maximum(weights, 1)))
    recipe = coding_recipe(order.effort, bits, classifier=study.network.predicts)
    return _timed(study, order, _with_labels(study, recipe), student, stages, "preflight-codes", started, 1.0, progress)


def _recipe_stage(
    study: Study,
    order: Order,
    plan: Plan,
    student: Network,
    solved: bool,
    stages: StageStore,
    started: float,
    progress: Progress,
) -> Recipe:
    """Decide how many steps to train after the cut."""
    share = plan.predicted["params"] / plan.original["params"]
    classifier = study.network.predicts
    chosen = recipe_for(order.effort, share, classifier=classifier, solved=solved, convolutional=convolutional(student))
    recipe = _with_labels(study, chosen)
    part = 0.5 if plan.codings else 1.0  # the rest of the time is for training on the grids of the codes
    return _timed(study, order, recipe, student, stages, "preflight", started, part, progress)


def _timed(
    study: Study,
    order: Order,
    recipe: Recipe,
    student: Network,
    stages: StageStore,
    stage: str,
    started: float,
    part: float,
    progress: Progress,
) -> Recipe:
    """Fit the steps into a part of the time that is left; kept as a stage, for a resumed run must decide the same."""
    if order.time is not None and not stages.done(stage):
        batches = draw(study.examples, student, study.network, size=recipe.batch, seed=order.seed, augment=True)
        seconds = step_seconds(student, study.network, batches)
        left = part * (order.time - (clock.monotonic() - started) - VERIFY_SECONDS)
        recipe = with_steps(replace(recipe, steps=most_steps()), steps_within(seconds, left, len(batches)))
        stages.save(stage, {}, {"steps": recipe.steps, "seconds": list(seconds)})
    if stages.done(stage):
        recipe = with_steps(replace(recipe, steps=most_steps()), int(stages.load(stage)[1]["steps"]))
    weights = sum(parameter.numel() * 4 for parameter in student.model.parameters())
    whole = sum(parameter.numel() * 4 for parameter in study.network.model.parameters())
    progress(
        "preflight", 1, 1, f"{recipe.steps} steps, about {(4 * weights + whole) / 1e6:.0f} MB for weights and moments"
    )
    return recipe
