"""Discovery: a shallow search for slices that narrowing damages beyond the rest, judged on examples it did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import LEAST, Array, Mask, check_losses
from isthmus.audit.damage import Damage, measure_damage, stacked
from isthmus.audit.slices import Slice

CANDIDATES = 10  # that go on to the other half
_BEAM = 12  # slices that are joined with others
_ALIKE = 0.7  # of two that share so much of their union, the better one goes on


@dataclass(frozen=True)
class Discovered:
    """What a search found.

    Parameters
    ----------
    searched : int
        Slices that were looked at on the first half, joined ones included.
    tested : Damage
        The best of them, measured on the other half; a row is a discovery where its ``found`` says so.
    warnings : tuple of str
    """

    searched: int
    tested: Damage
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The slices that were found, greatest excess first."""
        return tuple(row.name for row in self.tested.rows if row.found)


def discover_slices(
    original: npt.ArrayLike, narrowed: npt.ArrayLike, slices: Sequence[Slice], *, seed: int = 0
) -> Discovered:
    """Search slices and pairs of slices for damage beyond the rest's.

    The examples are split in halves at random. On the first every slice, and every pair of one of the 12 best with
    another slice ("this and that"), is ranked by its excess damage in standard errors (Welch's t); the ten best that
    are not nearly the same examples are measured on the second half, where they are few enough for a correction.

    Parameters
    ----------
    original, narrowed : array (networks, examples) or (examples,)
        Losses.
    slices : sequence of Slice
        What can be said of an example in plain words.
    seed : int
        For the halves.

    Raises
    ------
    BadInput
        If losses are not finite, too few, or not of the slices' examples.
    """
    first, second = check_losses(original, narrowed)
    count = first.shape[1]
    masks = stacked(slices, count)
    change = second.mean(axis=0) - first.mean(axis=0)
    order = np.random.default_rng([seed, 3]).permutation(count)
    seek, judge = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    if len(judge) < 2 * LEAST:
        none = Damage(measure_damage(first, second).overall, (), "", ())
        return Discovered(0, none, (f"{count} examples: too few to search in one half and judge in the other",))
    names = [piece.name for piece in slices]
    scores = _excess(change[seek], masks[:, seek])
    best = [index for index in np.argsort(-scores, kind="stable")[:_BEAM].tolist() if scores[index] > 0]
    joined, joined_names = [], []
    for place in best:
        for other in range(len(masks)):
            if other != place and not (other in best and other < place):
                joined.append(masks[place] & masks[other])
                joined_names.append(f"{names[place]} and {names[other]}")
    everything = np.concatenate([masks, np.stack(joined)]) if joined else masks
    every_name = names + joined_names
    scores = _excess(change[seek], everything[:, seek])
    chosen = _distinct(scores, everything, judge)
    pieces = [Slice(every_name[index], everything[index][judge]) for index in chosen]
    tested = measure_damage(first[:, judge], second[:, judge], pieces, seed=seed)
    warnings = () if len(masks) else ("no slices to search: nothing is known of the examples",)
    return Discovered(len(everything), tested, warnings)


def _excess(change: Array, masks: Mask) -> Array:
    """Return Welch's t of each slice's changes against the rest's, shape (slices,); -inf for too few on a side."""
    count = len(change)
    inside = masks.astype(np.float64)
    sizes = inside.sum(axis=1)
    usable = (sizes >= LEAST) & (count - sizes >= LEAST)
    result = np.full(len(masks), -np.inf)
    if not usable.any():
        return result
    inside, sizes = inside[usable], sizes[usable]
    sums, squares = inside @ change, inside @ change**2
    means, others = sums / sizes, (change.sum() - sums) / (count - sizes)
    spread = np.maximum(squares / sizes - means**2, 0) / (sizes - 1)
    rest = np.maximum((change @ change - squares) / (count - sizes) - others**2, 0) / (count - sizes - 1)
    error = np.sqrt(spread + rest)
    with np.errstate(invalid="ignore", divide="ignore"):
        certain = np.where(means > others + 1e-12, np.inf, 0.0)
        result[usable] = np.where(error > 1e-12, (means - others) / error, certain)
    return result


def _distinct(scores: Array, masks: Mask, judge: npt.NDArray[np.integer]) -> list[int]:
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == CANDIDATES or not scores[index] > 0:
            break
        mask = masks[index][judge]
        if not LEAST // 2 <= mask.sum() < len(mask):
            continue
        alike = ((mask & masks[other][judge]).sum() / max(1, (mask | masks[other][judge]).sum()) for other in chosen)
        if all(share < _ALIKE for share in alike):
            chosen.append(index)
    return chosen
