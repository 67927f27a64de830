"""COMQ (Zhang et al. 2024): coordinate descent on the error of each layer's outputs, without gradients.

23 points of half a minute to a minute on one core: a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from claims.coding import LEVELS, Arm, Claim, Point, Workbench, fitted_arm, grid, nearest_arm
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.comq import Comq
from isthmus.storage.coded import Coded

COUNTS = (15.0, 11.0, 7.0, 5.0, 3.0)
ORDERED = (15.0, 7.0)
SWEEPS = (1, 2, 3, 4)
ROUNDING = 1e-5
"""A share by which an error may rise: products in float32 are no finer."""


def _label(sweeps: int) -> str:
    return "comq" if sweeps == Comq.sweeps else f"comq, {sweeps} sweep{'s' * (sweeps > 1)}"


def _sweeps(number: int) -> Arm:
    return Arm(_label(number), ORDERED, lambda n: (Comq(sweeps=number), grid(n, 0)), LEVELS)


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the error of each linear map's outputs, as a share of their mean square."""
    return {"reconstruction": bench.reconstruction(codes)}


def _errors(outcomes: Sequence[Outcome], label: str) -> dict[float, dict[str, float]]:
    return {level: runs[0]["reconstruction"] for level, runs in of_arm(outcomes, label).items()}


def _beaten(ours: Mapping[str, float], theirs: Mapping[str, float]) -> int:
    return sum(ours[name] < theirs[name] for name in ours)


def reconstruction(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): every matrix's outputs are nearer to the original's than with rounding to nearest."""
    rule = (
        "the error of outputs is lower than by rounding to nearest, with scales that reach the largest weight and with "
        "fitted ones, on every matrix at every number of levels; mixed: on more than half"
    )
    ours, better, total, texts = _errors(outcomes, "comq"), 0, 0, []
    for other in ("rtn", "rtn, fitted"):
        theirs = _errors(outcomes, other)
        for level in sorted(ours.keys() & theirs.keys(), reverse=True):
            won = _beaten(ours[level], theirs[level])
            better, total = better + won, total + len(ours[level])
            texts.append(f"{level:g} levels against `{other}`: {won} of {len(ours[level])}")
    return part_of("error of outputs", rule, all_or_most(better, total), "; ".join(texts), better=better, of=total)


def order(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): the greedy order leaves less error than the cyclic one on most matrices."""
    rule = "the greedy order leaves a lower error of outputs than the cyclic one on more than half of the matrices"
    greedy, cyclic = _errors(outcomes, "comq"), _errors(outcomes, "cyclic")
    shared = sorted(greedy.keys() & cyclic.keys(), reverse=True)
    won = {level: _beaten(greedy[level], cyclic[level]) for level in shared}
    passed = [2 * won[level] > len(greedy[level]) for level in shared]
    text = "; ".join(f"{level:g} levels: {won[level]} of {len(greedy[level])}" for level in shared)
    return part_of("greedy before cyclic", rule, share_passed(passed), text)


def sweeps(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): no sweep raises the error."""
    rule = (
        f"from each of {len(SWEEPS)} sweeps to the next the error of outputs rises on no matrix (by more than "
        f"{ROUNDING:g} of itself); mixed: on less than half"
    )
    kept = total = 0
    drops = []
    for before, after in pairwise(SWEEPS):
        first, second = _errors(outcomes, _label(before)), _errors(outcomes, _label(after))
        for level in sorted(first.keys() & second.keys(), reverse=True):
            early, late = ([errors[level][name] for name in first[level]] for errors in (first, second))
            kept += sum(b <= a * (1 + ROUNDING) for a, b in zip(early, late, strict=True))
            total += len(early)
            drops.append(f"{before} to {after} at {level:g} levels {sum(late) / sum(early) - 1:+.2%}")
    text = f"{total - kept} of {total} rise; in the sum: {', '.join(drops)}" if total else ""
    return part_of("sweeps", rule, all_or_most(kept, total), text, rises=total - kept, of=total)


def all_or_most(passed: int, total: int) -> str:
    """Return ``holds`` if all passed, ``mixed`` if more than half did."""
    if not total:
        return UNTESTED
    return HOLDS if passed == total else MIXED if 2 * passed > total else FAILS


def score(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): the score at equal bytes."""
    return against("score at equal bytes", outcomes, "comq", ["rtn", "rtn, fitted"])


CLAIM = Claim(
    slug="comq",
    claim=(
        "Coordinate descent on the error of a layer's outputs, over integers and scales and by dot products and "
        "rounding alone, leaves a lower error than rounding to nearest on every layer and scores higher; no sweep "
        "raises the error, and the greedy order beats the cyclic one on most layers."
    ),
    experiment=(
        "Symmetric grids of 15 to 3 levels, a scale for each row. The baselines are rounding to nearest with scales "
        "that reach the largest weight, and with scales of the least squared error of weights. Errors are of the "
        "linear maps' outputs; embeddings have none and are coded by refitted scales."
    ),
    arms=(
        Arm("comq", COUNTS, lambda n: (Comq(), grid(n, 0)), LEVELS),
        nearest_arm(COUNTS),
        fitted_arm(COUNTS),
        Arm("cyclic", ORDERED, lambda n: (Comq("cyclic"), grid(n, 0)), LEVELS),
        *(_sweeps(number) for number in SWEEPS if number != Comq.sweeps),
    ),
    parts=lambda outcomes: [score(outcomes), reconstruction(outcomes), sweeps(outcomes), order(outcomes)],
    observe=observe,
)
