"""Uniform codes: keys by channel over groups of tokens, values by token, at 1 to 8 bits (as KIVI has it).

Liu et al. 2024, arXiv 2402.02750. A group of keys has for each channel a least value and a step, ``least + step c``;
values have them for each token and block of channels. Outlying channels of keys then widen no step but their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.packing import MOST_BITS, pack, packed_bytes, unpack
from isthmus.bottlenecks.cache.roles import Form, Span, Tensors
from isthmus.errors import BadInput

_MOST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Uniform:
    """Integers between the least and the largest value of a group.

    Parameters
    ----------
    key_bits, value_bits : int
        1 to 8.
    tokens : int
        Entries of a head whose keys share a step for each channel.
    channels : int
        Channels of a value that share a step; 0: all.
    key_axis : {"channel", "token"}
        ``token``: keys are coded as values are, as plain quantizers of caches do. An outlying channel then takes the
        levels of all others: the guard finds it.

    Raises
    ------
    BadInput
        If bits or sizes are out of range.
    """

    name: ClassVar[str] = "uniform"
    slug: ClassVar[str | None] = None

    key_bits: int = 4
    value_bits: int = 4
    tokens: int = 32
    channels: int = 0
    key_axis: Literal["channel", "token"] = "channel"

    def __post_init__(self) -> None:
        if not (1 <= self.key_bits <= MOST_BITS and 1 <= self.value_bits <= MOST_BITS):
            raise BadInput(
                f"cache bits: {self.key_bits} for keys, {self.value_bits} for values; choose 1 to {MOST_BITS}"
            )
        if self.tokens < 1 or self.channels < 0 or self.key_axis not in ("channel", "token"):
            raise BadInput(
                f"cache groups of {self.tokens} tokens and {self.channels} channels, keys by {self.key_axis!r};"
                " choose at least one token, and channel or token"
            )

    @property
    def group(self) -> int:
        """Return the tokens of a group; 0 where keys are coded by token."""
        return self.tokens if self.key_axis == "channel" else 0

    def encode(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensors, Tensors]:
        """Return integers as bytes for each entry, and the least values and steps of keys for each group.

        Raises
        ------
        BadInput
            If a key or value is not finite, or beyond what float16 holds.
        """
        for what, tensor in (("key", keys), ("value", values)):
            peak = float(tensor.abs().amax()) if tensor.numel() else 0.0
            if not peak <= _MOST / 2:
                raise BadInput(
                    f"cache: a {what} of magnitude {peak:.3g} has no code in bits; use the plain code for this layer"
                )
        entries: Tensors = {}
        groups: Tensors = {}
        if self.key_axis == "channel":
            least, most = _bounds(keys.float(), span, self.tokens)
            groups["key_grid"] = _grid(least, most, self.key_bits)
            entries["keys"] = _codes(keys.float(), groups["key_grid"][span.ids], self.key_bits)
        else:
            entries["key_grid"], entries["keys"] = _by_token(keys, self.key_bits, self.channels)
        entries["value_grid"], entries["values"] = _by_token(values, self.value_bits, self.channels)
        return entries, groups

    def decode(self, entries: Tensors, groups: Tensors, span: Span, form: Form) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``least + step c``."""
        key_dim, value_dim, dtype = form.key_dim, form.value_dim, form.dtype
        codes = unpack(entries["keys"], self.key_bits, key_dim)
        if self.key_axis == "token":
            keys = _from_token(codes, entries["key_grid"], dtype)
        else:
            grid = groups["key_grid"].to(dtype)
            if len(codes) == span.count * self.tokens:
                whole = codes.to(dtype).view(span.count, self.tokens, key_dim)
                keys = whole.mul_(grid[:, None, 1]).add_(grid[:, None, 0]).flatten(0, 1)
            else:
                own = grid[span.ids]
                keys = codes.to(dtype).mul_(own[:, 1]).add_(own[:, 0])
        return keys, _from_token(unpack(entries["values"], self.value_bits, value_dim), entries["value_grid"], dtype)

    def sizes(self, key_dim: int, value_dim: int, item: int) -> tuple[int, int]:
        """Return the bytes of an entry and of a group."""
        entry = packed_bytes(key_dim, self.key_bits) + packed_bytes(value_dim, self.value_bits)
        entry += 4 * _blocks(value_dim, self.channels)
        if self.key_axis == "token":
            return entry + 4 * _blocks(key_dim, self.channels), 0
        return entry, 4 * key_dim

    def shared_bytes(self) -> int:
        """Return 0: there are no tables."""
        return 0


def _blocks(dim: int, channels: int) -> int:
    return 1 if channels == 0 else -(-dim // channels)


def _bounds(keys: Tensor, span: Span, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the least and largest value of each group and channel, ``(count, D)`` each."""
    if len(keys) == span.count * tokens:
        whole = keys.view(span.count, tokens, -1)
        return whole.amin(1), whole.amax(1)
    index = span.ids[:, None].expand_as(keys)
    least = keys.new_full((span.count, keys.shape[1]), torch.inf).scatter_reduce(0, index, keys, "amin")
    most = keys.new_full((span.count, keys.shape[1]), -torch.inf).scatter_reduce(0, index, keys, "amax")
    return least, most


def _grid(least: Tensor, most: Tensor, bits: int) -> Tensor:
    """Return least values and steps, float16 of shape ``(n, 2, ...)``."""
    return torch.stack([least, (most - least) / ((1 << bits) - 1)], dim=1).half()


def _codes(numbers: Tensor, grid: Tensor, bits: int) -> Tensor:
    least, step = grid[:, 0].float(), grid[:, 1].float()
    levels = torch.where(step > 0, (numbers - least) / step.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return pack(levels.round().clamp(0, (1 << bits) - 1).to(torch.uint8), bits)


def _by_token(numbers: Tensor, bits: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return the grid, ``(n, 2, blocks)``, and the packed integers of numbers that are coded token by token."""
    count, dim = numbers.shape
    blocks = _blocks(dim, channels)
    size = -(-dim // blocks)
    # The last number fills up the last block: it moves no bound.
    filled = torch.cat([numbers.float(), numbers[:, -1:].float().expand(count, blocks * size - dim)], 1)
    whole = filled.view(count, blocks, size)
    grid = _grid(whole.amin(2), whole.amax(2), bits)
    return grid, _codes(numbers.float(), grid.repeat_interleave(size, 2)[..., :dim], bits)


def _from_token(codes: Tensor, grid: Tensor, dtype: torch.dtype) -> Tensor:
    own = grid.to(dtype)
    if own.shape[2] > 1:
        own = own.repeat_interleave(-(-codes.shape[1] // own.shape[2]), 2)[..., : codes.shape[1]]
    return codes.to(dtype).mul_(own[:, 1]).add_(own[:, 0])
