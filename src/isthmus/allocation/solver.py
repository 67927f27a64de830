"""Allocation: one budget spent over all sites at once, so that the least is lost."""

from __future__ import annotations

import heapq

import numpy as np

from isthmus.allocation.fill import spend
from isthmus.allocation.inner import RELATIVE_GAP, Program, program_of, relax, solve
from isthmus.allocation.linear import (
    Linear,
    combinations,
    count_combinations,
    linearise,
    lower_bound,
    outer_sites,
)
from isthmus.allocation.priced import priced_selection
from isthmus.allocation.problem import (
    SLACK,
    Allocation,
    Menu,
    Problem,
    Selection,
    allocation_of,
    distortion_of,
    menu_of,
    rates_of,
)
from isthmus.allocation.reach import refusal

MOST_COMBINATIONS = 2048
"""Beyond so many, networks whose layers all stay are allocated by prices. Encoders of text have at most 1,024; networks
of convolutions from 8,000 (a ResNet of CIFAR-10) to far more than can be listed."""


def allocate(problem: Problem) -> Allocation:
    """Choose for every site which units stay, so that all limits hold and the distortion is least.

    The settings of the outer sites (`isthmus.allocation.linear`) are enumerated best bound first; for each, the other
    sites and the layers are a mixed-integer program. Where sites have more settings than are tried in one pass, a
    second pass looks more closely around the first answer. What is left is spent unit by unit.

    Where nearly everything multiplies with something else, as in networks of convolutions, there are too many outer
    combinations; prices then find an answer that is not proved to be the best (`isthmus.allocation.priced`).

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    Allocation

    Raises
    ------
    UnreachableBudget
        If not even the smallest settings keep the limits; the message names the nearest that can be kept.
    """
    menu = menu_of(problem)
    if not enumerable(problem, menu):
        selection = priced_selection(problem, menu)
        if selection is None:
            raise refusal(problem, menu)
        return allocation_of(problem, menu, selection)
    selection = best_selection(problem, menu)
    if selection is None:
        raise refusal(problem, menu)
    if any(len(choice.settings) <= choice.site.units - choice.least for choice in menu.choices.values()):
        selection = best_selection(problem, menu_of(problem, around=selection), known=selection) or selection
    return allocation_of(problem, menu, spend(problem, menu, selection))


def enumerable(problem: Problem, menu: Menu) -> bool:
    """Return whether the outer combinations are few enough to be enumerated, or layers may go, which asks for that."""
    return menu.layers is not None or count_combinations(menu, outer_sites(problem, menu)) <= MOST_COMBINATIONS


def best_selection(problem: Problem, menu: Menu, known: Selection | None = None) -> Selection | None:
    """Return the selection of least distortion among a menu's settings.

    Outer combinations wait in a queue by the best lower bound known of them: first what their own settings lose, then
    the Lagrange bound at the prices that any solved relaxation gave, then their own relaxation. The first in the
    queue is looked at more closely; the search ends when it cannot beat what was found.

    Parameters
    ----------
    known : Selection, optional
        An answer to beat.

    Returns
    -------
    Selection or None
        None where no combination of settings keeps the limits.
    """
    outer = outer_sites(problem, menu)
    linear = linearise(problem, menu, outer, combinations(menu, outer))
    program = program_of(menu, linear.inner)
    bounds = linear.lost.copy()
    for price in np.eye(len(problem.limits)):
        bounds[lower_bound(linear, menu, price, weight=0.0) > 1e-9] = np.inf
    relaxed = np.zeros(len(bounds), dtype=bool)
    best = known
    # The order is by bound, then by combination, so that the same problem is always searched in the same way.
    queue = [(float(bounds[row]), row) for row in np.argsort(bounds, kind="stable").tolist() if bounds[row] < np.inf]
    heapq.heapify(queue)
    while queue:
        bound, row = heapq.heappop(queue)
        if best is not None and bound >= best.distortion * (1 - RELATIVE_GAP):
            break
        if bound < bounds[row]:
            heapq.heappush(queue, (float(bounds[row]), row))
        elif not relaxed[row]:
            relaxed[row] = True
            closer = relax(program, linear, menu, row)
            if closer is None:
                continue
            bounds[row] = max(bounds[row], closer.bound)
            np.maximum(bounds, lower_bound(linear, menu, closer.prices), out=bounds)
            heapq.heappush(queue, (float(bounds[row]), row))
        else:
            found = _solve(problem, menu, program, linear, row)
            if found is not None and (best is None or found.distortion < best.distortion):
                best = found
    return best


def _solve(problem: Problem, menu: Menu, program: Program, linear: Linear, row: int) -> Selection | None:
    """Solve one outer combination, and see to it that the limits hold exactly and not to a tolerance only."""
    own = {name: int(count) for name, count in zip(linear.outer, linear.counts[row], strict=True)}
    limits = np.array(list(problem.limits.values()))
    margin = np.zeros(len(limits))
    for _ in range(5):
        answer = solve(program, linear, menu, row, margin)
        if answer is None:
            return None
        counts, present = {**own, **answer[0]}, answer[1]
        selection = Selection(counts, present, distortion_of(menu, counts, present))
        rates = rates_of(problem, menu, selection)
        over = np.array([rates[currency] for currency in problem.limits]) / limits - 1
        if (over <= SLACK).all():
            return selection
        margin = margin + np.maximum(0.0, 4 * over)
    return None
