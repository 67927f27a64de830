"""ZeroQuant(4+2) (Wu et al. 2023): six-bit floating point instead of four-bit integers, stored as four bits and two.

14 points of about half a minute on one core: seven minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from claims.coding import GROUPS, Arm, Claim, Point, Workbench, grid, nearest_arm
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.bits.floating import Fp6, pack_4plus2, unpack_4plus2
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.coder import Setting
from isthmus.storage.coded import Codebook, Coded

SIZES = (1536.0, 128.0, 64.0, 32.0)
FP6, NEAREST, GPTQ, INTEGERS = "fp6", "int4 rtn", "int4 gptq", "rtn"
COUNTS = (127.0, 63.0, 47.0, 31.0, 23.0)


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return how many matrices of six-bit codes come back from four bits and two, and the bytes of these."""
    if arm.label != FP6:
        return {}
    exact, sizes, weights = 0, 0, 0
    for code in codes.values():
        assert isinstance(code, Codebook)
        six = code.indices.astype(np.uint8)
        data = pack_4plus2(six)
        exact += np.array_equal(unpack_4plus2(data, six.size), six.ravel())
        sizes, weights = sizes + len(data), weights + six.size
    return {"exact": exact, "matrices": len(codes), "packed_4plus2": sizes, "weights": weights}


def less_lost(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): fewer nats than four-bit integers, however fine their groups."""
    rule = (
        "six-bit floating point with a scale for each row loses fewer nats than four-bit integers, rounded to nearest "
        "or by GPTQ, with whole rows (groups of 1536) and groups of 128, 64 and 32; mixed: than some"
    )
    name, ours = "against four-bit integers", of_arm(outcomes, FP6).get(6.0)
    if ours is None:
        return part_of(name, rule, UNTESTED)
    passed, texts = [], []
    for label in (NEAREST, GPTQ):
        for one, *_ in of_arm(outcomes, label).values():
            passed.append(ours[0]["nats"] < one["nats"])
            texts.append(
                f"`{label}` {one['setting']} {one['nats']:.2g} nats, {one['relative']:.2%}, {one['bits']:.2f} bits"
            )
    text = (
        f"`fp6` {ours[0]['nats']:.2g} nats, {ours[0]['relative']:.2%}, {ours[0]['bits']:.2f} bits; {'; '.join(texts)}"
    )
    return part_of(name, rule, share_passed(passed), text)


def packing(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): four bits and two come back, and take 6/16 of float16."""
    rule = (
        "for every matrix the codes come back from four bits and two as they were, and these take 6/16 of the bytes of "
        "float16 (scales come on top); mixed: one of the two"
    )
    runs = of_arm(outcomes, FP6).get(6.0, [])
    passed = [
        check
        for run in runs
        for check in (run["exact"] == run["matrices"], 16 * run["packed_4plus2"] == 12 * run["weights"])
    ]
    text = ""
    if runs:
        half = 2 * runs[0]["weights"]
        share, coded = runs[0]["packed_4plus2"] / half, sum(runs[0]["packed"].values()) / half
        text = f"{runs[0]['exact']} of {runs[0]['matrices']} exact, {share:.3%} of float16"
        text += f"; entropy coded instead, with scales, {coded:.1%}"
    return part_of("four bits and two", rule, share_passed(passed), text)


def at_equal(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): against integers of as many bytes."""
    return against("against integers of as many bytes", outcomes, FP6, [INTEGERS])


CLAIM = Claim(
    slug="zeroquant-4plus2",
    claim=(
        "Six-bit floating-point weights with one scale for each row lose less than four-bit integers in fine groups, "
        "by rounding to nearest or GPTQ; split in four bits and two they pack exactly into 6/16 of float16."
    ),
    experiment=(
        "The same statistics for all; groups share their scales, which count. That six bits lose less than four is "
        "held against integers of as many bytes as well, which the paper does not do. The speed of unpacking is not "
        "tested."
    ),
    arms=(
        Arm(FP6, (6.0,), lambda bits: (Fp6(), Setting(bits))),
        Arm(NEAREST, SIZES, lambda group: (FineQuant(), grid(15, int(group))), GROUPS),
        Arm(GPTQ, SIZES, lambda group: (Gptq(), grid(15, int(group))), GROUPS),
        nearest_arm(COUNTS, INTEGERS),
    ),
    parts=lambda outcomes: [less_lost(outcomes), packing(outcomes), at_equal(outcomes)],
    observe=observe,
)
