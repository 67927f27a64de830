"""Maestro: factors trained so that any prefix of their inner dimension is a good lower rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import damped
from isthmus.bottlenecks.rank.products import product, ranks
from isthmus.errors import BadInput
from isthmus.storage.coded import Product

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_FLOOR = 1e-4
"""Weights of rows count as no less than this share of their mean."""


@dataclass(frozen=True)
class Maestro:
    """Factors trained by ordered dropout on the outputs of a matrix, cut to a rank (Horváth et al. 2023).

    Factors of a few more ranks than are wanted are trained by `train`, and the first of them are kept. Outputs and
    inputs are weighed as the truncated singular value decomposition of the coder ``low-rank`` weighs them (the rows'
    factor of the sensitivity; moments, or for an embedding the columns' factor), so that the two share an optimum. The
    paper trains the factors of all layers of a network together, with its task; here each matrix is trained alone.

    Parameters
    ----------
    bits : int
        Of the numbers in the factors, before entropy coding.
    steps : int
    spare : float
        How many ranks are trained for each that is kept: the last ones are drawn too seldom to become good.
    damping : float
        Share of the mean of the diagonal of the moments that is added to it.
    """

    name: ClassVar[str] = "maestro"
    slug: ClassVar[str | None] = "maestro"
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "sensitivity"})

    bits: int = 8
    steps: int = 1000
    spare: float = 1.25
    damping: float = 0.01

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the ranks at which two factors hold fewer numbers than the matrix, largest first; maybe none."""
        rows, columns = shape
        return tuple(Setting(self.bits, rank=rank) for rank in ranks((rows * columns - 1) // (rows + columns)))

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Product:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight or moment is not a finite number, or the rank is not between 1 and rows and columns.
        """
        check_matrix(weight)
        _check_rank(setting.rank, weight.shape)
        own = statistics.sensitivity
        moments = np.diag(own.columns) if statistics.moments is None else statistics.moments.astype(np.float64)
        _check_moments(moments, weight.shape[1])
        down = np.sqrt(np.maximum(own.rows / (float(own.rows.mean()) or 1.0), _FLOOR))
        trained = min(math.ceil(self.spare * setting.rank), *weight.shape)
        recipe = RankPrefix(trained, steps=self.steps, seed=seed)
        found = train(
            (down[:, None] * weight).astype(np.float32), damped(moments, self.damping).astype(np.float32), recipe
        )
        left, right = found.left[:, : setting.rank] / down[:, None], found.right[: setting.rank]
        return product(left, right.astype(np.float64), setting.bits)


@dataclass(frozen=True)
class RankPrefix:
    """How factors with ordered ranks are trained.

    Parameters
    ----------
    rank : int
        The largest.
    steps : int
    rate : float
        The largest step size of Adam, which falls to nothing along half a cosine.
    penalty : float
        Weight of the group lasso, in shares of the outputs' mean square.
    seed : int
        Of the start and of the ranks that are drawn.
    """

    rank: int
    steps: int = 2000
    rate: float = 0.1
    penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Factors:
    """Factors by falling importance: the first ``b`` columns of ``left`` times the first ``b`` rows of ``right``.

    Parameters
    ----------
    left : ndarray of float32, shape ``(rows, rank)``
    right : ndarray of float32, shape ``(rank, columns)``
    """

    left: Floats
    right: Floats

    def used(self, share: float = 1e-3) -> int:
        """Return after which rank all that follows is smaller than a share of the largest: it has shrunk away."""
        sizes = np.linalg.norm(self.left, axis=0) * np.linalg.norm(self.right, axis=1)
        large = np.flatnonzero(sizes > share * float(sizes.max()))
        return int(large[-1]) + 1 if len(large) else 0


def train(weight: Floats, moments: Floats | None, recipe: RankPrefix) -> Factors:
    r"""Return factors of a linear map, trained by generalised ordered dropout (Horváth et al. 2023).

    Each step draws a rank ``b`` from 1 to ``recipe.rank`` and lowers, by Adam,

    .. math:: E ||W x - U_{:b} V_{:b} x||^2 / E ||W x||^2
              + penalty \sum_{i} (||U_{i:}|| + ||V_{i:}||)

    where ``i:`` is the suffix from rank ``i`` on, so that later ranks are in more groups and vanish first. One choice
    of factors is best for all prefixes at once, the singular vectors of ``W`` for white inputs and else the principal
    components of the outputs; so without a penalty the draws leave no noise at the end. Expectations are taken exactly,
    from the moments, and ``V`` is trained (and its norms are taken) in coordinates in which the inputs are white. What
    is larger, rows or columns, is trained in an orthonormal basis of the outputs (or of the inputs) that ``W`` has:
    anything beyond it would be an error, and norms and products are the same.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    moments : ndarray of float32, shape ``(columns, columns)``, or None
        The mean of ``x x^T`` over inputs; None stands for white inputs.
    recipe : RankPrefix

    Raises
    ------
    BadInput
        If a weight or moment is not a finite number, or the rank is not between 1 and rows and columns.
    """
    check_matrix(weight)
    rows, columns = weight.shape
    _check_rank(recipe.rank, weight.shape)
    if moments is not None:
        _check_moments(moments, columns)
    root, back = _root(moments, columns)
    outer, core, inner = _core(weight.astype(np.float64) @ root)
    mean = float(np.square(core).sum()) / (rows * columns)
    size = (mean / recipe.rank) ** 0.25
    left, right = _descend(torch.from_numpy(core.astype(np.float32) / (mean**0.5 or 1.0)), recipe, size)
    return Factors((size * outer @ left).astype(np.float32), (size * right @ inner @ back).astype(np.float32))


def _descend(target: Tensor, recipe: RankPrefix, size: float) -> tuple[Doubles, Doubles]:
    """Return trained factors in units of ``size``, that of their start; the target's mean square is 1."""
    total = float(target.square().sum()) or 1.0
    unit = recipe.rank**-0.5
    generator = torch.Generator().manual_seed(recipe.seed)
    left = torch.randn(target.shape[0], recipe.rank, generator=generator).requires_grad_()
    right = torch.randn(recipe.rank, target.shape[1], generator=generator).requires_grad_()
    # What gradients were at the start is soon forgotten: they fall by orders of magnitude.
    adam = torch.optim.Adam([left, right], lr=recipe.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.steps)
    drawn = torch.randint(1, recipe.rank + 1, (recipe.steps,), generator=generator)
    for held in drawn.tolist():
        adam.zero_grad()
        loss = (target - unit * (left[:, :held] @ right[:held])).square().sum() / total
        if recipe.penalty:
            loss = loss + recipe.penalty * size * (_suffixes(left.T) + _suffixes(right))
        loss.backward()
        adam.step()
        schedule.step()
    return left.detach().double().numpy(), right.detach().double().numpy()


def _core(target: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return ``outer, core, inner`` whose product is a matrix, the core square and the others orthonormal."""
    rows, columns = target.shape
    if rows > columns:
        outer, core = np.linalg.qr(target)
        return outer, core, np.eye(columns)
    inner, core = np.linalg.qr(target.T)
    return np.eye(rows), core.T, inner.T


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if not 1 <= rank <= min(shape):
        raise BadInput(f"rank {rank} of a matrix of shape {list(shape)}; take 1 to the smaller side")


def _check_moments(moments: npt.NDArray[np.floating], columns: int) -> None:
    if moments.shape != (columns, columns) or not np.isfinite(moments).all():
        raise BadInput(f"moments of shape {list(moments.shape)} for {columns} columns; measure them on finite inputs")


def _suffixes(factor: Tensor) -> Tensor:
    """Return the sum of the norms of all suffixes of rows of a factor ``(rank, size)``."""
    tails = factor.square().sum(1).flip(0).cumsum(0)
    return (tails + 1e-24).sqrt().sum()


def _root(moments: Floats | None, columns: int) -> tuple[Doubles, Doubles]:
    """Return a root of the moments, and its inverse on the directions that inputs have."""
    if moments is None:
        return np.eye(columns), np.eye(columns)
    values, directions = np.linalg.eigh((moments.astype(np.float64) + moments.T) / 2)
    held = values > 1e-9 * max(float(values.max()), 0.0)
    root = np.sqrt(np.where(held, values, 0.0))
    return directions * root, (directions * np.divide(1.0, root, out=np.zeros_like(root), where=held)).T
