"""Key norm: entries with short keys stay (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.selection.base import BaseSelector


@dataclass(frozen=True)
class KeyNorm(BaseSelector):
    """The entries whose keys have the smallest Euclidean norm stay: these tend to draw attention."""

    name: ClassVar[str] = "key-norm"
    channels: ClassVar[int] = 1

    def born(self, keys: Tensor) -> Tensor | None:
        """Return the norms of keys, negative, shape ``(B, H, new, 1)``."""
        norms: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1, keepdim=True)
        return -norms
