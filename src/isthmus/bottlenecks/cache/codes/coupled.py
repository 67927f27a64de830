"""Coupled quantization: channels of a head coded together by a learned table (Zhang et al. 2024, arXiv 2405.03917).

``channels`` neighbouring channels become one index of ``bits`` bits: at 8 channels and 8 bits a channel costs one bit.
The tables, one for each head and group of channels, are learnt by k-means on the keys and values of calibration texts,
weighed by Fisher information where that is given; all sequences share them. Keys are coded as they enter the cache,
after their rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.packing import pack, packed_bytes, unpack
from isthmus.bottlenecks.cache.roles import Form, Span, Tensors
from isthmus.bottlenecks.codebook.kmeans import kmeans
from isthmus.errors import BadInput


@dataclass(frozen=True, eq=False)
class Coupled:
    """Indices into tables of coupled channels.

    Parameters
    ----------
    bits : int
        Of an index, 1 to 8.
    key_tables, value_tables : Tensor, shape ``(H, groups, 2 ** bits, channels)``
        From `learnt`.

    Raises
    ------
    BadInput
        If the tables are not of that shape, or not finite.
    """

    name: ClassVar[str] = "coupled"
    slug: ClassVar[str | None] = "coupled-quantization"

    bits: int
    key_tables: Tensor = field(repr=False)
    value_tables: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        for tables in (self.key_tables, self.value_tables):
            if not 1 <= self.bits <= 8 or tables.ndim != 4 or tables.shape[2] != 1 << self.bits:
                raise BadInput(
                    f"coupled quantization: {self.bits} bits with tables of shape {list(tables.shape)};"
                    " give 1 to 8 bits and (heads, groups, 2 ** bits, channels)"
                )
            if not bool(torch.isfinite(tables).all()):
                raise BadInput(
                    "coupled quantization: a table is not finite; learn it again from finite keys and values"
                )

    @property
    def group(self) -> int:
        """Return 0: no entries share scales."""
        return 0

    def encode(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensors, Tensors]:
        """Return the packed indices of each entry."""
        return {
            "keys": self._indices(keys, self.key_tables, span),
            "values": self._indices(values, self.value_tables, span),
        }, {}

    def decode(self, entries: Tensors, groups: Tensors, span: Span, form: Form) -> tuple[Tensor, Tensor]:
        """Return what the tables say."""
        return (
            self._looked_up(entries["keys"], self.key_tables, span, form),
            self._looked_up(entries["values"], self.value_tables, span, form),
        )

    def _indices(self, numbers: Tensor, tables: Tensor, span: Span) -> Tensor:
        heads, groups, _, channels = tables.shape
        if numbers.shape[1] != groups * channels or (len(span.heads) and int(span.heads.max()) >= heads):
            raise BadInput(
                f"coupled quantization: tables for {heads} heads of {groups * channels} channels and entries of"
                f" {numbers.shape[1]}; learn tables for this layer"
            )
        vectors = numbers.float().reshape(-1, groups, channels)
        out = torch.empty((len(numbers), groups), dtype=torch.uint8, device=numbers.device)
        for head in range(heads):
            own = span.heads == head
            # Nearest by |v - c|^2 = |c|^2 - 2 v c and a constant.
            table = tables[head].float().to(numbers.device)
            distance = table.square().sum(-1)[:, None] - 2 * vectors[own].transpose(0, 1) @ table.transpose(-1, -2)
            out[own] = distance.argmin(-1).T.to(torch.uint8)
        return pack(out, self.bits)

    def _looked_up(self, packed: Tensor, tables: Tensor, span: Span, form: Form) -> Tensor:
        groups, channels = tables.shape[1], tables.shape[3]
        indices = unpack(packed, self.bits, groups).long()
        flat = tables.to(packed.device, form.dtype).flatten(0, 2)
        at = (span.heads[:, None] * groups + torch.arange(groups, device=packed.device)) << self.bits
        return flat[at + indices].view(len(packed), groups * channels)

    def sizes(self, key_dim: int, value_dim: int, item: int) -> tuple[int, int]:
        """Return the bytes of an entry, and 0."""
        pairs = ((key_dim, self.key_tables), (value_dim, self.value_tables))
        return sum(packed_bytes(dim // tables.shape[3], self.bits) for dim, tables in pairs), 0

    def shared_bytes(self) -> int:
        """Return the bytes of both tables."""
        return sum(tables.untyped_storage().nbytes() for tables in (self.key_tables, self.value_tables))


def learnt(
    keys: Tensor,
    values: Tensor,
    *,
    channels: int = 8,
    bits: int = 8,
    weights: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Coupled:
    """Learn the tables of one layer.

    Parameters
    ----------
    keys, values : Tensor, shape ``(B, H, T, D)``
        What entered the cache on calibration texts; ``B * T`` at least ``2 ** bits``.
    channels : int
        Coupled in one index; divides D.
    bits : int
    weights : mapping or None
        ``keys`` and ``values`` of the same shapes: squared gradients of the loss, by which errors count (section 3.3).
    seed : int

    Raises
    ------
    BadInput
        If channels do not divide D, numbers are not finite, or there are too few of them.
    """
    made = {}
    for name, numbers in (("keys", keys), ("values", values)):
        if numbers.ndim != 4 or channels < 1 or numbers.shape[3] % channels:
            raise BadInput(
                f"coupled quantization: {channels} channels do not divide {name} of shape {list(numbers.shape)}"
            )
        if not bool(torch.isfinite(numbers).all()):
            raise BadInput(f"coupled quantization: {name} are not finite; check the network and its precision")
        count = numbers.shape[0] * numbers.shape[2]
        if count < 1 << bits:
            raise BadInput(
                f"coupled quantization: {count} {name} for tables of {1 << bits}; take more text or fewer bits"
            )
        own = None if weights is None else _by_group(weights[name], channels)
        made[name] = _tables(_by_group(numbers, channels), own, bits, seed)
    return Coupled(bits, made["keys"], made["values"])


def _by_group(numbers: Tensor, channels: int) -> Tensor:
    """Return ``(B, H, T, D)`` as ``(H, groups, B * T, channels)``."""
    rows, heads, length, dim = numbers.shape
    split = numbers.detach().float().reshape(rows, heads, length, dim // channels, channels)
    return split.permute(1, 3, 0, 2, 4).flatten(2, 3)


def _tables(vectors: Tensor, weights: Tensor | None, bits: int, seed: int) -> Tensor:
    heads, groups = vectors.shape[:2]
    tables = torch.zeros((heads, groups, 1 << bits, vectors.shape[3]), dtype=torch.float16)
    for head in range(heads):
        for group in range(groups):
            own = None if weights is None else weights[head, group].numpy()
            table, _ = kmeans(vectors[head, group].numpy(), 1 << bits, weights=own, seed=seed)
            tables[head, group, : len(table)] = torch.from_numpy(table).half()
    return tables
