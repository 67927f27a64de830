"""The inner problem: with the outer sites set, one setting a site and the layers that stay, as a mixed-integer program.

Variables are ``y_l`` (layer l stays) and one-hot ``x[s, k]`` (site s takes its setting k), with
``sum_k x[s, k] = y_l`` for a site of layer l and 1 for any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.allocation.linear import Linear
from isthmus.allocation.problem import Floats, Menu

# Rows are multiplied so that the solver's absolute tolerance of 1e-7 is a relative one of 1e-9 of a limit.
ROW_SCALE = 1e2
# Distortion is brought to this total, which keeps differences well above the solver's tolerances.
OBJECTIVE_SCALE = 1e4
# Answers are exact to this share of the distortion; a smaller one takes several times as long on 24 layers.
RELATIVE_GAP = 1e-4
# A guard that depends on no clock, so that the same problem has the same answer on any machine.
MOST_NODES = 50_000


@dataclass(frozen=True)
class Program:
    """What is the same for every outer combination.

    ``objective`` (n,) is scaled by ``scale``; ``base`` is the objective's constant; ``spans`` gives each inner site's
    columns; ``equal`` (rows, n) and ``right`` (rows,) are the one-hot rows; ``low`` (n,) bounds from below.
    """

    objective: Floats
    scale: float
    base: float
    spans: tuple[slice, ...]
    equal: Any
    right: Floats
    low: Floats


@dataclass(frozen=True)
class Relaxed:
    """The linear relaxation: a lower bound in nats, and the limits' prices (nats per limit's worth)."""

    bound: float
    prices: Floats


def program_of(menu: Menu, inner: tuple[str, ...]) -> Program:
    """Write down the part of the program that does not depend on the outer settings."""
    from scipy.sparse import lil_matrix

    layers = len(menu.removal)
    spans: list[slice] = []
    at = layers
    for name in inner:
        size = len(menu.choices[name].settings)
        spans.append(slice(at, at + size))
        at += size
    objective, right = np.zeros(at), np.zeros(len(inner))
    equal = lil_matrix((len(inner), at))
    objective[:layers] = -menu.removal
    for row, (name, span) in enumerate(zip(inner, spans, strict=True)):
        choice = menu.choices[name]
        objective[span] = choice.lost[choice.settings]
        equal[row, span] = 1.0
        layer = menu.layer_of(name)
        if layer is None:
            right[row] = 1.0
        else:
            equal[row, layer] = -1.0
    low = np.zeros(at)
    if menu.layers is not None:
        low[list(menu.layers.fixed)] = 1.0
    base = float(menu.removal.sum())
    largest = base + sum(float(menu.choices[name].lost[menu.choices[name].least]) for name in inner)
    scale = OBJECTIVE_SCALE / largest if largest > 0 else 1.0
    return Program(objective * scale, scale, base, tuple(spans), equal.tocsr(), right, low)


def relax(program: Program, linear: Linear, menu: Menu, row: int) -> Relaxed | None:
    """Solve the linear relaxation of one outer combination; None where even that keeps no limits."""
    from scipy.optimize import linprog

    matrix, limit = _limits(program, linear, menu, row)
    matrix, limit = _with_minimum(matrix, limit, menu)
    if not len(program.objective):
        kept = Relaxed(float(linear.lost[row]) + program.base, np.zeros(linear.constant.shape[1]))
        return kept if (limit >= 0).all() else None
    result = linprog(
        program.objective,
        A_ub=matrix,
        b_ub=limit,
        A_eq=program.equal,
        b_eq=program.right,
        bounds=np.stack([program.low, np.ones_like(program.low)], axis=1),
        method="highs",
    )
    if result.status == 2:
        return None
    if result.status != 0:
        raise RuntimeError(f"the linear program of the allocation ended with: {result.message}")
    currencies = linear.constant.shape[1]
    prices = np.maximum(0.0, -np.asarray(result.ineqlin.marginals)[:currencies]) * ROW_SCALE / program.scale
    return Relaxed(float(linear.lost[row]) + program.base + float(result.fun) / program.scale, prices)


def solve(
    program: Program, linear: Linear, menu: Menu, row: int, margin: Floats
) -> tuple[dict[str, int], tuple[bool, ...]] | None:
    """Solve one outer combination; None where nothing keeps its limits.

    Parameters
    ----------
    margin : ndarray, shape ``(C,)``
        Share of each limit that is left unspent.

    Returns
    -------
    tuple of (dict of str to int, tuple of bool), or None
        The kept units of the inner sites, and which layers stay.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    matrix, limit = _limits(program, linear, menu, row)
    limit -= margin * ROW_SCALE
    matrix, limit = _with_minimum(matrix, limit, menu)
    if not len(program.objective):
        return ({}, ()) if (limit >= 0).all() else None
    constraints = [LinearConstraint(matrix, -np.inf, limit)]
    if len(program.right):
        constraints.append(LinearConstraint(program.equal, program.right, program.right))
    result = milp(
        program.objective,
        integrality=np.ones_like(program.objective),
        bounds=Bounds(program.low, np.ones_like(program.low)),
        constraints=constraints,
        options={"mip_rel_gap": RELATIVE_GAP, "node_limit": MOST_NODES},
    )
    if result.x is None:
        if result.status == 2:
            return None
        raise RuntimeError(f"the integer program of the allocation ended with: {result.message}")
    counts = {
        name: int(menu.choices[name].settings[int(np.argmax(result.x[span]))])
        for name, span in zip(linear.inner, program.spans, strict=True)
    }
    return counts, tuple(bool(value > 0.5) for value in result.x[: len(menu.removal)])


def _limits(program: Program, linear: Linear, menu: Menu, row: int) -> tuple[Floats, Floats]:
    currencies = linear.constant.shape[1]
    matrix = np.zeros((currencies, len(program.objective)))
    matrix[:, : len(menu.removal)] = linear.present[row]
    for column, (name, span) in enumerate(zip(linear.inner, program.spans, strict=True)):
        matrix[:, span] = linear.slope[row, :, column, None] * menu.choices[name].settings
    return matrix * ROW_SCALE, (1.0 - linear.constant[row]) * ROW_SCALE


def _with_minimum(matrix: Floats, limit: Floats, menu: Menu) -> tuple[Floats, Floats]:
    """Add the row that keeps the fewest layers allowed."""
    if menu.layers is None:
        return matrix, limit
    staying = np.zeros((1, matrix.shape[1]))
    staying[0, : len(menu.removal)] = -1.0
    return np.concatenate([matrix, staying]), np.append(limit, -float(menu.layers.minimum))
