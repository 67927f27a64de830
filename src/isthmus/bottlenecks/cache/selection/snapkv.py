"""SnapKV: the entries that the last queries attend to stay, with their neighbours (Li et al. 2024, arXiv 2404.14469).

Of a prompt the last ``window`` queries are looked at; later on, at each choice, the queries since the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, keep_preferred
from isthmus.bottlenecks.cache.selection.base import BaseSelector
from isthmus.errors import BadInput


@dataclass(frozen=True)
class SnapKv(BaseSelector):
    """Attention of the last queries, averaged over neighbouring entries.

    Parameters
    ----------
    queries : int
        How many of a prompt's last queries vote.
    kernel : int
        Neighbours that an average runs over; odd.

    Raises
    ------
    BadInput
        If there are no queries, or the kernel is not odd.
    """

    name: ClassVar[str] = "snapkv"
    rows: ClassVar[Literal["none", "window", "all"]] = "window"
    channels: ClassVar[int] = 1
    fresh: ClassVar[bool] = True

    queries: int = 16
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.queries < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise BadInput(f"snapkv: {self.queries} queries, kernel {self.kernel}; choose 1 or more, and an odd kernel")

    @property
    def window(self) -> int:
        """Return how many queries vote."""
        return self.queries

    def observe(self, look: Look) -> Tensor:
        """Return the attention that each entry drew, ``(B, H, N, 1)``."""
        return look.total(look.probs)[..., None]

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep those that drew most with their neighbours."""
        return keep_preferred(candidates, pooled(candidates.stats[..., 0], candidates.real, self.kernel), allowed)


def pooled(score: Tensor, real: Tensor, kernel: int) -> Tensor:
    """Return the mean of each score and those of the entries around it; beyond the ends there are zeros.

    Parameters
    ----------
    score : Tensor, shape ``(B, H, N)``
    real : Tensor of bool, shape ``(B, H, N)``
        Places that are not entries are passed over: neighbours are entries.
    kernel : int
    """
    order = torch.sort(real, dim=-1, descending=True, stable=True).indices
    ordered = torch.gather(score.masked_fill(~real, 0.0), -1, order)
    means = torch.nn.functional.avg_pool1d(ordered, kernel, stride=1, padding=kernel // 2)
    return torch.zeros_like(score).scatter_(-1, order, means)
