"""Sparsities of all matrices under one total: by magnitude, by LAMP, and by what each matrix loses alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.allocation.joint import choose
from isthmus.bottlenecks.coder import Floats, Setting
from isthmus.bottlenecks.curves import Candidate
from isthmus.errors import BadInput

Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.uint8]
Counts = dict[str, int]
"""Weights that go, by matrix."""
Alone = Mapping[str, Mapping[int, float]]
"""Nats by matrix and sixteenths of it that go, measured with all else as it was."""

PARTS = 16
LEAST = 1e-9
_BISECTIONS = 60


def sixteenths(size: int, part: int) -> int:
    """Return how many weights so many sixteenths of a matrix are."""
    return size * part // PARTS


def uniform(share: float, weights: Mapping[str, Floats]) -> Counts:
    """Return the same sparsity for every matrix."""
    return {name: int(share * weight.size) for name, weight in weights.items()}


def global_magnitude(share: float, weights: Mapping[str, Floats]) -> Counts:
    """Return how many of each matrix are among the smallest weights of all."""
    return _lowest(share, {name: np.abs(weight).ravel() for name, weight in weights.items()})


def lamp(share: float, weights: Mapping[str, Floats]) -> Counts:
    """Return how many of each matrix are lowest by LAMP (Lee et al. 2021).

    A weight's score is its square over the sum of the squares in its matrix that are no smaller.
    """
    scores: dict[str, npt.NDArray[np.floating]] = {}
    for name, weight in weights.items():
        squares = np.sort(weight.astype(np.float64).ravel() ** 2)
        scores[name] = squares / np.maximum(np.cumsum(squares[::-1])[::-1], 1e-300)
    return _lowest(share, scores)


def _lowest(share: float, scores: Mapping[str, npt.NDArray[np.floating]]) -> Counts:
    every = np.concatenate(list(scores.values()))
    count = int(share * every.size)
    lowest = np.argpartition(every, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    ends = np.cumsum([0, *(len(own) for own in scores.values())])
    found = np.histogram(lowest, ends)[0]
    return {name: int(number) for name, number in zip(scores, found, strict=True)}


def exact(share: float, sizes: Mapping[str, int], alone: Alone) -> Counts:
    """Return the sixteenths of each matrix that lose least in the sum while at least a share of all weights goes.

    The paper's dynamic program: the least loss of the first matrices for each number of their weights that go, one
    matrix after another, over numbers of weights in units of their greatest common divisor.

    Raises
    ------
    BadInput
        If not even the highest sparsities are enough.
    """
    names = list(sizes)
    steps = {name: [sixteenths(sizes[name], part) for part in alone[name]] for name in names}
    unit = math.gcd(*(count for own in steps.values() for count in own)) or 1
    target = -(-int(share * sum(sizes.values())) // unit)
    least = np.full(target + 1, np.inf)
    least[0] = 0.0
    chosen: list[tuple[Places, Doubles]] = []
    for name in names:
        best, which = np.full(target + 1, np.inf), np.zeros(target + 1, dtype=np.uint8)
        for index, (count, nats) in enumerate(zip(steps[name], alone[name].values(), strict=True)):
            moved = np.full(target + 1, np.inf)
            units = min(count // unit, target)
            moved[units:] = least[: target + 1 - units] + nats
            # What goes beyond the target counts as the target.
            moved[target] = least[target - units :].min() + nats
            better = moved < best
            best[better], which[better] = moved[better], index
        chosen.append((which, least))
        least = best
    if not np.isfinite(least[target]):
        raise BadInput(f"a share of {share:.0%} is more than the sparsities at hand reach; measure higher ones")
    return _traced(names, steps, chosen, unit, target)


def _traced(
    names: Sequence[str],
    steps: Mapping[str, list[int]],
    chosen: Sequence[tuple[Places, Doubles]],
    unit: int,
    target: int,
) -> Counts:
    found, place = {}, target
    for name, (which, before) in zip(reversed(names), reversed(chosen), strict=True):
        index = int(which[place])
        count, units = steps[name][index], min(steps[name][index] // unit, target)
        found[name] = count
        place = target - units + int(before[target - units :].argmin()) if place == target else place - units
    return {name: found[name] for name in names}


def priced(share: float, sizes: Mapping[str, int], alone: Alone) -> Counts:
    """Return the sixteenths of each matrix that are cheapest at one price of a weight, the lowest that meets a share.

    Then steps that are not needed are taken back, those that save most first: curves have corners, where a price gives
    more than is asked.
    """
    curves = {
        name: tuple(Candidate("pruned", Setting(part), 8 * (1 - part / PARTS), nats) for part, nats in own.items())
        for name, own in alone.items()
    }
    entries = {name: float(size) for name, size in sizes.items()}
    target = int(share * sum(sizes.values()))

    def at(price: float) -> Counts:
        return {n: sixteenths(sizes[n], int(one.setting.bits)) for n, one in choose(curves, entries, price).items()}

    low, high = 1e-20, 1.0
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if sum(at(middle).values()) >= target else (middle, high)
    found = at(high)
    while True:
        spare = sum(found.values()) - target
        lost = {name: {sixteenths(sizes[name], part): nats for part, nats in alone[name].items()} for name in found}
        back = [
            (lost[name][held] - nats, name, count)
            for name, held in found.items()
            for count, nats in lost[name].items()
            if 0 < held - count <= spare and nats < lost[name][held]
        ]
        if not back:
            return found
        _, name, count = max(back)
        found[name] = count


def nats_alone(counts: Mapping[str, int], sizes: Mapping[str, int], alone: Alone) -> float:
    """Return the sum of what matrices lose one by one, between measured sparsities on straight lines of logarithms."""
    total = 0.0
    for name, count in counts.items():
        shares = [part / PARTS for part in alone[name]]
        logs = [math.log(max(nats, LEAST)) for nats in alone[name].values()]
        total += math.exp(float(np.interp(count / sizes[name], shares, logs))) if count else 0.0
    return total
