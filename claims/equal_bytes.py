"""Two methods at equal bytes: curves through their points, the difference between these and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from claims.common import Outcome
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.tasks.metrics import spearman

Doubles = npt.NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
Value = Callable[[Outcome], float]
DRAWS = 50
"""Bootstraps of the scored pairs, the same for all points, so that differences between points are paired."""
LEAST_NATS = 1e-9
RULE = (
    "at equal bytes it is ahead of each in score or in nats, by more than twice the spread of the difference, and "
    "behind in neither; does not hold: behind each likewise; mixed: otherwise"
)


def resampled(cosines: Doubles, original: Doubles, scores: Doubles, draws: int = DRAWS) -> list[float]:
    """Return the relative score of so many bootstraps of the pairs; the same pairs are drawn for every network.

    Parameters
    ----------
    cosines, original, scores : ndarray, shape ``(pairs,)``
    """
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = rng.integers(len(scores), size=len(scores))
        own, theirs = (spearman(values[drawn], scores[drawn]) for values in (cosines, original))
        found.append(round(own / theirs, 6) if theirs else 0.0)
    return found


@dataclass(frozen=True)
class Gap:
    """The mean of curve a less curve b over the bytes from ``low`` to ``high`` that both reach."""

    low: float
    high: float
    mean: float


def at_equal_bytes(curve_a: Curve, curve_b: Curve) -> Gap | None:
    """Compare two curves where both are, None if nowhere.

    Parameters
    ----------
    curve_a, curve_b : sequence of (bytes, value)
        In any order; straight lines are drawn between neighbours. One point is a curve as well.
    """
    (x_a, y_a), (x_b, y_b) = (np.array(sorted(curve), dtype=np.float64).T for curve in (curve_a, curve_b))
    low, high = max(x_a[0], x_b[0]), min(x_a[-1], x_b[-1])
    if low > high:
        return None
    places = np.unique([low, high, *(x for x in (*x_a, *x_b) if low < x < high)])
    gaps = np.interp(places, x_a, y_a) - np.interp(places, x_b, y_b)
    mean = float(gaps[0]) if low == high else float(np.trapezoid(gaps, places) / (high - low))
    return Gap(float(low), float(high), mean)


def of_arm(outcomes: Sequence[Outcome], label: str) -> dict[float, list[Outcome]]:
    """Return the outcomes of an arm by level, seeds side by side."""
    found: dict[float, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome["arm"] == label:
            found.setdefault(float(outcome["level"]), []).append(outcome)
    return found


def curve_of(arm: Mapping[float, Sequence[Outcome]], value: Value) -> list[tuple[float, float]]:
    """Return bytes and a value at each level, means over seeds."""
    return [
        (float(np.mean([one["bytes"] for one in runs])), float(np.mean([value(one) for one in runs])))
        for runs in arm.values()
    ]


def compare(outcomes: Sequence[Outcome], ours: str, theirs: str) -> dict[str, Any] | None:
    """Return how an arm's score and nats differ from another's at equal bytes; None if they share no bytes.

    Returns
    -------
    dict
        ``gap`` and ``spread`` of relative scores; ``nats`` (the logarithm of ours over theirs) and ``nats_spread``;
        ``bytes`` (low and high).
    """
    a, b = of_arm(outcomes, ours), of_arm(outcomes, theirs)

    def gap(value: Value) -> Gap | None:
        return at_equal_bytes(curve_of(a, value), curve_of(b, value)) if a and b else None

    mean = gap(relative)
    if mean is None:
        return None
    groups = min(len(one["nats_by_group"]) for runs in (*a.values(), *b.values()) for one in runs)
    drawn = [gap(lambda one, n=n: one["resamples"][n]) for n in range(DRAWS)]  # type: ignore[misc]
    apart = [gap(lambda one, n=n: log_nats(one["nats_by_group"][n])) for n in range(groups)]  # type: ignore[misc]
    gaps, logs = ([one.mean for one in found if one is not None] for found in (drawn, apart))
    of_groups = float(np.std(logs, ddof=1)) / math.sqrt(groups) if groups > 1 else 0.0
    return {
        "gap": mean.mean,
        "spread": math.hypot(float(np.std(gaps, ddof=1)), seed_noise(a, relative), seed_noise(b, relative)),
        "nats": float(np.mean(logs)),
        "nats_spread": math.hypot(of_groups, seed_noise(a, own_nats), seed_noise(b, own_nats)),
        "bytes": [mean.low, mean.high],
    }


def relative(outcome: Outcome) -> float:
    """Return an outcome's relative score."""
    return float(outcome["relative"])


