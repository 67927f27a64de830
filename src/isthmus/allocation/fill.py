"""Spending what is left: settings are coarse, so single units come back until nothing more fits."""

from __future__ import annotations

import heapq

import numpy as np

from isthmus.allocation.linear import Linear, linearise, outer_sites
from isthmus.allocation.problem import SLACK, Floats, Menu, Problem, Selection, distortion_of


def spend(problem: Problem, menu: Menu, selection: Selection) -> Selection:
    """Give units back, those of most relevance per cost first, while every limit still holds.

    Inner sites come first; a unit of an outer site (a dimension of the residual stream) costs more than any of theirs
    and comes back only where it fits after them.

    Parameters
    ----------
    selection : Selection
        Keeps the limits.

    Returns
    -------
    Selection
        Keeps the limits and loses no more.
    """
    outer = outer_sites(problem, menu)
    counts = dict(selection.counts)
    grown: str | None = ""
    while grown is not None:
        linear = _linear(problem, menu, outer, counts)
        _spend_inner(menu, linear, counts, selection.present)
        grown = _outer_unit(problem, menu, outer, counts, selection.present)
        if grown is not None:
            counts[grown] += 1
    return Selection(counts, selection.present, distortion_of(menu, counts, selection.present))


def _linear(problem: Problem, menu: Menu, outer: tuple[str, ...], counts: dict[str, int]) -> Linear:
    return linearise(problem, menu, outer, np.array([[counts[name] for name in outer]], dtype=np.float64))


def _left(menu: Menu, linear: Linear, counts: dict[str, int], present: tuple[bool, ...]) -> Floats:
    """Return the share of each limit that is not spent, shape ``(C,)``."""
    left: Floats = 1.0 - linear.constant[0] - linear.present[0] @ np.asarray(present, dtype=np.float64)
    for column, name in enumerate(linear.inner):
        layer = menu.layer_of(name)
        if layer is None or present[layer]:
            left = left - linear.slope[0, :, column] * counts[name]
    return left


def _spend_inner(menu: Menu, linear: Linear, counts: dict[str, int], present: tuple[bool, ...]) -> None:
    left = _left(menu, linear, counts, present)
    costs: dict[str, Floats] = {}
    queue: list[tuple[float, str]] = []
    for column, name in enumerate(linear.inner):
        layer = menu.layer_of(name)
        if layer is None or present[layer]:
            costs[name] = linear.slope[0, :, column]
            _push(queue, menu, name, counts[name], costs[name])
    while queue:
        _, name = heapq.heappop(queue)
        if (costs[name] <= left + SLACK).all():
            left = left - costs[name]
            counts[name] += 1
            _push(queue, menu, name, counts[name], costs[name])


def _push(queue: list[tuple[float, str]], menu: Menu, name: str, count: int, cost: Floats) -> None:
    choice = menu.choices[name]
    if count < choice.site.units:
        heapq.heappush(queue, (-_worth(choice.lost[count] - choice.lost[count + 1], float(cost.sum())), name))


def _worth(relevance: float, cost: float) -> float:
    return relevance / cost if cost > 0 else np.inf


def _outer_unit(
    problem: Problem, menu: Menu, outer: tuple[str, ...], counts: dict[str, int], present: tuple[bool, ...]
) -> str | None:
    """Return the outer site of which one more unit fits and is worth most, or None."""
    before = _left(menu, _linear(problem, menu, outer, counts), counts, present)
    best: tuple[float, str] | None = None
    for name in outer:
        choice, count = menu.choices[name], counts[name]
        if count == choice.site.units:
            continue
        more = {**counts, name: count + 1}
        left = _left(menu, _linear(problem, menu, outer, more), more, present)
        worth = _worth(choice.lost[count] - choice.lost[count + 1], float((before - left).sum()))
        if (left >= -SLACK).all() and (best is None or worth > best[0]):
            best = (worth, name)
    return None if best is None else best[1]
