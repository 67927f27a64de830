"""FineQuant: rounding to the nearest, with groups as fine as the weights of a matrix ask for.

Kim et al. 2023, arXiv 2308.09723. Nothing but the weights is read. The paper starts from a whole row a scale and halves
the groups as long as that narrows their ranges enough; here "enough" is a field, as is the smallest group, and the
range of a matrix is the mean over its groups of the largest magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.bottlenecks.bits.grid import covering, groups, peaks, rounded, top_of
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.storage.coded import Uniform


@dataclass(frozen=True)
class FineQuant:
    """Round to nearest on symmetric grids, a scale for each row and group of columns.

    A scale is the largest magnitude of its group over the largest integer, to the nearest 16th of an octave at which
    no weight clips.

    Parameters
    ----------
    ratio : float
        Groups are halved while the mean range of the halves is below this share of that of the wholes.
    least : int
        Columns of the smallest group.
    """

    name: ClassVar[str] = "finequant"
    slug: ClassVar[str | None] = "finequant"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    ratio: float = 0.9
    least: int = 32

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 8 to 2 bits, with groups of the coder's own choice."""
        return tuple(Setting(bits) for bits in (8, 6, 5, 4, 3, 2))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``; a group that the setting gives is kept.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or the bits are not 1.58 to 12.
        """
        check_matrix(weight)
        top = top_of(setting)
        group = setting.group or group_size(weight, ratio=self.ratio, least=self.least)
        exponents = covering(peaks(weight, groups(weight.shape[1], group)), top)
        return Uniform(rounded(weight, exponents, top), (exponents,))


def group_size(weight: Floats, *, ratio: float = 0.9, least: int = 32) -> int:
    """Return how many columns share a scale, by the paper's heuristic.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    ratio, least
        As in `FineQuant`.
    """
    size = int(weight.shape[1])
    held = float(peaks(weight, 1).mean())
    while size > 1 and -(-size // 2) >= least:
        half = -(-size // 2)
        narrower = float(peaks(weight, groups(weight.shape[1], half)).mean())
        if narrower >= ratio * held:
            break
        size, held = half, narrower
    return size
