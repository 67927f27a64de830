"""NViT (Yang et al. 2023): Hessian-aware saliency with a price of what a unit costs, beside magnitude.

15 trials of a minute or two each on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.rounded_vits import MODEL, NEEDS, accuracy, data, logits, network, reference, task
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import UNTESTED, Part
from isthmus.cost.examples import one_example
from isthmus.cost.measure import measure_macs
from isthmus.flow.efforts import recipe_for
from isthmus.flow.planning import allocate_lasting
from isthmus.flow.study import Study, cut, original_rates, rates_for, start_study
from isthmus.progress import silent
from isthmus.recovery.train import recover
from isthmus.relevance.calibrate import to_nats
from isthmus.relevance.estimator import Calibration, Estimator
from isthmus.relevance.fisher import Fisher
from isthmus.relevance.magnitude import Magnitude
from isthmus.relevance.nvit import HessianLatency
from isthmus.relevance.statistics import collect
from isthmus.sites import LAYERS

SHARE, STEPS, TOLERANCE = 0.5, 60, 0.02
OWN, FREE, CALIBRATED, FISHER = "its own order", "its own order, no price", "calibrated", "fisher, calibrated"
MAGNITUDE, UNIFORM = "magnitude, calibrated", "uniform shares by magnitude"
METHODS: dict[str, Estimator] = {
    OWN: HessianLatency(),
    FREE: HessianLatency(price=0.0),
    CALIBRATED: HessianLatency(),
    FISHER: Fisher(),
    MAGNITUDE: Magnitude(),
    UNIFORM: Magnitude(),
}
Kept = dict[str, tuple[int, ...]]


@cache
def study() -> Study:
    """Return the study of the original; layers all stay, as in the paper."""
    return start_study(network(), task(), kinds=("width", "heads", "neurons"))


def decided(arm: str, seed: int) -> Kept:
    """Return the units that stay, by site."""
    own = replace(study(), seed=seed)
    rates = rates_for(own, ["macs"])
    original = original_rates(own, rates)
    limits = {"macs": SHARE * original["macs"]}
    method = METHODS[arm]
    calibration = Calibration(
        own.network, own.sites, own.examples, own.probe, np.zeros(0), rates, limits, original, seed=seed
    )
    needed = collect(own.probe, own.sites, method.needs, seed=seed)
    scores = dict(method.scores(calibration, needed).nats)
    if arm in (OWN, FREE):
        assert isinstance(method, HessianLatency)
        return {name: tuple(np.flatnonzero(found >= method.rounds).tolist()) for name, found in scores.items()}
    if arm == UNIFORM:
        return uniform(scores, lambda kept: measured_macs(kept) <= limits["macs"])
    nats = to_nats(own.probe, own.sites, scores, progress=silent)
    allocation = allocate_lasting(own, nats, rates, limits, original)
    return {name: tuple(units) for name, units in allocation.kept.items()}


def uniform(scores: Mapping[str, np.ndarray[Any, Any]], fits: Any) -> Kept:
    """Return the same share of every site, its largest units, the largest share that fits."""

    def kept(share: float) -> Kept:
        return {
            name: tuple(sorted(np.argsort(-found, kind="stable")[: max(1, int(share * len(found)))].tolist()))
            for name, found in scores.items()
            if name != LAYERS
        }

    low, high = 0.1, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(kept(middle)) else (low, middle)
    return kept(low)


def measured_macs(kept: Kept) -> int:
    """Return the multiply-accumulates of the network with these units, counted."""
    small = cut(study(), kept)
    return measure_macs(small.model, one_example(small, 1))


def measure(point: Point) -> Mapping[str, Any]:
    """Cut, recover and measure."""
    kept = decided(point.arm, point.seed)
    own = study()
    student = cut(own, kept)
    recipe = replace(
        recipe_for("faster", SHARE, classifier=True), steps=STEPS, evaluate_every=STEPS // 3, patience=0, labels=0.1
    )
    recovered = recover(student, own.network, own.examples, recipe, kept=kept, seed=point.seed, task=own.task)
    found, (whole, right) = logits(recovered.network), reference()
    gap = (whole.softmax(1) * (whole.log_softmax(1) - found.log_softmax(1))).sum(1)
    macs = measure_macs(recovered.network.model, one_example(own.network, 1))
    return {
        "accuracy": accuracy(found), "original": right, "nats": float(torch.mean(gap)),
        "macs": macs / measure_macs(own.network.model, one_example(own.network, 1)),
        "kept": {name: len(units) for name, units in kept.items()},
    }  # fmt: skip


def ahead(outcomes: Sequence[Outcome], better: str, worse: str) -> Part:
    """Decide whether one arm is right more often than another after the same recovery."""
    rule = (
        f"after {STEPS} steps of recovery at {SHARE:.0%} of the multiply-accumulates (measured, within "
        f"{TOLERANCE:.0%}) it is right more often, by more than twice the standard error of paired differences; "
        "mixed: by less"
    )
    name = f"{better} against {worse}"
    ours, theirs = (of_arm(outcomes, arm, None, "accuracy") for arm in (better, worse))
    costs = [of_arm(outcomes, arm, None, "macs") for arm in (better, worse)]
    if len(ours) < 2 or len(ours) != len(theirs) or max(costs[0]) / min(costs[1]) - 1 > TOLERANCE:
        return part_of(name, rule, UNTESTED)
    gap, error = paired(ours, theirs)
    text = f"{np.mean(ours):.2%} against {np.mean(theirs):.2%} ({100 * gap:+.2f} ± {100 * error:.2f} points)"
    return part_of(name, rule, share_passed([gap > 0, gap > 2 * error]), text, gap=gap, error=error)


TRIALS = Trials(
    slug="nvit-hessian-pruning",
    claim=(
        "Units of all kinds in one order, by Hessian-aware saliency less a price of what they cost, lose less after "
        "the same recovery than by magnitude or with uniform shares; the price helps."
    ),
    experiment=(
        f"`{MODEL}` on Fashion-MNIST at {SHARE:.0%} of its multiply-accumulates, which the price is of; {STEPS} steps "
        "of recovery for all, scored on images that nothing was trained on. Calibrated: scores only order units within "
        "a site, and what sites lose is measured. Latency is not tested."
    ),
    arms=dict.fromkeys(METHODS, (SHARE,)),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        ahead(outcomes, OWN, UNIFORM),
        ahead(outcomes, OWN, MAGNITUDE),
        ahead(outcomes, OWN, FREE),
        ahead(outcomes, CALIBRATED, FISHER),
    ],
    columns=(
        Column("accuracy", "accuracy", "{:.2%}"),
        Column("nats", "nats", "{:.4f}"),
        Column("macs", "MACs", "{:.1%}"),
    ),
    level="share of the MACs",
    recipe={"steps": STEPS, "model": MODEL, "share": SHARE},
    data=data,
    needs=NEEDS,
)
