"""PV-Tuning: coded weights trained on a task, tables and scales in one step and a few codes in the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.codebook.moves import Move, apply, likely_moves, shifted
from isthmus.errors import BadInput
from isthmus.progress import Progress, silent
from isthmus.storage.coded import Codebook, Coded, Uniform, decode

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Matrices = dict[str, Floats]
Oracle = Callable[[Matrices], tuple[float, Matrices]]
"""From matrices by name to a calibration loss and its derivative by each matrix, of the matrix's shape."""
Codes = dict[str, Uniform | Codebook]

_SHORTER = 3
"""A step that does not lower the loss is tried again at this part of its length, or with this part of its codes."""
_LONGER = 3.0
"""A step that lowered the loss at once is so much longer the next time."""
_FARTHER = 4.0
"""Where no code is near enough to move to, codes so many times as far off are looked at."""
_PATIENCE = 6
"""After so many rounds without a step nothing more is tried."""
_FLOOR = 1e-6


@dataclass(frozen=True)
class PVRecipe:
    """How codes are tuned.

    Parameters
    ----------
    rounds : int
        Each is a continuous step and a discrete one.
    share : float
        Of a matrix's codes, how many may change in one discrete step: one at least, but none at 0, where only tables
        and scales are tuned.
    tries : int
        How often a step is tried, each time a shorter one, before it is given up.
    """

    name: ClassVar[str] = "pv-tuning"
    slug: ClassVar[str | None] = "pv-tuning"
    family: ClassVar[str] = "quantization"

    rounds: int = 20
    share: float = 0.01
    tries: int = 6


_DEFAULT = PVRecipe()


@dataclass(frozen=True)
class Tuned:
    """Codes, and the calibration loss before the first step and after each accepted one: it never rises."""

    codes: Codes
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Point:
    """Codes with their loss and its derivatives."""

    codes: Codes
    loss: float
    slopes: Matrices
    squares: dict[str, tuple[Doubles, Doubles]]
    """Of the derivatives, their means over each row ``(rows, 1)`` and column ``(1, columns)``, summed over the points
    that were accepted."""

    def curvature(self, name: str) -> Floats:
        """Return how steeply a matrix's derivative changes, up to a factor: its root mean square so far.

        As a factor of rows times one of columns (Shazeer and Stern 2018), for single entries are too noisy. Errors of
        a code are about as large everywhere, so derivatives are large where the loss is curved.
        """
        rows, columns = self.squares[name]
        mean = float(rows.mean()) or 1.0
        product = np.sqrt(np.maximum(rows / mean, _FLOOR)) * np.sqrt(np.maximum(columns / mean, _FLOOR))
        return np.asarray(product / product.mean(), np.float32)


