"""What an estimate of information is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Kind = Literal["continuous", "discrete"]
Kinds = tuple[Kind, Kind]
CC: Kinds = ("continuous", "continuous")
CD: Kinds = ("continuous", "discrete")
DD: Kinds = ("discrete", "discrete")


@dataclass(frozen=True)
class Side:
    """One of the two variables, read and checked.

    Parameters
    ----------
    values : ndarray of float64, shape ``(samples, dims)``
        For a discrete side the number of the symbol, shape ``(samples, 1)``.
    kind : {"continuous", "discrete"}
    """

    values: Floats
    kind: Kind

    @property
    def symbols(self) -> npt.NDArray[np.int64]:
        """The numbers of the symbols of a discrete side, shape ``(samples,)``."""
        return self.values[:, 0].astype(np.int64)

    def taken(self, places: npt.NDArray[np.int64] | slice) -> Side:
        """Return the side at some samples only."""
        return Side(self.values[places], self.kind)


@dataclass(frozen=True)
class Estimate:
    """What an estimator says of two sides.

    Parameters
    ----------
    nats : float
    parts : ndarray, shape ``(samples,)``, or None
        What each sample adds, where the estimate is their mean: it gives the standard error.
    interval : tuple of float, or None
        Where the estimator has a way of its own to state it.
    shuffled : ndarray, shape ``(permutations,)``, or None
        What the estimator's statistic gave on permuted samples, where it has a cheap way of its own to say it.
    statistic : float, or None
        What is compared with ``shuffled``.
    ceiling : float, or None
        Nats that the estimator cannot exceed on so many samples.
    warnings : tuple of str
    not_estimable : str or None
        Why the value is to be withheld.
    """

    nats: float
    parts: Floats | None = None
    interval: tuple[float, float] | None = None
    shuffled: Floats | None = None
    statistic: float | None = None
    ceiling: float | None = None
    warnings: tuple[str, ...] = ()
    not_estimable: str | None = None


@dataclass(frozen=True)
class Null:
    """What the estimator gives on permuted samples.

    Parameters
    ----------
    mean, upper : float
        Mean and 95 % quantile, nats.
    p : float
        ``(1 + how often a permutation gives as much) / (1 + permutations)``.
    permutations, samples : int
        How many permutations, on how many samples.
    """

    mean: float
    upper: float
    p: float
    permutations: int
    samples: int


@dataclass(frozen=True)
class Information:
    """Mutual information of two variables; see `mutual_information` for how each field is computed.

    Parameters
    ----------
    nats : float or None
        None where it is not estimable.
    interval : tuple of float or None
        95 %, bias counted in; nats.
    null : Null or None
        None where no permutations were asked for or the value is not estimable.
    estimator : str
    samples : int
    dimensions : tuple of int
        Of the two sides, without columns left out.
    warnings : tuple of str
    not_estimable : str or None
        The reason.
    """

    nats: float | None
    interval: tuple[float, float] | None
    null: Null | None
    estimator: str
    samples: int
    dimensions: tuple[int, int]
    warnings: tuple[str, ...] = field(default=())
    not_estimable: str | None = None
