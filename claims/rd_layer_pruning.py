"""Rate-distortion layer pruning (Xu et al. 2023): a sparsity for each matrix, by dynamic programming on its distortion.

25 points of half a minute on one core, after curves of 39 matrices at 6 sparsities (234 measurements of two seconds,
which are kept for the next run). Twenty minutes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from claims import coding
from claims.coding import ROW, Arm, Claim, Point, Settings, Workbench, grid
from claims.common import Outcome, Say
from claims.equal_bytes import RULE, ahead, combined, compare, part_of, share_passed
from claims.sparsities import LEAST, Counts, exact, global_magnitude, lamp, nats_alone, priced, sixteenths, uniform
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.flow.study import start_study
from isthmus.relevance.probe import Probe, measure_closed
from isthmus.storage.coded import Coded, Uniform, decode
from isthmus.storage.files import write_atomic

EXACT, PRICED, UNIFORM, GLOBAL, LAMP = "dynamic program", "price", "uniform", "global magnitude", "lamp"
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)
MEASURED = (4, 6, 8, 10, 12, 14)
"""Sixteenths at which each matrix is measured; 0 loses nothing."""
MODERATE, TOLERANCE, SECONDS, EQUAL = 0.5, 0.2, 10.0, 0.002
_BITS = 12


@dataclass(frozen=True)
class Pruned:
    """The largest weights of a matrix on a grid of 12 bits, the others zero.

    Parameters
    ----------
    zeros : int
        How many weights go.
    """

    name: ClassVar[str] = "pruned"
    slug: ClassVar[str | None] = "rd-layer-pruning"
    family: ClassVar[str] = "sparsity"
    needs: ClassVar[frozenset[str]] = frozenset()

    zeros: int = 0

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return its one setting."""
        return (Setting(_BITS, ROW),)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code; a weight that stays is no zero of the grid.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or more are to go than there are.
        """
        check_matrix(weight)
        if not 0 <= self.zeros <= weight.size:
            raise BadInput(f"{self.zeros} of {weight.size} weights cannot be zero; give a number between")
        coded = FineQuant().code(weight, statistics, grid(2**_BITS - 1))
        integers = np.where(coded.integers == 0, np.where(weight < 0, -1, 1), coded.integers).astype(np.int32)
        integers.flat[np.argsort(np.abs(weight), axis=None, kind="stable")[: self.zeros]] = 0
        return Uniform(integers, coded.scales)


class Bench(Workbench):
    """The workbench of a claim about coders, with the curves of all matrices.

    Parameters
    ----------
    cache : Path or None
        A folder where curves are kept.
    """

    def __init__(self, bench: Workbench, cache: Path | None = None, say: Say = print) -> None:
        vars(self).update(vars(bench))
        self.probe: Probe = start_study(bench.network, bench.task).probe
        self.sizes = {name: weight.size for name, weight in self.weights.items()}
        digest = hashlib.sha256(json.dumps([bench.record(), MEASURED, _BITS]).encode()).hexdigest()[:16]
        file = None if cache is None else cache / f"pruned-{digest}.curves"
        if file is not None and file.exists():
            held = json.loads(file.read_text(encoding="utf-8"))
        else:
            started = time.monotonic()
            held = {name: self._curve(name) for name in self.names}
            say(f"curves of {len(held)} matrices in {time.monotonic() - started:.0f} s")
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, json.dumps(held).encode())
        self.alone = {name: {int(part): float(nats) for part, nats in own.items()} for name, own in held.items()}

    def _curve(self, name: str) -> dict[int, float]:
        """Return what a matrix loses alone, rising with its sparsity."""
        found = {0: 0.0}
        for part in MEASURED:
            coded = Pruned(sixteenths(self.sizes[name], part)).code(
                self.weights[name], self.statistics[name], Setting(_BITS, ROW)
            )
            # Noise may make more sparsity look better, which a line between two would then be led by.
            found[part] = max(self.together({name: coded}), max(found.values()), LEAST)
        return found

    def together(self, codes: Mapping[str, Coded]) -> float:
        """Return the nats on the probe that curves are measured on, with these matrices coded and all else as it is."""
        model = self.network.model
        try:
            with torch.no_grad():
                for name, coded in codes.items():
                    model.get_parameter(name).copy_(torch.from_numpy(decode(coded)))
            return measure_closed(self.probe, [], {})
        finally:
            with torch.no_grad():
                for name in codes:
                    model.get_parameter(name).copy_(torch.from_numpy(self.weights[name]))

    def counts(self, label: str, share: float) -> Counts:
        """Return how many weights of each matrix go."""
        if label in (EXACT, PRICED):
            return (exact if label == EXACT else priced)(share, self.sizes, self.alone)
        return {UNIFORM: uniform, GLOBAL: global_magnitude, LAMP: lamp}[label](share, self.weights)

    def settings(self, arm: Arm, level: float) -> Settings:
        """Return coder and setting of every matrix."""
        return {name: (Pruned(count), Setting(_BITS, ROW)) for name, count in self.counts(arm.label, level).items()}


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the sparsity by matrix, the nats of all and the sum of those of each alone, and the solver's seconds."""
    assert isinstance(bench, Bench)
    started = time.monotonic()
    counts = bench.counts(arm.label, point.level)
    spent = time.monotonic() - started
    zeros = {name: int((coded.integers == 0).sum()) for name, coded in codes.items() if isinstance(coded, Uniform)}
    total = sum(bench.sizes.values())
    return {
        "sparsity": sum(zeros.values()) / total,
        "sparsities": {name: zeros[name] / bench.sizes[name] for name in zeros},
        "together": bench.together(codes),
        "alone": nats_alone(counts, bench.sizes, bench.alone),
        "solver_seconds": spent,
    }


