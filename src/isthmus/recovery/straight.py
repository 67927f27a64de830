"""Straight-through training: weights are rounded where the network reads them, and move as if they were not.

The gradient by a rounded weight is applied to the weight itself (Bengio et al. 2013). Weights are rounded by
``torch.nn.utils.parametrize``: no module's ``forward`` is touched, and afterwards the modules are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.storage.coded import Coded, Uniform, decode, scale_of, stretch


class Rounded(nn.Module):
    """A matrix on the grid of a code: integers between two bounds, times scales.

    Parameters
    ----------
    coded : Uniform
        Its scales and zeros say the grid, and its integers the bounds.
    """

    def __init__(self, coded: Uniform) -> None:
        super().__init__()
        self.scales = [torch.from_numpy(_grid(scale_of(grid), coded.shape)) for grid in coded.scales]
        zeros = None if coded.zeros is None else _grid(coded.zeros.astype(np.float32), coded.shape)
        self.zeros = None if zeros is None else torch.from_numpy(zeros)
        self.outliers = coded.outliers

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight; its derivative by the weight is one."""
        with torch.no_grad():
            exact = weight
            for scale in self.scales:
                exact = exact / scale
            rounded = exact.round() if self.zeros is None else (exact - self.zeros).round() + self.zeros
            for scale in self.scales:
                rounded = rounded * scale
            if self.outliers is not None:
                rounded.view(-1)[torch.from_numpy(self.outliers.places)] = torch.from_numpy(
                    self.outliers.values.astype(np.float32)
                )
        through: Tensor = Through.apply(weight, rounded)  # type: ignore[no-untyped-call]
        return through


class Through(torch.autograd.Function):
    """Gives back its second argument, and hands the gradient to the first."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, rounded: Tensor) -> Tensor:
        """Return the rounded weight."""
        return rounded

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient as that of the weight."""
        return gradients[0], None


class Fixed(nn.Module):
    """A matrix that stays what its code says: codes that are looked up are not trained."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self.value = torch.from_numpy(decode(coded))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the decoded matrix."""
        return self.value


@contextmanager
def straight_through(model: nn.Module, codes: Mapping[str, Coded]) -> Iterator[None]:
    """Round the named weights wherever the model reads them.

    Parameters
    ----------
    codes : mapping of str to Coded
        By name of the parameter.
    """
    paths = [(model.get_submodule(name.rpartition(".")[0]), code) for name, code in codes.items()]
    parametrized: list[nn.Module] = []
    try:
        for module, code in paths:
            part = Rounded(code) if isinstance(code, Uniform) else Fixed(code)
            parametrize.register_parametrization(module, "weight", part, unsafe=True)
            parametrized.append(module)
        yield
    finally:
        for module in parametrized:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(stretch(grid, shape))
