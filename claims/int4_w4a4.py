"""INT4 weights and activations (Wu et al. 2023): an encoder bears both once it is distilled, narrowed or not.

9 points of 150 steps, each about four minutes on one core, after a network at half its parameters is made (ten
minutes, kept for the next run): three quarters of an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import isthmus
from claims import coding
from claims.coding import SEEDS, Arm, Claim, Point, Workbench
from claims.common import STEPS, Outcome, Say
from claims.equal_bytes import of_arm, part_of
from claims.trained import QUICK, Trainer
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.paretoq import ParetoQ
from isthmus.bottlenecks.coder import Setting
from isthmus.flow.activations import with_rounded_inputs
from isthmus.network import Network
from isthmus.storage.opening import open as open_network

BITS = 4.0
BOTH, WEIGHTS, OF_HALF = "w4a4", "w4", ", half of the parameters"
NEGLIGIBLE, ACTIVATIONS, COMPOSED = 0.02, 0.01, 0.01


class Rounding(Trainer):
    """A trainer some of whose arms round activations, and some of which start from a narrowed network.

    Parameters
    ----------
    half : Workbench or None
        With the narrowed network in the place of the original, from which it is then distilled.
    """

    def __init__(self, bench: Workbench, half: Workbench | None, *, steps: int = STEPS) -> None:
        super().__init__(bench, steps=steps)
        self.half = None if half is None else Rounding(half, None, steps=steps)

    def student(self, arm: Arm) -> Network:
        """Return a copy of the original, with rounded activations where the arm has them."""
        return with_rounded_inputs(super().student(arm), int(BITS) if arm.label.startswith(BOTH) else None)

    def measure(self, arm: Arm, point: Point, observe: coding.Observe | None = None) -> Outcome:
        """Run one point, on the network that its arm is about."""
        if self.half is not None and arm.label.endswith(OF_HALF):
            return self.half.measure(arm, point, observe)
        return super().measure(arm, point, observe)


def negligible(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): four bits for weights and activations cost next to nothing after distillation."""
    rule = (
        f"the score relative to the original is above {1 - NEGLIGIBLE:.0%} in every seed; mixed: in the mean; does not "
        "hold: otherwise"
    )
    own = _runs(outcomes, BOTH)
    if not own:
        return part_of("weights and activations of 4 bits", rule, UNTESTED)
    scores = [run["relative"] for run in own]
    least = 1 - NEGLIGIBLE
    verdict = HOLDS if min(scores) > least else MIXED if np.mean(scores) > least else FAILS
    text = (
        f"{np.mean(scores):.2%} (least {min(scores):.2%}), {_mean(own, 'before'):.3g} nats before training and "
        f"{_mean(own, 'nats'):.3g} after it"
    )
    return part_of("weights and activations of 4 bits", rule, verdict, text, relative=scores)


def activations(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): rounding activations too costs little once it is trained for."""
    rule = (
        f"after the same training, rounding activations as well costs at most {100 * ACTIVATIONS:g} point in the mean, "
        "and training makes up for more of it than it leaves, in nats; mixed: one of the two"
    )
    both, weights = _runs(outcomes, BOTH), _runs(outcomes, WEIGHTS)
    if not both or not weights:
        return part_of("activations beside weights", rule, UNTESTED)
    cost = _mean(weights, "relative") - _mean(both, "relative")
    added = [_mean(both, key) - _mean(weights, key) for key in ("before", "nats")]
    passed = [cost <= ACTIVATIONS, added[1] < added[0] / 2]
    text = (
        f"{100 * cost:.2f} points beyond weights alone ({_mean(weights, 'relative'):.2%}); {added[0]:.3g} nats more "
        f"before training, {added[1]:.3g} after it"
    )
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of("activations beside weights", rule, verdict, text, cost=cost, added=added)


def composed(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): it goes together with pruning."""
    rule = (
        "what four bits for both cost a network at half its parameters, relative to that network, is at most "
        f"{100 * COMPOSED:g} point more than they cost the whole one, in the mean; does not hold: more, by more than "
        "twice the standard error of the difference; mixed: otherwise"
    )
    costs = {label: [1 - run["relative"] for run in _runs(outcomes, label)] for label in (BOTH, BOTH + OF_HALF)}
    if not all(costs.values()):
        return part_of("with pruning", rule, UNTESTED)
    whole, half = costs.values()
    more = float(np.mean(half) - np.mean(whole))
    error = float(np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in (whole, half) if len(each) > 1)))
    verdict = HOLDS if more <= COMPOSED else FAILS if more > COMPOSED + 2 * error else MIXED
    text = f"{100 * np.mean(half):.2f} points of the narrowed network, {100 * np.mean(whole):.2f} of the whole one"
    return part_of("with pruning", rule, verdict, text, more=more, error=error)


def _runs(outcomes: Sequence[Outcome], label: str) -> list[Outcome]:
    return [run for runs in of_arm(outcomes, label).values() for run in runs]


def _mean(runs: Sequence[Outcome], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": sum(parameter.numel() for parameter in bench.network.model.parameters())}


CLAIM = Claim(
    slug="int4-w4a4",
    claim=(
        "Weights and activations of 4 bits lose next to nothing on encoders after quantization-aware distillation, and "
        "go together with pruning; decoders lose much."
    ),
    experiment=(
        "Weights by ParetoQ's quantizer, a scale a row, trained along; what enters each linear map of a layer is "
        "rounded to 16 levels a token, between its smallest and its largest entry. The network at half its parameters "
        "is narrowed by `fisher` and recovered (`--effort faster`), then takes the original's place. No decoder is "
        "tested, and no time: this machine has no integers of 4 bits."
    ),
    arms=tuple(
        Arm(label, (BITS,), lambda bits: (ParetoQ(fit=True), Setting(bits)), draws=True)
        for label in (BOTH, WEIGHTS, BOTH + OF_HALF)
    ),
    parts=lambda outcomes: [negligible(outcomes), activations(outcomes), composed(outcomes)],
    observe=_observe,
)


def narrowed(bench: Workbench, cache: Path | None, *, effort: str = "faster") -> Network:
    """Return the original at half its parameters, made once."""
    folder = None if cache is None else cache / f"half-{effort}"
    if folder is not None and (folder / "config.json").exists():
        return open_network(folder)
    made = isthmus.narrow(bench.network, bench.task, to="params=50%", method="fisher", effort=effort, out=folder)
    return made.network


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Train and measure the points that ``out`` lacks, and return the verdict; ``cache`` keeps the narrowed network."""
    half = replace(narrowed(bench, cache), name=f"{bench.network.name} at half")
    trainer = Rounding(bench, Workbench(half, bench.task, cache=cache, say=say), steps=QUICK if quick else STEPS)
    return coding.run(CLAIM, trainer, out, seeds=seeds, quick=quick, say=say)
