"""Adaptive binning: bins that hold equally many distinct values of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.information.discrete import plug_in_parts
from isthmus.information.result import CC, CD, DD, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AdaptiveBins:
    """Entropy-based adaptive binning (Chelombiev et al. 2019, section 3.1): each bin as many distinct values.

    The edges are quantiles of the distinct values of each column; a sample's symbol is the row of its bins. Rows of
    many columns are nearly all unlike, and the estimate is then ``log n`` whatever the data.

    Parameters
    ----------
    bins : int
        Of each column.
    corrected : bool
        Whether the first-order bias of the counts is taken off.
    """

    name: ClassVar[str] = "adaptive-bins"
    about: ClassVar[str] = "bins of equally many distinct values, then counts; comparable between layers, coarse"
    paper: ClassVar[str] = "Chelombiev et al. 2019, arXiv 1902.09037"
    slug: ClassVar[str | None] = "adaptive-mi-estimators"
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD, DD)

    bins: int = 16
    corrected: bool = True

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise BadInput(f"{self.bins} bins; give at least two")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        symbols = [side.symbols if side.kind == "discrete" else self.symbols(side.values) for side in (x, y)]
        parts, bias = plug_in_parts(symbols[0], symbols[1])
        off = bias if self.corrected else 0.0
        ceiling = min(float(np.log(len(np.unique(side)))) for side in symbols)
        return Estimate(float(parts.mean() - off), parts - off, ceiling=ceiling)

    def symbols(self, values: Floats) -> npt.NDArray[np.int64]:
        """Return the number of the row of bins of each sample, shape ``(samples,)``."""
        shares = np.linspace(0, 1, self.bins + 1)[1:-1]
        rows = [np.searchsorted(np.quantile(np.unique(column), shares), column, side="right") for column in values.T]
        _, found = np.unique(np.column_stack(rows), axis=0, return_inverse=True)
        return np.asarray(found, dtype=np.int64).reshape(-1)
