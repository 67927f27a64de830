"""VPTQ (Liu et al. 2024): codebooks near 2 bits that see which errors a layer's inputs amplify.

36 points of half a minute to a minute on one core: half an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from claims.coding import LEVELS, Arm, Claim, Point, Workbench, fitted_arm, grid, nearest_arm
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import Part
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.codebook.plain import PlainCodebook
from isthmus.bottlenecks.codebook.vptq import Vptq
from isthmus.bottlenecks.coder import Setting
from isthmus.storage.coded import Coded

BITS = (2.5, 2.25, 2.0, 1.75)
COUNTS = (9.0, 7.0, 5.0, 3.0)
VPTQ, PLAIN = "vptq", "codebook"
LENGTH = 4


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the error of each linear map's outputs, as a share of their mean square."""
    return {"reconstruction": bench.reconstruction(codes)}


def vectors(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): against codebooks that see neither the inputs nor each other's errors."""
    return against("against plain k-means", outcomes, VPTQ, [PLAIN])


def scalars(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): against numbers rounded one at a time."""
    return against("against scalar codes", outcomes, VPTQ, ["gptq", "rtn", "rtn, fitted"])


def outputs(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): what it minimises is lower than with plain k-means, matrix by matrix."""
    rule = (
        "on every matrix, in the mean over seeds, the error of outputs is lower than with plain k-means of as many "
        "entries; mixed: on some"
    )
    ours, theirs, passed, texts = of_arm(outcomes, VPTQ), of_arm(outcomes, PLAIN), [], []
    for level in sorted(ours.keys() & theirs.keys(), reverse=True):
        own, other = (_means(runs[level]) for runs in (ours, theirs))
        won = [own[name] < other[name] for name in own]
        passed += won
        texts.append(
            f"{level:g} bits: {sum(won)} of {len(won)}, {sum(own.values()) / sum(other.values()):.2f} times in the sum"
        )
    return part_of("error of outputs", rule, share_passed(passed), "; ".join(texts))


def _means(runs: Sequence[Outcome]) -> dict[str, float]:
    return {name: sum(run["reconstruction"][name] for run in runs) / len(runs) for name in runs[0]["reconstruction"]}


CLAIM = Claim(
    slug="vptq",
    claim=(
        "Near 2 bits, codebooks by k-means weighted with the Hessian of a layer's outputs and looked up with "
        "second-order feedback lose less than plain k-means and than scalar codes (GPTQ, rounding to nearest) at equal "
        "bytes."
    ),
    experiment=(
        "Vectors of 4 weights of a row, tables of 1024 to 128 entries (2.5 to 1.75 bits before entropy coding), three "
        "seeds. Scalar codes have 9 to 3 levels and a scale for each row, fitted or reaching the largest weight; "
        "GPTQ's are fitted. Embeddings have no Hessian: there both codebooks are plain, but for a scale for each row. "
        "The paper's residual codebook (a coder of its own here) and its outlier codebook are not judged."
    ),
    arms=(
        Arm(VPTQ, BITS, lambda bits: (Vptq(), Setting(bits, LENGTH)), draws=True),
        Arm(PLAIN, BITS, lambda bits: (PlainCodebook(), Setting(bits, LENGTH)), draws=True),
        Arm("gptq", COUNTS, lambda n: (Gptq(), grid(n)), LEVELS),
        nearest_arm(COUNTS),
        fitted_arm(COUNTS),
    ),
    parts=lambda outcomes: [vectors(outcomes), scalars(outcomes), outputs(outcomes)],
    observe=observe,
)
