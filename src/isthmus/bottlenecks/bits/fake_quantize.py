"""Fake quantization that can be trained through: the quantizers of ParetoQ, with gradients for weights and scales."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isthmus.bottlenecks.bits.paretoq import ends
from isthmus.errors import BadInput


def fake_quantize(weight: Tensor, scale: Tensor, bits: float) -> Tensor:
    """Return a matrix rounded to the levels of a width, as it decodes to where scales are exponents of a code.

    Backwards, a weight gets the derivative as it is, or none where it was clipped (straight-through). A scale gets the
    sum over its weights of the derivative times ``level - w / scale``, or times the end level where clipped, or times
    the level at 1 bit, all over ``sqrt(count * highest level)``, ``count`` being its weights (LSQ, Esser et al. 2020,
    arXiv 1902.08153, equation 3 and section 2.2; in the forms of ParetoQ, Liu et al. 2025).

    Parameters
    ----------
    weight : Tensor, shape ``(rows, columns)``
    scale : Tensor, shape ``(rows or 1, columns or 1)``
        The distance between levels; at 1 bit half of it. Above zero.
    bits : float
        4, 3, 2, 1.58 or 1.

    Raises
    ------
    BadInput
        If the bits are none of these, or the scales do not stretch over the matrix.
    """
    ends(bits)
    if (
        weight.ndim != 2
        or scale.ndim != 2
        or any(s not in (1, w) for s, w in zip(scale.shape, weight.shape, strict=True))
    ):
        raise BadInput(f"scales of shape {list(scale.shape)} for weights of {list(weight.shape)}; give one a row")
    found: Tensor = _FakeQuantize.apply(weight, scale, bits)  # type: ignore[no-untyped-call]
    return found


def _levels(scaled: Tensor, bits: float) -> Tensor:
    low, high = ends(bits)
    if bits == 1:
        return torch.where(scaled < 0, -1.0, 1.0).to(scaled.dtype)
    found = scaled.floor() + 0.5 if bits == 2 else scaled.round()
    return found.clamp(low, high)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: float) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return _levels(weight / scale, bits) * scale

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, scale = ctx.saved_tensors
        low, high = ends(ctx.bits)
        scaled = weight / scale
        # A stretched grid reaches half a step beyond its outer levels; the others clip at them.
        reach = 0.5 if ctx.bits in (1.58, 2) else 0.0
        inside = (scaled >= low - reach) & (scaled <= high + reach)
        level = _levels(scaled, ctx.bits)
        slope = level if ctx.bits == 1 else torch.where(inside, level - scaled, level)
        slope = slope * derivatives[0] / math.sqrt(weight.numel() / scale.numel() * high)
        return derivatives[0] * inside, slope.sum_to_size(scale.shape), None
