"""Levels for what was seen: evenly spaced ones for a tensor or for each channel, and powers of two for softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.bottlenecks.bits.rounded_attention import Table
from isthmus.storage.rounding import Even

QUANTILES = (0.999, 0.9999, 0.99999, 1.0)
"""Shares of the entries that levels reach from either end, each tried (RepQ-ViT tries the same)."""
_ENTRIES = 1 << 16
_LEAST = 1e-8


def sampled(values: Tensor, entries: int = _ENTRIES) -> Tensor:
    """Return about so many entries, evenly spread over a tensor, flattened."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // entries)]


def steps_and_zeros(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return steps and zeros of levels between two bounds, ``(channels,)`` each; zero itself is always a level."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    step = ((high - low) / (2**bits - 1)).clamp(min=_LEAST)
    return step, (-low / step).round()


def rounded(values: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Round entries ``(rows, channels)`` to each channel's own levels."""
    return step * ((values / step).round().clamp(-zero, 2**bits - 1 - zero))


def channel_levels(values: Tensor, bits: int, *, dual: bool = False) -> tuple[Tensor, Tensor]:
    """Return the steps and zeros of the least squared error for each channel.

    Parameters
    ----------
    values : Tensor, shape ``(rows, channels)``
    dual : bool
        Try the quantiles of either end by themselves, each with each (RepQuant's dual clipping), rather than the same
        of both.

    Returns
    -------
    tuple of Tensor, shape ``(channels,)``
    """
    ends = [(_quantile(values, 1 - share), _quantile(values, share)) for share in QUANTILES]
    bounds = [(low, high) for low, _ in ends for _, high in ends] if dual else ends
    best = torch.full((values.shape[1],), torch.inf)
    step, zero = torch.ones(values.shape[1]), torch.zeros(values.shape[1])
    for low, high in bounds:
        tried = steps_and_zeros(low, high, bits)
        error = (rounded(values, *tried, bits) - values).square().mean(0)
        better = error < best
        best = torch.where(better, error, best)
        step, zero = torch.where(better, tried[0], step), torch.where(better, tried[1], zero)
    return step, zero


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return the entry of each channel below which a share of them lies."""
    rank = min(max(round(share * (len(values) - 1)), 0), len(values) - 1)
    return values.kthvalue(rank + 1, dim=0).values


def tensor_levels(values: Tensor, bits: int, *, dual: bool = False) -> Even:
    """Return the evenly spaced levels of the least squared error for all of a tensor."""
    step, zero = channel_levels(sampled(values)[:, None], bits, dual=dual)
    return Even(bits, float(step), int(zero))


def log_table(scale: float, bits: int, root: int) -> Table:
    r"""Return the levels ``scale * 2 ** (-k / root)`` and 0, each entry going to the nearest in the logarithm.

    With ``root`` 2 these are the levels of RepQ-ViT's :math:`\log\sqrt2` quantizer (equation 9), which are those of a
    quantizer by powers of two with a scale that follows parity (equations 11 and 12): the change of base is exact.
    """
    count = 2**bits - 1
    values = [0.0, *(scale * 2 ** (-k / root) for k in range(count - 1, -1, -1))]
    bounds = [scale * 2 ** (-(k + 0.5) / root) for k in range(count - 1, -1, -1)]
    return Table(tuple(values), tuple(bounds))


def log_levels(weights: Tensor, bits: int, root: int = 2) -> Table:
    """Return the levels by powers whose scale leaves the least squared error on attention weights."""
    seen = sampled(weights)
    scales = sorted({float(_quantile(seen[:, None], share)) for share in QUANTILES})
    return nearest(seen, [log_table(max(scale, _LEAST), bits, root) for scale in scales])


def shift_log_table(shift: float, bits: int) -> Table:
    r"""Return the levels of I&S-ViT's shift-uniform-log2 quantizer (equations 8 to 10).

    ``2 ** -round(y) - shift``, where ``y`` are levels evenly spaced over the range of :math:`-\log_2(x + shift)`, ``x``
    from 0 to 1: whole powers of two, so that a product with them is a shift.
    """
    low, high = -math.log2(1 + shift), -math.log2(shift)
    step = (high - low) / (2**bits - 1)
    rising = range(2**bits - 1, -1, -1)
    values = tuple(2.0 ** -round(low + step * k) - shift for k in rising)
    return Table(values, tuple(2.0 ** -(low + step * (k - 0.5)) - shift for k in rising[:-1]))


def shift_log_levels(weights: Tensor, bits: int) -> Table:
    """Return the shift-uniform-log2 levels whose shift leaves the least squared error on attention weights."""
    seen = sampled(weights)
    return nearest(seen, [shift_log_table(2.0**-power, bits) for power in torch.arange(2, 14, 0.5).tolist()])


def nearest(values: Tensor, tables: Sequence[Table]) -> Table:
    """Return the table of the least squared error."""
    errors = [float((table(values) - values).square().mean()) for table in tables]
    return tables[errors.index(min(errors))]
