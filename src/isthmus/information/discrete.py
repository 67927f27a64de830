"""Two discrete sides: counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.information.result import DD, Estimate, Kinds, Side

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlugIn:
    """``sum p log(p / (px py))`` of the counts, less ``(cells - rows - columns + 1) / 2n`` (Miller 1955).

    Parameters
    ----------
    corrected : bool
        Whether the bias, to first order, is taken off.
    """

    name: ClassVar[str] = "plug-in"
    about: ClassVar[str] = "counts of symbols, Miller-Madow correction"
    paper: ClassVar[str] = "Paninski 2003, Neural Computation 15"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (DD,)

    corrected: bool = True

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        parts, bias = plug_in_parts(x.symbols, y.symbols)
        off = bias if self.corrected else 0.0
        least = min(len(np.unique(x.symbols)), len(np.unique(y.symbols)))
        notes = ("about one sample a cell of the table of counts: the value is mostly bias",) if bias > 0.25 else ()
        return Estimate(float(parts.mean() - off), parts - off, ceiling=float(np.log(least)), warnings=notes)


def plug_in_parts(x: Integers, y: Integers) -> tuple[npt.NDArray[np.float64], float]:
    """Return the log ratio of each sample, shape ``(samples,)``, and the first-order bias of their mean, nats."""
    (_, x), (_, y) = (np.unique(side, return_inverse=True) for side in (x, y))
    cells, places = np.unique(np.column_stack([x, y]), axis=0, return_inverse=True)
    places = places.reshape(-1)
    joint, rows, columns = np.bincount(places), np.bincount(x), np.bincount(y)
    ratio = np.log(joint[places] * float(len(x)) / (rows[x] * columns[y].astype(float)))
    return ratio, max((len(cells) - len(rows) - len(columns) + 1) / (2 * len(x)), 0.0)
