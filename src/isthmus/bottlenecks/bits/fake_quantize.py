"""Fake quantization that can be trained through: rounding to the levels of a code, with gradients for its scales.

The gradients are those of LSQ (Esser et al. 2020, arXiv 1902.08153), in the forms that ParetoQ (Liu et al. 2025, arXiv
2502.02631) gives each width. What trains a network with them is `isthmus.recovery.straight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.bottlenecks.bits.paretoq import ends
from isthmus.errors import BadInput
from isthmus.storage.coded import block_size


@dataclass(frozen=True)
class Quantizer:
    """The integers that weights are rounded to, and which weights still move.

    Parameters
    ----------
    low, high : int
        The least and the largest integer.
    odd : bool
        Only odd integers: two levels, or four without zero.
    reach : float
        How far beyond the ends, in scales, a weight may lie and not count as clipped.
    free : bool
        Whether clipped weights move as well.
    """

    low: int
    high: int
    odd: bool = False
    reach: float = 0.0
    free: bool = False

    def nearest(self, scaled: Tensor) -> Tensor:
        """Return the nearest of the integers to each weight over its scale, any shape, as floating point."""
        found = 2 * (scaled / 2).floor() + 1 if self.odd else scaled.round()
        return found.clamp(self.low, self.high)

    def inside(self, scaled: Tensor) -> Tensor:
        """Return where weights over their scale are not clipped."""
        return (scaled >= self.low - self.reach) & (scaled <= self.high + self.reach)


BLOCK = 1 << 16
"""Weights that are rounded at once. All steps of it then happen in the processor's cache: an embedding as a whole would
pass through memory a dozen times, at a quarter of the speed."""

TERNARY = Quantizer(-1, 1, reach=0.5, free=True)
"""That of BitNet b1.58, whose gradient passes through clipping as well."""


def paretoq_quantizer(bits: float) -> Quantizer:
    """Return the quantizer of ParetoQ at a width, in the integers and scales of its codes.

    Raises
    ------
    BadInput
        If the bits are none of 4, 3, 2, 1.58 and 1.
    """
    low, high = ends(bits)
    if bits == 2:  # half-integers are odd integers times half a scale; a half beyond the outer ones is one
        return Quantizer(int(2 * low), int(2 * high), odd=True, reach=1.0)
    return Quantizer(int(low), int(high), odd=bits == 1, reach=0.5 if bits == 1.58 else 0.0)


def fake_quantize(weight: Tensor, scale: Tensor, quantizer: Quantizer) -> Tensor:
    """Return a matrix rounded to integers times scales, as it decodes to where scales are exponents of a code.

    Backwards, a weight gets the derivative as it is, or none where it was clipped (straight-through). A scale gets the
    sum over its weights of the derivative times ``integer - w / scale``, or times the integer where clipped, or times
    the integer at two levels, all over ``sqrt(count * high)``, ``count`` being its weights (LSQ, equation 3 and
    section 2.2).

    Parameters
    ----------
    weight : Tensor, shape ``(rows, columns)``
    scale : Tensor, shape ``(rows or fewer, columns or fewer)``
        Above zero; stretched over the matrix in blocks, as those of `isthmus.storage.coded.Uniform`.
    quantizer : Quantizer

    Raises
    ------
    BadInput
        If the scales do not stretch over the matrix.
    """
    shapes = list(weight.shape), list(scale.shape)
    wide = scale
    for axis, (wanted, held) in enumerate(zip(*shapes, strict=False)):
        size = block_size(wanted, held)
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or block_size(wanted, size) != held:
            raise BadInput(f"scales of shape {shapes[1]} for weights of {shapes[0]}; give one a row, or equal blocks")
        if held not in (1, wanted):
            wide = wide.index_select(axis, torch.arange(wanted) // size)
    found: Tensor = _FakeQuantize.apply(weight, wide, weight.numel() / scale.numel(), quantizer)  # type: ignore[no-untyped-call]
    return found


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, count: float, quantizer: Quantizer) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.count, ctx.quantizer = count, quantizer
        rounded = torch.empty_like(weight)
        for rows in row_blocks(weight):
            own = rows_of(scale, rows)
            torch.mul(quantizer.nearest(weight[rows] / own), own, out=rounded[rows])
        return rounded

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        quantizer: Quantizer = ctx.quantizer
        by_weight = derivatives[0] if quantizer.free else torch.empty_like(weight)
        by_scale = torch.zeros_like(scale)
        for rows in row_blocks(weight):
            own, derivative = rows_of(scale, rows), derivatives[0][rows]
            scaled = weight[rows] / own
            inside, slope = quantizer.inside(scaled), quantizer.nearest(scaled)
            if not (quantizer.odd and quantizer.high == 1):
                slope = torch.where(inside, slope - scaled, slope)
            rows_of(by_scale, rows).add_((slope * derivative).sum_to_size(own.shape))
            if not quantizer.free:
                torch.mul(derivative, inside, out=by_weight[rows])
        return by_weight, by_scale / math.sqrt(ctx.count * quantizer.high), None, None


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield rows of a matrix, as many at a time as the processor's cache holds."""
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    yield from (slice(start, start + step) for start in range(0, matrix.shape[0], step))


def rows_of(scale: Tensor, rows: slice) -> Tensor:
    """Return the rows of a grid that belong to rows of its matrix; what has one row is left to broadcasting."""
    return scale if scale.shape[0] == 1 else scale[rows]
