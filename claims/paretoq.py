"""ParetoQ (Liu et al. 2025): one way to train codes of 4 to 1 bits, with the quantizer that suits each width.

21 points of 150 steps, each about six minutes on one core: two hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from claims import coding
from claims.coding import SEEDS, Arm, Claim, Workbench
from claims.common import STEPS, Outcome, Say
from claims.equal_bytes import ahead, combined, compare, in_words, of_arm, part_of, share_passed
from claims.trained import QUICK, Lsq, Trainer
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.paretoq import ParetoQ
from isthmus.bottlenecks.coder import Setting

WIDTHS = (4.0, 3.0, 2.0, 1.58, 1.0)
FEW, SHARED_AT = 2.0, (2.0, 1.58)
OURS, SHARED, ENDS = "paretoq", "lsq", "1 and 4 bits"
LARGER = 1.5
_COUNTS = {4.0: 16, 3.0: 8, 2.0: 4, 1.58: 3, 1.0: 2}


def every_width(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): the same training serves all five widths."""
    rule = (
        "at each of the five widths and in every seed, what is trained loses fewer nats than the codes it began with, "
        "and no matrix has more levels than the width; mixed: at some widths"
    )
    found = of_arm(outcomes, OURS)
    passed = [
        all(run["nats"] < run["before"] and run["levels"] <= _COUNTS[bits] for run in runs)
        for bits, runs in found.items()
    ]
    texts = [
        f"{bits:g} bits {_mean(runs, 'before'):.3g} to {_mean(runs, 'nats'):.3g} nats" for bits, runs in found.items()
    ]
    return part_of("one way for all widths", rule, share_passed(passed), "; ".join(texts))


def drift(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): weights move further at two bits and below."""
    rule = (
        "the mean magnitude of what weights moved by, over that of the weights, is at each of 2, 1.58 and 1 bits at "
        f"least {LARGER:g} times what it is at 3 or 4 bits; mixed: larger at each, by less; at one learning rate"
    )
    moved = {bits: _mean(runs, "moved") for bits, runs in of_arm(outcomes, OURS).items()}
    few = [value for bits, value in moved.items() if bits <= FEW]
    many = [value for bits, value in moved.items() if bits > FEW]
    verdict = UNTESTED
    if few and many:
        ratio = min(few) / max(many)
        verdict = HOLDS if ratio >= LARGER else MIXED if ratio > 1 else FAILS
    text = ", ".join(f"{value:.1%} at {bits:g} bits" for bits, value in moved.items())
    return part_of("how far weights move", rule, verdict, text, moved={f"{bits:g}": at for bits, at in moved.items()})


def own_form(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): each width's own quantizer against one shared form, at equal bytes."""
    rule = (
        "at 2 and at 1.58 bits, the curve of the own quantizers is at the bytes of plain LSQ rounding ahead of it in "
        "score or in nats, by more than twice the spread, and behind in neither; does not hold: behind at both; "
        "mixed: otherwise"
    )
    verdicts, texts, figures = [], [], {}
    for bits in SHARED_AT:
        theirs = [one for one in outcomes if one["arm"] == SHARED and one["level"] == bits]
        found = compare([*_ours(outcomes), *theirs], OURS, SHARED)
        verdicts.append(UNTESTED if found is None else ahead(found))
        if found is not None:
            texts.append(f"{bits:g} bits {in_words(found)}")
            figures[f"{bits:g}"] = found
    return part_of("own quantizers against one form", rule, combined(verdicts), "; ".join(texts), **figures)


def trade_off(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): quality against bytes; the widths between are better than a mixture of the ends."""
    rule = (
        "at the bytes of 3, 2 and 1.58 bits, each is ahead of the straight line from 1 bit to 4 bits in score or in "
        "nats (a network in part of the one, in part of the other), by more than twice the spread, and behind in "
        "neither; mixed: some are"
    )
    ours = _ours(outcomes)
    ends = [{**one, "arm": ENDS} for one in ours if one["level"] in (WIDTHS[0], WIDTHS[-1])]
    passed, texts, figures = [], [], {}
    for bits in WIDTHS[1:-1]:
        found = compare([*(one for one in ours if one["level"] == bits), *ends], OURS, ENDS)
        if found is not None and len({one["level"] for one in ends}) == 2:
            passed.append(ahead(found) == HOLDS)
            texts.append(f"{bits:g} bits {in_words(found)}")
            figures[f"{bits:g}"] = found
    best = ", ".join(f"{bits:g}" for bits in pareto(ours))
    text = "; ".join([*texts, f"no other width is smaller and better than {best} bits"]) if texts else ""
    return part_of("quality against bytes", rule, share_passed(passed), text, **figures)


def pareto(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the levels of an arm that no other beats with fewer bytes and a better score, means over seeds."""
    at: dict[float, list[Outcome]] = {}
    for one in outcomes:
        at.setdefault(one["level"], []).append(one)
    means = {level: (_mean(runs, "bytes"), -_mean(runs, "relative")) for level, runs in at.items()}
    return [
        level
        for level, own in means.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in means.values())
    ]


def _ours(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one["arm"] == OURS]


def _mean(runs: Sequence[Outcome], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


CLAIM = Claim(
    slug="paretoq",
    claim=(
        "One way of training serves 4, 3, 2, 1.58 and 1 bits; between 3 and 2 bits weights begin to move far from "
        "where they were; the quantizer that suits a width is better than one form for all at 2 bits and below; "
        "1.58, 2 and 3 bits are a better use of bytes than 4 bits and 1."
    ),
    experiment=(
        "Scales, one a row, start at the least squared error and are trained by the gradients of LSQ, also with one "
        "form for every width (`lsq`). One network: what larger networks of fewer bits do is not tested."
    ),
    arms=(
        Arm(OURS, WIDTHS, lambda bits: (ParetoQ(fit=True), Setting(bits)), draws=True),
        Arm(SHARED, SHARED_AT, lambda bits: (Lsq(), Setting(bits)), draws=True),
    ),
    parts=lambda outcomes: [every_width(outcomes), drift(outcomes), own_form(outcomes), trade_off(outcomes)],
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Train and measure the points that ``out`` lacks, and return the verdict; nothing is kept in ``cache``."""
    return coding.run(CLAIM, Trainer(bench, steps=QUICK if quick else STEPS), out, seeds=seeds, quick=quick, say=say)
