"""Bringing many units down to the few values that a strip can show."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from isthmus.report.data import BINS


def binned(values: Sequence[float], bins: int = BINS) -> list[float]:
    """Average values in at most ``bins`` bins of near-equal width, in their order.

    Parameters
    ----------
    values : sequence of float, (units,)
        Such as relevance per unit, in nats. A numpy array serves.
    bins : int
        How many values to return at most.

    Returns
    -------
    list of float, (min(units, bins),)
    """
    units = len(values)
    count = min(units, bins)
    edges = [index * units // count for index in range(count + 1)] if count else []
    return [float(sum(float(value) for value in values[low:high]) / (high - low)) for low, high in pairwise(edges)]


def kept_shares(keep: Collection[int], units: int, bins: int = BINS) -> list[float]:
    """Return the share of units kept in each of at most ``bins`` bins, in the units' order.

    Parameters
    ----------
    keep : collection of int
        The units that stay.
    units : int
        How many there were.

    Raises
    ------
    ValueError
        If a unit lies outside ``0 ... units - 1``.
    """
    mask = [0.0] * units
    for unit in keep:
        if not 0 <= unit < units:
            raise ValueError(f"unit {unit} is not one of {units} units")
        mask[unit] = 1.0
    return binned(mask, bins)
