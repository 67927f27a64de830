"""Straight-through training: weights are rounded where the network reads them, and move as if they were not.

The gradient by a rounded weight is applied to the weight itself (Bengio et al. 2013). The grid of a code stays as it is
or, where a quantizer is given, its scales are trained too. Weights are rounded by ``torch.nn.utils.parametrize``: no
module's ``forward`` is touched, and afterwards the modules are as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.bottlenecks.bits.fake_quantize import Quantizer, fake_quantize, row_blocks, rows_of
from isthmus.bottlenecks.bits.grid import LEAST, MOST
from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Coded, Integers, Uniform, decode, scale_of, stretch
from isthmus.storage.rounding import Through


class Rounded(nn.Module):
    """A matrix on the grid of a code: integers times scales, neither bounded nor trained.

    Parameters
    ----------
    coded : Uniform
        Its scales and zeros say the grid.
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
            rounded = torch.empty_like(weight)
            for rows in row_blocks(weight):
                self._round(weight[rows], rows, out=rounded[rows])
            if self.outliers is not None:
                rounded.view(-1)[torch.from_numpy(self.outliers.places)] = torch.from_numpy(
                    self.outliers.values.astype(np.float32)
                )
        through: Tensor = Through.apply(weight, rounded)  # type: ignore[no-untyped-call]
        return through

    def _round(self, exact: Tensor, rows: slice, *, out: Tensor) -> None:
        """Round some rows of the weight."""
        scales = [rows_of(scale, rows) for scale in self.scales]
        out.copy_(exact)
        for scale in scales:
            out.div_(scale)
        if self.zeros is None:
            out.round_()
        else:
            zeros = rows_of(self.zeros, rows)
            out.sub_(zeros).round_().add_(zeros)
        for scale in scales:
            out.mul_(scale)


class Learned(nn.Module):
    """A matrix on the grid of a code whose scales are trained with its weights, and whose levels are bounded.

    A scale is ``first * exp(moved / rms)``, rounded to a whole exponent where it is read. An optimizer whose steps have
    a size of their own (Adam) moves it by the same share of itself as it moves a weight of root mean square ``rms``;
    LSQ scales gradients to that end (section 2.2), which Adam undoes.

    Parameters
    ----------
    coded : Uniform
        Where scales start.
    quantizer : Quantizer
    weight : Tensor, shape ``(rows, columns)``
        As training begins.

    Raises
    ------
    BadInput
        If the code has other than one grid of scales, or zeros or outliers.
    """

    def __init__(self, coded: Uniform, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        if len(coded.scales) != 1 or coded.zeros is not None or coded.outliers is not None:
            raise BadInput("scales are trained where a code has one grid of them and nothing else; code it otherwise")
        self.first, self.quantizer = coded.scales[0], quantizer
        self.relative = 1 / (float(weight.detach().square().mean().sqrt()) or 1.0)
        self.moved = nn.Parameter(torch.zeros(self.first.shape))

    def exponents(self) -> Integers:
        """Return the exponents of the scales as they are now; see `isthmus.storage.coded.FINENESS`."""
        octaves = self.moved.detach().double().numpy() * self.relative / math.log(2)
        exponents: Integers = (self.first + np.rint(FINENESS * octaves)).clip(LEAST, MOST).astype(np.int32)
        return exponents

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        # The second factor is one; by it the gradient passes through the rounding of the exponents.
        scale = torch.from_numpy(scale_of(self.exponents())) * (1 + (self.moved - self.moved.detach()) * self.relative)
        return fake_quantize(weight, scale, self.quantizer)


class Fixed(nn.Module):
    """A matrix that stays what its code says: codes that are looked up are not trained."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self.value = torch.from_numpy(decode(coded))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the decoded matrix."""
        return self.value


Grids = dict[str, nn.Module]


@contextmanager
def straight_through(
    model: nn.Module, codes: Mapping[str, Coded], quantizers: Mapping[str, Quantizer] | None = None
) -> Iterator[Grids]:
    """Round the named weights wherever the model reads them.

    Parameters
    ----------
    codes : mapping of str to Coded
        By name of the parameter.
    quantizers : mapping of str to Quantizer, optional
        Of those codes whose scales are trained: these become parameters of the model while it lasts.

    Yields
    ------
    dict of str to nn.Module
        What rounds each weight; see `trained_codes`.

    Raises
    ------
    BadInput
        If the scales of a code that has a quantizer cannot be trained.
    """
    grids: Grids = {}
    try:
        for name, code in codes.items():
            module = model.get_submodule(name.rpartition(".")[0])
            part = _part(code, (quantizers or {}).get(name), module.get_parameter("weight"))
            parametrize.register_parametrization(module, "weight", part, unsafe=True)
            grids[name] = part
        yield grids
    finally:
        for name in grids:
            module = model.get_submodule(name.rpartition(".")[0])
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def trained_codes(codes: Mapping[str, Coded], grids: Mapping[str, nn.Module]) -> dict[str, Coded]:
    """Return codes with the scales that were trained; their integers are those from before.

    Parameters
    ----------
    grids : mapping of str to nn.Module
        Of `straight_through`, after training.
    """
    found = dict(codes)
    for name, part in grids.items():
        code = codes[name]
        if isinstance(part, Learned) and isinstance(code, Uniform):
            found[name] = replace(code, scales=(part.exponents(),))
    return found


def _part(code: Coded, quantizer: Quantizer | None, weight: Tensor) -> nn.Module:
    if not isinstance(code, Uniform):
        return Fixed(code)
    return Rounded(code) if quantizer is None else Learned(code, quantizer, weight)


def _grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(stretch(grid, shape))
