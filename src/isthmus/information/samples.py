"""Reading and checking the two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isthmus.errors import BadInput
from isthmus.information.marginals import spread_ties
from isthmus.information.result import Side

FEW = 50
"""Samples below which no interval can be trusted."""
FEWEST = 8
TIED = 0.01
"""Share of a column: fewer ties are broken without a word, float32 has them by rounding."""
REPEATED = 0.2
"""Share of samples: integers with fewer distinct values are symbols, with more they are ordered values with ties."""


def read_pair(
    x: npt.ArrayLike | torch.Tensor, y: npt.ArrayLike | torch.Tensor, rng: np.random.Generator
) -> tuple[Side, Side, tuple[str, ...]]:
    """Return both sides and what was noticed: the rules are those of `read_side`.

    Raises
    ------
    BadInput
        If the sides have unlike numbers of samples, fewer than 8, or a side cannot be read.
    """
    arrays = [_array(side, name) for side, name in ((x, "x"), (y, "y"))]
    if len(arrays[0]) != len(arrays[1]):
        raise BadInput(f"x has {len(arrays[0])} samples and y has {len(arrays[1])}; give pairs")
    if len(arrays[0]) < FEWEST:
        raise BadInput(f"{len(arrays[0])} samples; give at least {FEWEST} ({FEW} for an interval worth having)")
    left, first = read_side(arrays[0], "x", rng)
    right, second = read_side(arrays[1], "y", rng)
    notes = [*first, *second]
    if len(arrays[0]) < FEW:
        notes.append(f"only {len(arrays[0])} samples: read the interval, not the value")
    together = np.unique(np.hstack(arrays).astype(np.float64), axis=0)
    if len(together) < len(arrays[0]) and "discrete" not in (left.kind, right.kind):
        notes.append(f"{len(arrays[0]) - len(together)} samples are duplicates: they are not independent draws")
    return left, right, tuple(notes)


def read_side(values: npt.NDArray[Any], name: str, rng: np.random.Generator) -> tuple[Side, list[str]]:
    """Return a side, and what was noticed.

    Integers and booleans are symbols (rows of them, whole rows) if fewer than a fifth of the samples, or two, are
    distinct; otherwise they are numbers. Constant columns are left out, equal columns kept once, ties between
    numbers broken at random.

    Parameters
    ----------
    values : ndarray, shape ``(samples, dims)``
    """
    notes: list[str] = []
    spread = values.max(0) != values.min(0)
    if not spread.all():
        notes.append(f"{name}: {int((~spread).sum())} constant columns left out")
        values = values[:, spread] if spread.any() else values[:, :1]
    if values.dtype.kind in "iub":
        _, symbols = np.unique(values, axis=0, return_inverse=True)
        if symbols.max() + 1 < max(REPEATED * len(values), 3):
            return Side(symbols.reshape(-1, 1).astype(np.float64), "discrete"), notes
        notes.append(f"{name}: {symbols.max() + 1} distinct integers are taken as numbers, not as symbols")
    found = values.astype(np.float64)
    _, first = np.unique(found, axis=1, return_index=True)
    if len(first) < found.shape[1]:
        notes.append(f"{name}: {found.shape[1] - len(first)} columns are copies of others, left out")
        found = found[:, np.sort(first)]
    tied = max(1 - len(np.unique(column)) / len(column) for column in found.T)
    if tied > 0 and spread.any():
        if tied >= TIED:
            notes.append(f"{name}: up to {tied:.0%} of a column are ties, broken at random")
        found = spread_ties(found, rng)
    return Side(found, "continuous" if spread.any() else "discrete"), notes


def _array(values: npt.ArrayLike | torch.Tensor, name: str) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    found = np.asarray(values)
    if found.dtype.kind not in "iubf":
        raise BadInput(f"{name} holds {found.dtype}; give integers or floats")
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or not found.shape[1]:
        raise BadInput(f"{name} has shape {found.shape}; give (samples,) or (samples, dims)")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise BadInput(f"{name}: sample {row}, column {column} is not a finite number; leave such samples out")
    return found
