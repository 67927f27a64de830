"""Packing: unsigned integers of 1 to 8 bits in bytes, as planes of 4, 2 and 1 bits, so that each plane fills bytes."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BITS = 8


def planes(bits: int) -> tuple[int, ...]:
    """Return the planes of so many bits, the highest first: 3 bits are a plane of 2 and one of 1."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_bytes(columns: int, bits: int) -> int:
    """Return the bytes that a row of so many integers takes."""
    return sum(-(-columns * width // 8) for width in planes(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return integers below ``2 ** bits`` as bytes.

    Parameters
    ----------
    codes : Tensor of uint8, shape ``(n, columns)``
    bits : int

    Returns
    -------
    Tensor of uint8, shape ``(n, packed_bytes(columns, bits))``
    """
    parts, left = [], bits
    for width in planes(bits):
        left -= width
        plane = (codes >> left) & ((1 << width) - 1)
        each = 8 // width
        # A byte holds columns that are far apart, so that whole rows are shifted at once.
        plane = torch.nn.functional.pad(plane, (0, -plane.shape[-1] % each)).view(len(plane), each, -1)
        packed = plane[:, 0]
        for place in range(1, each):
            packed = packed | (plane[:, place] << place * width)
        parts.append(packed)
    return torch.cat(parts, dim=-1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the integers that `pack` packed, uint8 of shape ``(n, columns)``."""
    codes, at, left = None, 0, bits
    for width in planes(bits):
        left -= width
        size = -(-columns * width // 8)
        part = packed[:, at : at + size]
        at += size
        if width < 8:
            mask = (1 << width) - 1
            part = torch.cat([(part >> place * width) & mask for place in range(8 // width)], dim=-1)[:, :columns]
        codes = part << left if codes is None else codes | (part << left)
    assert codes is not None
    return codes
