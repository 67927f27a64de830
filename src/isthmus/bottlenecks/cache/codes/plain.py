"""Plain entries: keys and values as the network made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isthmus.bottlenecks.cache.roles import Form, Span, Tensors


@dataclass(frozen=True)
class Plain:
    """Keys and values in the precision that the network computes in."""

    name: ClassVar[str] = "plain"
    slug: ClassVar[str | None] = None

    @property
    def group(self) -> int:
        """Return 0: nothing is shared."""
        return 0

    def encode(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensors, Tensors]:
        """Return them as they are."""
        return {"keys": keys, "values": values}, {}

    def decode(self, entries: Tensors, groups: Tensors, span: Span, form: Form) -> tuple[Tensor, Tensor]:
        """Return them as they are."""
        return entries["keys"], entries["values"]

    def sizes(self, key_dim: int, value_dim: int, item: int) -> tuple[int, int]:
        """Return the bytes of an entry, and 0."""
        return (key_dim + value_dim) * item, 0

    def shared_bytes(self) -> int:
        """Return 0."""
        return 0
