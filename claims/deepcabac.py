"""DeepCABAC (Wiedemann et al. 2020): weights rounded for rate and distortion, entropy coded with adaptive contexts.

28 points of about half a minute on one core, those of rounding to nearest a minute more: 25 minutes.
"""

from __future__ import annotations

import heapq
import importlib.util
import zlib
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from claims.coding import Arm, Claim, Point, Workbench
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import Part
from isthmus.bottlenecks.bits.rate_distortion import SLOPE, DeepCabac
from isthmus.bottlenecks.coder import Setting
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Coded, Uniform

BITS = (3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0)
"""Where a network of this size begins to lose, and below."""
NEAREST, QUARTER, FULL, EQUAL = "nearest", "a quarter of the slope", "the slope", "equal steps"


def _arm(label: str, slope: float, tempering: float = 0.5) -> Arm:
    return Arm(label, BITS, lambda bits: (DeepCabac(slope, tempering), Setting(bits)))


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return how many matrices come back from their bytes, and for nearest rounding what other compressors take."""
    whole = {name: code for name, code in codes.items() if isinstance(code, Uniform)}
    back = {name: unpack(pack(code), code.shape) for name, code in whole.items()}
    exact = [
        isinstance(one, Uniform)
        and np.array_equal(one.integers, whole[name].integers)
        and all(np.array_equal(grid, own) for grid, own in zip(one.scales, whole[name].scales, strict=True))
        for name, one in back.items()
    ]
    found: dict[str, Any] = {"exact": sum(exact), "matrices": len(codes)}
    if arm.label == NEAREST:
        found["others"] = {name: others(code.integers) for name, code in whole.items()}
    return found


def others(integers: npt.NDArray[np.int32]) -> dict[str, int]:
    """Return the bytes of integers by Huffman's code (its table not counted), zlib and, where it is there, zstd."""
    narrow = next(kind for kind in (np.int8, np.int16, np.int32) if np.array_equal(integers.astype(kind), integers))
    data = integers.astype(narrow).tobytes()
    found = {"huffman": huffman_bytes(integers), "zlib": len(zlib.compress(data, 9))}
    if importlib.util.find_spec("zstandard"):
        import zstandard

        found["zstd"] = len(zstandard.ZstdCompressor(level=19).compress(data))
    return found


def huffman_bytes(integers: npt.NDArray[np.int32]) -> int:
    """Return the bytes that the best prefix code of these integers takes (Huffman 1952), without its table."""
    counts: list[int] = np.unique(integers, return_counts=True)[1].tolist()
    if len(counts) == 1:
        return -(-counts[0] // 8)
    order = count()
    heap = [(number, next(order)) for number in counts]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap)[0] + heapq.heappop(heap)[0]
        bits += joined  # every symbol below gets one bit longer
        heapq.heappush(heap, (joined, next(order)))
    return -(-bits // 8)


def rounding(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): rounding for rate and distortion against rounding to nearest, on the same steps."""
    arms = [label for label in (QUARTER, FULL) if of_arm(outcomes, label)]
    rule = (
        "of the two slopes that which loses fewer nats, against rounding to nearest on the same steps: at equal bytes "
        "ahead in score or in nats, by more than twice the spread of the difference, and behind in neither; does not "
        "hold: the reverse; mixed: otherwise"
    )
    tried = {label: against("", outcomes, label, [NEAREST]) for label in arms}
    nats = {label: part["figures"][NEAREST]["nats"] for label, part in tried.items() if part["figures"]}
    if len(nats) < 2:
        return part_of("rounding for rate and distortion", rule, "not tested")
    best = min(nats, key=lambda label: nats[label])
    text = "; ".join(f"{label}: {part['summary']}" for label, part in tried.items())
    return part_of(
        "rounding for rate and distortion", rule, tried[best]["verdict"], f"{text}; chosen: {best}",
        chosen=best, **{label: part["figures"] for label, part in tried.items()},
    )  # fmt: skip


def exact(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): what was coded is decoded."""
    rule = "the bytes of every matrix at every point decode to the very same integers and scales"
    passed = [one["exact"] == one["matrices"] for one in outcomes]
    total = sum(one["matrices"] for one in outcomes)
    text = f"{sum(one['exact'] for one in outcomes)} of {total} matrices"
    return part_of("the bitstream is exact", rule, share_passed(passed), text if passed else "")


def smaller(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): fewer bytes than other lossless codes of the same integers."""
    rule = (
        "at every setting a network's matrices take fewer bytes, their scales included, than their integers alone by "
        "Huffman's code (its table not counted), by zlib at level 9 and by zstd at level 19; mixed: than some"
    )
    passed, figures, texts = [], {}, []
    for level, (one, *_) in sorted(of_arm(outcomes, NEAREST).items(), reverse=True):
        ours, totals = sum(one["packed"].values()), dict[str, int]()
        for sizes in one["others"].values():
            for name, size in sizes.items():
                totals[name] = totals.get(name, 0) + size
        passed += [ours < total for total in totals.values()]
        figures[f"{level:g}"] = {"ours": ours, **totals}
        texts.append(
            f"{level:g} bits: " + ", ".join(f"{ours / total - 1:+.1%} {name}" for name, total in totals.items())
        )
    return part_of("smaller than other codes", rule, share_passed(passed), "; ".join(texts), **figures)


def weighted(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): steps that follow sensitivity against one step a matrix."""
    return against("steps that follow sensitivity, against equal steps", outcomes, NEAREST, [EQUAL])


CLAIM = Claim(
    slug="deepcabac",
    claim=(
        "Quantizing weights for rate and weighted distortion under an adaptive binary arithmetic coder gives smaller "
        "files at equal quality than uniform rounding, from a bitstream that decodes exactly and takes less than "
        "Huffman's code or zlib of the same integers."
    ),
    experiment=(
        "Four ways to round, seven settings each: to nearest on steps that follow sensitivity, the same for rate and "
        "distortion with the slope that theory gives at high rates or a quarter of it, and to nearest on equal steps "
        "within a matrix. The entropy coder is this library's, adaptive by rows, not the paper's binary one."
    ),
    arms=(_arm(NEAREST, 0.0), _arm(QUARTER, SLOPE / 4), _arm(FULL, SLOPE), _arm(EQUAL, 0.0, 0.0)),
    parts=lambda outcomes: [rounding(outcomes), exact(outcomes), smaller(outcomes), weighted(outcomes)],
    observe=observe,
)