def additive(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): what matrices lose together is what they lose one by one."""
    rule = (
        f"at a total sparsity of up to {MODERATE:.0%} the nats of all matrices pruned together are within "
        f"{TOLERANCE:.0%} of the sum of those of each alone, on the same texts, for each allocation in sixteenths"
    )
    own = [one for one in outcomes if one["arm"] in (EXACT, PRICED, UNIFORM) and one["level"] <= MODERATE]
    ratios = {f"{one['arm']} at {one['level']:g}": one["together"] / max(one["alone"], LEAST) for one in own}
    verdict = share_passed([abs(ratio - 1) <= TOLERANCE for ratio in ratios.values()])
    text = "; ".join(f"{name} {ratio:.2f} times the sum" for name, ratio in ratios.items())
    return part_of("distortions add up", rule, verdict, text, ratios=ratios)


def fast(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): the dynamic program takes seconds."""
    rule = f"the exact dynamic program takes at most {SECONDS:g} s at every sparsity"
    own = [one for one in outcomes if one["arm"] == EXACT]
    spent = [float(one["solver_seconds"]) for one in own]
    text = ""
    if own:
        text = f"{min(spent):.2f} to {max(spent):.2f} s"
        priced_sums = {one["level"]: one["alone"] for one in outcomes if one["arm"] == PRICED}
        shared = [one for one in own if one["level"] in priced_sums]
        if shared:
            over = max(priced_sums[one["level"]] / max(one["alone"], LEAST) for one in shared)
            text += f"; by one price for all matrices the sum of nats is at most {over:.3f} times as much"
    return part_of("the dynamic program is fast", rule, share_passed([one <= SECONDS for one in spent]), text)


def better(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): at equal total sparsity the allocation loses less than others."""
    theirs = RULE.removeprefix("at equal bytes ")
    rule = f"at equal total sparsity (within {EQUAL:.1%}), in the mean over sparsities, {theirs}"
    # Curves are over what stays of the weights, in the place of bytes.
    placed = [{**one, "bytes": 1 - one["level"]} for one in outcomes]
    verdicts, texts, figures = [], [], {}
    for other in (UNIFORM, GLOBAL, LAMP):
        apart = [
            one for one in outcomes if one["arm"] in (EXACT, other) and abs(one["sparsity"] - one["level"]) > EQUAL
        ]
        found = None if apart else compare(placed, EXACT, other)
        if found is None:
            verdicts.append(UNTESTED)
            continue
        verdicts.append(ahead(found))
        nats, factor = math.exp(found["nats"]), math.exp(found["nats_spread"])
        texts.append(
            f"against `{other}` {100 * found['gap']:+.2f} ± {100 * found['spread']:.2f} points, {nats:.2f} times the "
            f"nats (within a factor of {factor:.2f})"
        )
        figures[other] = found
    return part_of("allocation at equal sparsity", rule, combined(verdicts), "; ".join(texts), **figures)


CLAIM = Claim(
    slug="rd-layer-pruning",
    claim=(
        "What pruning loses adds up over layers, so that a dynamic program finds the best sparsity of each in seconds; "
        "at equal total sparsity this allocation beats uniform sparsity, one magnitude for all, and LAMP."
    ),
    experiment=(
        "Here every matrix has a sparsity of its own: its smallest weights are zero and the others on a grid of 12 "
        "bits; 25 to 75% of all weights go. What each matrix loses alone is measured at 6 sparsities on 256 other "
        "texts; the dynamic program is exact on these, and one price of a weight for all matrices is solved beside it. "
        "The baselines are the same sparsity everywhere, one magnitude for all matrices, and LAMP scores."
    ),
    arms=tuple(
        Arm(label, SHARES, lambda _: (Pruned(), Setting(_BITS, ROW)), "{:.1%} zero", decide=lambda _, __: {})
        for label in (EXACT, PRICED, UNIFORM, GLOBAL, LAMP)
    ),
    parts=lambda outcomes: [better(outcomes), additive(outcomes), fast(outcomes)],
    observe=observe,
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Measure the points that ``out`` lacks, and return the verdict; curves are kept in ``cache``."""
    return coding.run(CLAIM, Bench(bench, cache, say), out, seeds=seeds, quick=quick, say=say)