def own_nats(outcome: Outcome) -> float:
    """Return the logarithm of an outcome's nats."""
    return log_nats(outcome["nats"])


def log_nats(nats: float) -> float:
    """Return the logarithm of nats, of very few that of a floor."""
    return math.log(max(nats, LEAST_NATS))


def seed_noise(arm: Mapping[float, Sequence[Outcome]], value: Value) -> float:
    """Return the standard error of a value over seeds, in the root mean square over levels."""
    errors = [np.var([value(one) for one in runs], ddof=1) / len(runs) for runs in arm.values() if len(runs) > 1]
    return math.sqrt(np.mean(errors)) if errors else 0.0


def ahead(found: Mapping[str, Any]) -> str:
    """Return the verdict of one comparison, see `RULE`."""
    signs = (found["gap"] / 2 / (found["spread"] or 1e-12), -found["nats"] / 2 / (found["nats_spread"] or 1e-12))
    if max(signs) > 1 and min(signs) >= -1:
        return HOLDS
    return FAILS if min(signs) < -1 and max(signs) <= 1 else MIXED


def part_of(name: str, rule: str, verdict: str, summary: str = "", **figures: Any) -> Part:
    """Return a part of a claim."""
    return {"name": name, "rule": rule, "verdict": verdict, "summary": summary, "figures": figures}


def share_passed(passed: Sequence[bool]) -> str:
    """Return ``holds`` if all passed, ``does not hold`` if none did, ``not tested`` if there were none."""
    return (HOLDS if all(passed) else MIXED if any(passed) else FAILS) if passed else UNTESTED


def combined(verdicts: Sequence[str]) -> str:
    """Return the verdict of several comparisons: that of all if they agree, untested if one is, else mixed."""
    if not verdicts or UNTESTED in verdicts:
        return UNTESTED
    return verdicts[0] if len(set(verdicts)) == 1 else MIXED


def against(name: str, outcomes: Sequence[Outcome], ours: str, others: Sequence[str], rule: str = RULE) -> Part:
    """Decide whether an arm is ahead of others at equal bytes, see `RULE`."""
    verdicts, texts, figures = [], [], {}
    for other in others:
        found = compare(outcomes, ours, other)
        if found is None:
            verdicts.append(UNTESTED)
            continue
        verdicts.append(ahead(found))
        low, high = (f"{size / 1e6:.1f}" for size in found["bytes"])
        nats, factor = math.exp(found["nats"]), math.exp(found["nats_spread"])
        texts.append(
            f"against `{other}` at {low if low == high else f'{low} to {high}'} MB {100 * found['gap']:+.2f} ± "
            f"{100 * found['spread']:.2f} points, {nats:.2f} times the nats (within a factor of {factor:.2f})"
        )
        figures[other] = found
    return part_of(name, rule, combined(verdicts), "; ".join(texts), **figures)


def in_words(found: Mapping[str, Any]) -> str:
    """Return a comparison in words."""
    return (
        f"{100 * found['gap']:+.2f} ± {100 * found['spread']:.2f} points, {math.exp(found['nats']):.2f} times the nats "
        f"(within a factor of {math.exp(found['nats_spread']):.2f})"
    )
