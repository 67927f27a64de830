"""ALDS: columns cut into slices, a low rank for each; slices and ranks of all matrices chosen by one error bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.rank.products import product, ranks
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.storage.coded import Product

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SLICES = (1, 2, 3, 4, 6, 8, 12, 16)
"""How many slices a matrix may be cut into; only numbers that divide its columns."""


@dataclass(frozen=True)
class Alds:
    """Slices of columns, each the product of two thin factors (Liebenwein et al. 2021).

    The code is one `Product`: the slices' left factors side by side, ``(rows, slices * rank)``, and their right
    factors along the diagonal of ``(slices * rank, columns)``. The zeros around these are stored: a share of
    ``1 / slices`` of that factor is not zero, and telling which takes up to ``h(1 / slices)`` bits an entry, with
    ``h`` the binary entropy, so 2 bits for each number that is not zero at two slices and 3.2 at four. The entropy
    coder follows the rows of a factor and saves part of that. Without slices nothing is lost.

    Parameters
    ----------
    bits : int
        Of the numbers in the factors, before entropy coding.
    """

    name: ClassVar[str] = "alds"
    slug: ClassVar[str | None] = "alds"
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset()

    bits: int = 8

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return ranks for one, two and four slices at which factors hold fewer numbers than the matrix.

        ``Setting.group`` is the columns of a slice, ``Setting.rank`` the ranks of all slices together. The one with the
        most numbers in its factors comes first.
        """
        rows, columns = shape
        found = []
        for slices in (1, 2, 4):
            if columns % slices == 0:
                for rank in ranks(_most_rank(shape, slices)):
                    size = rank * (slices * rows + columns)
                    found.append((-size, slices, Setting(self.bits, columns // slices, rank * slices)))
        return tuple(setting for _, _, setting in sorted(found, key=lambda one: one[:2]))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Product:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or slices or ranks do not fit.
        """
        check_matrix(weight)
        rows, columns = weight.shape
        slices = columns // setting.group if setting.group and columns % setting.group == 0 else 0
        if not slices or setting.rank % slices or not slices <= setting.rank <= min(rows, columns):
            raise BadInput(
                f"slices of {setting.group} columns with rank {setting.rank} in all do not fit a matrix of shape "
                f"{[rows, columns]}; take a group that divides the columns and a rank that all slices share"
            )
        left, right = sliced(weight, slices, setting.rank // slices)
        return product(left, right, setting.bits)


def sliced(weight: Floats, slices: int, rank: int) -> tuple[Doubles, Doubles]:
    """Return the factors ``(rows, slices * rank)`` and, block-diagonal, ``(slices * rank, columns)``."""
    rows, columns = weight.shape
    width = columns // slices
    left, right = np.zeros((rows, slices * rank)), np.zeros((slices * rank, columns))
    for number in range(slices):
        inner, outer = slice(number * rank, (number + 1) * rank), slice(number * width, (number + 1) * width)
        first, spectrum, second = np.linalg.svd(weight[:, outer].astype(np.float64), full_matrices=False)
        share = np.sqrt(spectrum[:rank])
        left[:, inner] = first[:, :rank] * share
        right[inner, outer] = share[:, None] * second[:rank]
    return left, right


@dataclass(frozen=True)
class Choice:
    """What is chosen for a matrix.

    Parameters
    ----------
    slices : int
        0: the matrix stays whole, and nothing is lost.
    rank : int
        Of each slice.
    size : int
        Numbers that are stored.
    bound : float
        Of the relative error in the spectral norm.
    """

    slices: int
    rank: int
    size: int
    bound: float

    def setting(self, columns: int, bits: int = 8) -> Setting:
        """Return the setting of `Alds` for this choice, of a matrix that does not stay whole."""
        if not self.slices:
            raise BadInput("choice: the matrix stays whole, so there is no rank to code it at; code it otherwise")
        return Setting(bits, columns // self.slices, self.slices * self.rank)


def choose(matrices: Mapping[str, Floats], budget_params: int) -> dict[str, Choice]:
    r"""Return slices and ranks for all matrices that fit a budget with the least largest error bound.

    For a matrix cut into ``k`` slices of rank ``j`` the bound of :math:`||\hat W - W|| / ||W||` is
    :math:`\sqrt{k} \max_i \alpha_{i,j+1} / \alpha_1`, with :math:`\alpha_{i,j}` the singular values of slice ``i`` and
    :math:`\alpha_1` the spectral norm of the matrix (Liebenwein et al. 2021).

    The paper bisects on the error for given slices and improves slices by local search from random starts. Matrices
    share nothing but the largest error, and all slices' singular values are known here; so for each error every
    matrix takes its own smallest choice, and bisection on the error alone finds the optimum. Nothing is drawn. Numbers
    are counted as ``j (k rows + columns)``: zeros of the block-diagonal factor are free here, see `Alds`.

    Parameters
    ----------
    matrices : mapping of str to ndarray of float32, shape ``(rows, columns)``
    budget_params : int
        Numbers in all factors, and in matrices that stay whole.

    Raises
    ------
    BadInput
        If a weight is not a finite number.
    UnreachableBudget
        If rank 1 everywhere takes more.
    """
    options = {name: _options(matrix) for name, matrix in matrices.items()}
    errors = np.unique([one.bound for own in options.values() for one in own])
    least = _within(options, float(errors[-1]))
    if _total(least) > budget_params:
        raise UnreachableBudget(f"rank 1 takes {_total(least)} parameters, and the budget is {budget_params}")
    low, high = 0, len(errors) - 1
    while low < high:
        middle = (low + high) // 2
        fits = _total(_within(options, float(errors[middle]))) <= budget_params
        low, high = (low, middle) if fits else (middle + 1, high)
    return _within(options, float(errors[low]))


def _options(matrix: Floats) -> list[Choice]:
    """Return the choices for a matrix, smallest first; of equally small ones that with the lowest bound."""
    check_matrix(matrix)
    rows, columns = matrix.shape
    norm = float(np.linalg.norm(matrix.astype(np.float64), 2)) or 1.0
    found = [Choice(0, 0, rows * columns, 0.0)]
    for slices in (number for number in SLICES if columns % number == 0):
        parts = matrix.astype(np.float64).reshape(rows, slices, -1).swapaxes(0, 1)
        spectrum = np.linalg.svd(parts, compute_uv=False).max(0)
        spectrum = np.append(spectrum, 0.0)
        for rank in range(1, _most_rank((rows, columns), slices) + 1):
            bound = float(np.sqrt(slices) * spectrum[rank] / norm)
            found.append(Choice(slices, rank, rank * (slices * rows + columns), bound))
    return sorted(found, key=lambda one: (one.size, one.bound))


def _most_rank(shape: tuple[int, int], slices: int) -> int:
    """Return the largest rank of a slice with fewer numbers in the factors than in the matrix, and that is stored.

    A product's inner dimension may not exceed the smaller side.
    """
    rows, columns = shape
    return min((rows * columns - 1) // (slices * rows + columns), min(rows, columns) // slices)


def _within(options: Mapping[str, list[Choice]], error: float) -> dict[str, Choice]:
    """Return the smallest choice for each matrix with a bound up to an error; whole, a matrix has none."""
    return {name: next(one for one in own if one.bound <= error) for name, own in options.items()}


def _total(choices: Mapping[str, Choice]) -> int:
    return sum(one.size for one in choices.values())
