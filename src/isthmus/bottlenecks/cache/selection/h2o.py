"""Accumulated attention: entries that drew most of it so far stay (H2O; Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from isthmus.bottlenecks.cache.roles import Look
from isthmus.bottlenecks.cache.selection.base import BaseSelector


@dataclass(frozen=True)
class AccumulatedAttention(BaseSelector):
    """The heavy hitters: the largest sums of attention over all queries, averaged over the group of query heads."""

    name: ClassVar[str] = "h2o"
    rows: ClassVar[Literal["none", "window", "all"]] = "all"
    channels: ClassVar[int] = 1

    def observe(self, look: Look) -> Tensor:
        """Return the attention that each entry drew, ``(B, H, N, 1)``."""
        return look.total(look.probs)[..., None]
