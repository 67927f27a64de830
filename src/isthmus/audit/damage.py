"""Damage: how much more a narrowed network errs than its original, overall, per class and per slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, Mask, check_losses, few
from isthmus.audit.resampling import LEVEL, Estimate, damage_draws, excess_test, percentile
from isthmus.audit.slices import Slice
from isthmus.errors import BadInput

CORRECTION = (
    "intervals hold for all slices at once (bootstrap over examples and networks, greatest t); p-values are corrected "
    "for all slices by permutation (Westfall and Young 1993, maxT)"
)
SIGNIFICANT = 0.05
_NONE = 1e-12  # a spread below this is rounding


@dataclass(frozen=True)
class SliceDamage:
    """What narrowing did to one slice.

    Parameters
    ----------
    name : str
    count : int
        Examples in the slice.
    share : float
        Of all examples.
    original, narrowed : float
        Mean loss of each population.
    damage : Estimate
        Their difference; the interval holds for all slices of the table at once.
    excess : float
        The damage less that of all other examples.
    p_value : float
        That of the excess being no more than chance, corrected for all slices of the table.
    """

    name: str
    count: int
    share: float
    original: float
    narrowed: float
    damage: Estimate
    excess: float
    p_value: float

    @property
    def found(self) -> bool:
        """Whether the slice is damaged beyond the rest, at 5 % over all slices."""
        return self.p_value < SIGNIFICANT and self.excess > 0


@dataclass(frozen=True)
class Damage:
    """The damage overall (a pointwise interval) and per slice, greatest excess first."""

    overall: Estimate
    rows: tuple[SliceDamage, ...]
    correction: str
    warnings: tuple[str, ...]


def measure_damage(
    original: npt.ArrayLike, narrowed: npt.ArrayLike, slices: Sequence[Slice] = (), *, seed: int = 0
) -> Damage:
    """Measure the damage overall and per slice.

    Parameters
    ----------
    original, narrowed : array (networks, examples) or (examples,)
        The losses of each population of networks: errors of 0 and 1, nats, or any loss whose mean is of interest.
    slices : sequence of Slice
        May overlap.
    seed : int

    Returns
    -------
    Damage

    Raises
    ------
    BadInput
        If losses are not finite, too few, or not of the slices' examples.

    Notes
    -----
    The simultaneous interval of slice ``s`` is ``damage +- c * error``, with ``error`` the bootstrap's standard
    deviation and ``c`` the 95 % quantile of ``max_s |damage* - damage| / error`` over resamples. Where losses are 0
    or 1 and not one example of a slice changed, the bootstrap sees no spread: the interval is then the exact one of a
    share of which none was seen, both ways, with the level divided by the number of slices (Bonferroni).
    """
    first, second = check_losses(original, narrowed)
    count = first.shape[1]
    masks = stacked(slices, count)
    change = second.mean(axis=0) - first.mean(axis=0)
    whole, parts = damage_draws(first, second, masks, seed)
    values = np.array([float(change[mask].mean()) for mask in masks])
    errors = np.nanstd(parts, axis=0) if len(masks) else np.empty(0)
    critical = _critical(parts, values, errors)
    tested = excess_test(change, masks, seed)
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    rows = []
    for piece, mask, value, error, p_value in zip(slices, masks, values, errors, tested, strict=True):
        size = int(mask.sum())
        reach = critical * float(error)
        if binary and error < _NONE:
            reach = 1 - ((1 - LEVEL) / 2 / len(masks)) ** (1 / size)
        rows.append(
            SliceDamage(
                name=piece.name,
                count=size,
                share=size / count,
                original=float(first[:, mask].mean()),
                narrowed=float(second[:, mask].mean()),
                damage=Estimate(float(value), float(value) - reach, float(value) + reach, size),
                excess=float(value - change[~mask].mean()) if size < count else 0.0,
                p_value=float(p_value),
            )
        )
    rows.sort(key=lambda row: (row.p_value, -row.excess))
    return Damage(percentile(float(change.mean()), whole, count), tuple(rows), CORRECTION, few(count))


def stacked(slices: Sequence[Slice], count: int) -> Mask:
    """Return the masks of slices as one array (slices, examples).

    Raises
    ------
    BadInput
        If a slice is empty or of other examples.
    """
    for piece in slices:
        if piece.mask.shape != (count,) or not piece.mask.any():
            raise BadInput(f"slice {piece.name}: its mask must mark some of the {count} examples; check its column")
    return np.stack([piece.mask for piece in slices]) if slices else np.zeros((0, count), dtype=bool)


def _critical(parts: Array, values: Array, errors: Array) -> float:
    usable = errors > _NONE
    if not usable.any():
        return 0.0
    distances = np.abs(parts[:, usable] - values[usable]) / errors[usable]
    distances[~np.isfinite(distances)] = 0.0  # a resample without an example of the slice says nothing of it
    return float(np.quantile(distances.max(axis=1), LEVEL))
