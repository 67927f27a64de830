"""Received attention: tokens that the others look at stay.

PoWER-BERT (Goyal et al. 2020, arXiv 2001.08950) calls it significance; what ``latency-adjustable-transformer`` and
``top-token-pruning`` rank tokens by, without their training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isthmus.bottlenecks.tokens.look import Look, Scored
from isthmus.errors import BadInput


@dataclass(frozen=True)
class ReceivedAttention:
    """The mean of a token's column of attention, over heads and over queries that count.

    Parameters
    ----------
    every : int
        Every so many queries are asked, from the first on: their rows are all that is computed.

    Raises
    ------
    BadInput
        If it is below 1.
    """

    name: ClassVar[str] = "received-attention"
    slug: ClassVar[str | None] = None
    shares: ClassVar[bool] = True
    halves: ClassVar[bool] = False

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadInput(f"tokens: {self.name} of every {self.every} queries; give 1 or more")

    def scored(self, look: Look) -> Scored:
        """Return ``sum_i a_ij / queries``, shape ``(B, n)``."""
        rows = look.attention(look.query[:, :, :: self.every]).mean(1)
        if look.held.real is None:
            return Scored(rows.mean(1))
        asked = look.held.real[:, :: self.every, None].to(rows.dtype)
        return Scored((rows * asked).sum(1) / torch.clamp(asked.sum(1), min=1.0))

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return the multiply-accumulates of the rows that are asked."""
        return -(-tokens // self.every) * tokens * width