def tune(
    codes: Mapping[str, Coded],
    loss_and_gradient: Oracle,
    recipe: PVRecipe = _DEFAULT,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> Tuned:
    """Return codes of the same kind at a lower calibration loss; alphabets and tables keep their sizes.

    Of Malinovskii et al. (2024). The continuous step (P) leaves every code in place and moves what codes stand for:
    tables, and the exponents of scales. It is the gradient step on the weights, projected on what the code can say.
    The discrete step (V) leaves tables and scales and moves codes. On all weights a step that lowers the loss would be
    too short to reach another code; it is taken for the few with the largest derivatives, and of these the ones with
    the largest gain under a quadratic model change. A step that does not lower the loss is tried again shorter, or with
    fewer codes, and then given up; where it reaches no code, farther ones are looked at. Steps are scaled by the
    derivatives seen so far, as Adam does it in the paper. Outliers stay as they are.

    Parameters
    ----------
    codes : mapping of str to Coded
        By name of the matrix; `Uniform` or `Codebook`.
    loss_and_gradient : callable
        Takes all matrices and returns the loss and the derivatives. It must be the same function at every call: where
        batches are drawn, steps are accepted by luck.
    recipe : PVRecipe
    stop : callable
        Asked before each step is tried; once it says so, no other is.
    progress : callable
        Called after each round.

    Raises
    ------
    BadInput
        If a code is a product or a sum, or the loss or a derivative of the codes as given is not finite.
    """
    held: Codes = {}
    for name, coded in codes.items():
        if not isinstance(coded, Uniform | Codebook):
            raise BadInput(f"{name}: a product or sum cannot be tuned as one code; tune each factor or part")
        held[name] = coded
    point = _evaluate(held, loss_and_gradient)
    if not np.isfinite(point.loss) or not _finite(point.slopes):
        raise BadInput("calibration loss: not finite for the codes as given; mend the inputs or code less coarsely")
    losses, idle = [point.loss], 0
    steepness = sum(float((slope**2 / point.curvature(name)).sum()) for name, slope in point.slopes.items())
    # Where the loss is a parabola that touches zero, this is the length of the step to its bottom.
    length = trust = 2 * abs(point.loss) / steepness if steepness else 0.0
    for number in range(recipe.rounds if length else 0):
        start = point
        moved, length = _continuous(start, loss_and_gradient, length, recipe, stop)
        point, trust = _discrete(moved, loss_and_gradient, trust, recipe, stop)
        losses += [one.loss for one, before in ((moved, start), (point, moved)) if one is not before]
        progress("tune codes", number + 1, recipe.rounds, f"{point.loss:.4f} nats")
        idle = idle + 1 if point is start else 0
        if idle == _PATIENCE or stop():
            break
    return Tuned(point.codes, tuple(losses))


def _continuous(
    point: _Point, oracle: Oracle, length: float, recipe: PVRecipe, stop: Callable[[], bool]
) -> tuple[_Point, float]:
    for attempt in range(recipe.tries):
        if stop():
            break
        codes: Codes = {
            name: shifted(coded, point.slopes[name], point.curvature(name), length)
            for name, coded in point.codes.items()
        }
        found = _evaluate(codes, oracle, point)
        if found.loss < point.loss:
            return found, length * (1 if attempt else _LONGER)
        length /= _SHORTER
    return point, length


def _discrete(
    point: _Point, oracle: Oracle, trust: float, recipe: PVRecipe, stop: Callable[[], bool]
) -> tuple[_Point, float]:
    share, reach = recipe.share, trust
    for attempt in range(recipe.tries if share else 0):
        if stop():
            return point, trust
        moves = _moves(point, reach, share)
        if not any(move.count for move in moves.values()):
            reach *= _FARTHER
            continue
        found = _evaluate({name: apply(coded, moves[name]) for name, coded in point.codes.items()}, oracle, point)
        if found.loss < point.loss:
            return found, reach * (1 if attempt else _LONGER)
        share, reach = share / _SHORTER, reach / 2
    return point, reach


def _moves(point: _Point, reach: float, share: float) -> dict[str, Move]:
    return {
        name: likely_moves(
            coded, point.slopes[name], point.curvature(name), reach, max(int(share * _codes(coded).size), 1)
        )
        for name, coded in point.codes.items()
    }


def _codes(coded: Uniform | Codebook) -> npt.NDArray[np.int32]:
    return coded.integers if isinstance(coded, Uniform) else coded.indices


def _means(slope: Floats) -> tuple[Doubles, Doubles]:
    squares = slope.astype(np.float64) ** 2
    return squares.mean(1, keepdims=True), squares.mean(0, keepdims=True)


def _finite(slopes: Matrices) -> bool:
    return all(bool(np.isfinite(slope).all()) for slope in slopes.values())


def _evaluate(codes: Codes, oracle: Oracle, before: _Point | None = None) -> _Point:
    loss, slopes = oracle({name: decode(coded) for name, coded in codes.items()})
    own = {name: slopes[name].astype(np.float32, copy=True) for name in codes}
    for name, coded in codes.items():
        if coded.outliers is not None:
            own[name].flat[coded.outliers.places] = 0.0
    sums = {name: _means(own[name]) for name in codes}
    if before is not None:
        for name, (rows, columns) in before.squares.items():
            sums[name] = rows + sums[name][0], columns + sums[name][1]
        loss = loss if _finite(own) else float("inf")
    return _Point(codes, float(loss), own, sums)
