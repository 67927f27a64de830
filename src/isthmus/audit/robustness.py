"""Robustness: what corruptions cost a network, before and after narrowing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, check_finite, check_losses, few
from isthmus.audit.resampling import Estimate, example_draws, percentile


@dataclass(frozen=True)
class Corrupted:
    """What one corruption at one strength costs.

    Parameters
    ----------
    kind : str
    strength : float
    seeds : int
        Draws of the corruption that were averaged.
    original, narrowed : Estimate
        The increase of the mean loss over that on clean examples.
    extra : Estimate
        The second less the first: what the narrowed network suffers more.
    """

    kind: str
    strength: float
    seeds: int
    original: Estimate
    narrowed: Estimate
    extra: Estimate


@dataclass(frozen=True)
class Robustness:
    """Corruptions in the order given, with the mean losses on clean examples."""

    clean_original: float
    clean_narrowed: float
    rows: tuple[Corrupted, ...]
    warnings: tuple[str, ...]


def measure_robustness(
    original: npt.ArrayLike,
    narrowed: npt.ArrayLike,
    corrupted: Mapping[tuple[str, float], tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    seed: int = 0,
) -> Robustness:
    """Measure what corruptions cost each population.

    Parameters
    ----------
    original, narrowed : array (networks, examples) or (examples,)
        Losses on clean examples.
    corrupted : mapping of (kind, strength) to (original, narrowed)
        Losses on the same examples corrupted, arrays (seeds, networks, examples).
    seed : int

    Raises
    ------
    BadInput
        If the arrays are not finite or not of the same networks and examples.
    """
    first, second = check_losses(original, narrowed)
    count = first.shape[1]
    draws = list(example_draws(count, seed, 1000))

    def mean(values: Array) -> Estimate:
        return percentile(float(values.mean()), np.concatenate([part @ values / count for part in draws]), count)

    rows = []
    for (kind, strength), pair in corrupted.items():
        harms = []
        for clean, losses in zip((first, second), pair, strict=True):
            array = check_finite(losses, f"losses under {kind} {strength:g}", (None, *clean.shape))
            harms.append((array.mean(axis=0) - clean).mean(axis=0))
        seeds = len(np.asarray(pair[0]))
        rows.append(Corrupted(kind, strength, seeds, mean(harms[0]), mean(harms[1]), mean(harms[1] - harms[0])))
    return Robustness(float(first.mean()), float(second.mean()), tuple(rows), few(count))
