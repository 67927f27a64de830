"""LR2VQ (Zhu et al. 2022): vectors clustered in fewer dimensions and projected back.

32 points of half a minute to a minute on one core: half an hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from claims.coding import Arm, Claim, Point, Workbench
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.codebook.lr2vq import LowDimensionalCodebook
from isthmus.bottlenecks.codebook.plain import PlainCodebook
from isthmus.bottlenecks.coder import Setting
from isthmus.relevance.sensitivity import predicted_nats
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Coded, decode

BITS = (1.125, 1.0, 0.875, 0.75)
LENGTH, SWEPT = 8, 1.0
RANKS = tuple(float(rank) for rank in range(1, LENGTH + 1))
MOST = 0.9
OURS, PLAIN, SWEEP = "lr2vq", "codebook", "every d"


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return what each matrix's error is predicted to cost, in nats, and a digest of its code."""
    if arm.label == PLAIN:
        return {}
    lost = {
        name: predicted_nats({name: bench.statistics[name].sensitivity}, {name: bench.weights[name] - decode(code)})
        for name, code in codes.items()
    }
    digests = {name: hashlib.sha256(pack(code)).hexdigest()[:12] for name, code in codes.items()}
    return {"lost": lost, "digests": digests}


def predictions(outcomes: Sequence[Outcome]) -> dict[str, tuple[int, int]]:
    """Return the predicted ``d`` and that of the least weighted error by matrix, where any error costs anything.

    The predicted one is that whose code, in the sweep, is the very same as the one that was made by prediction.
    """
    sweep = {int(level): runs[0] for level, runs in of_arm(outcomes, SWEEP).items()}
    own = next((one for one in of_arm(outcomes, OURS).get(SWEPT, []) if one["seed"] == 0), None)
    if own is None or len(sweep) < len(RANKS):
        return {}
    found = {}
    for name, digest in own["digests"].items():
        best = min(sweep, key=lambda rank: sweep[rank]["lost"][name])
        predicted = next((rank for rank in sweep if sweep[rank]["digests"][name] == digest), None)
        if predicted is not None and sweep[best]["lost"][name] > 0:
            found[name] = predicted, best
    return found


def predicted_dimension(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): the predicted dimension is within one of the best."""
    rule = (
        f"with 8-vectors at {SWEPT:g} bit, the d that is predicted from the spectrum is within one of the d of the "
        f"least weighted error in a sweep over 1 to {LENGTH}, on at least {MOST:.0%} of the matrices; mixed: on half"
    )
    pairs = predictions(outcomes)
    if not pairs:
        return part_of("the predicted dimension", rule, UNTESTED)
    near = float(np.mean([abs(predicted - best) <= 1 for predicted, best in pairs.values()]))
    sweep = {level: runs[0] for level, runs in of_arm(outcomes, SWEEP).items()}
    top = max(sweep, key=lambda level: sweep[level]["relative"])
    own = next(one for one in of_arm(outcomes, OURS)[SWEPT] if one["seed"] == 0)
    text = (
        f"on {near:.0%} of {len(pairs)} matrices; predicted {_counts([p for p, _ in pairs.values()])}, best "
        f"{_counts([b for _, b in pairs.values()])}; the whole network by prediction {own['relative']:.1%}, by one d "
        f"for all at best {sweep[top]['relative']:.1%} (d = {top:g}), whole vectors "
        f"{sweep[float(LENGTH)]['relative']:.1%}"
    )
    verdict = HOLDS if near >= MOST else MIXED if near >= 0.5 else FAILS
    return part_of("the predicted dimension", rule, verdict, text, share=near, matrices=len(pairs))


def _counts(ranks: Sequence[int]) -> str:
    return ", ".join(f"d = {rank} {ranks.count(rank)} times" for rank in sorted(set(ranks)))


def ahead(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): against product quantization with whole vectors."""
    return against("against whole vectors", outcomes, OURS, [PLAIN])


CLAIM = Claim(
    slug="lr2vq",
    claim=(
        "Vectors that are clustered in a lower dimension and projected back lose less than plain product quantization "
        "at equal bytes, where these are a thirtieth of float32 or fewer, and a good dimension is known beforehand."
    ),
    experiment=(
        "Vectors of 8 weights of a row, about 1.1 to 0.75 bits a weight before entropy coding, three seeds; codebooks, "
        "projections and indices count. The paper trains codewords and projection on the task: here both are fitted to "
        "the weights, weighted by sensitivity, and nothing is trained; the rule for d is this library's own."
    ),
    arms=(
        Arm(OURS, BITS, lambda bits: (LowDimensionalCodebook(), Setting(bits, LENGTH)), draws=True),
        Arm(PLAIN, BITS, lambda bits: (PlainCodebook(), Setting(bits, LENGTH)), draws=True),
        Arm(SWEEP, RANKS, lambda rank: (LowDimensionalCodebook(), Setting(SWEPT, LENGTH, int(rank))), "d = {:g}"),
    ),
    parts=lambda outcomes: [ahead(outcomes), predicted_dimension(outcomes)],
    observe=observe,
)
