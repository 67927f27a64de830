"""Attention to the class token: tokens that it looks at stay (EViT; Liang et al. 2022, arXiv 2202.07800)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.bottlenecks.tokens.look import Look, Scored


@dataclass(frozen=True)
class ClassAttention:
    """The row of attention of the class token, averaged over heads, and over class tokens where there are several."""

    name: ClassVar[str] = "class-attention"
    slug: ClassVar[str | None] = None
    shares: ClassVar[bool] = True
    halves: ClassVar[bool] = False

    def scored(self, look: Look) -> Scored:
        """Return ``softmax(q_class K^T / sqrt(d))``, shape ``(B, n)``; only those rows are computed."""
        return Scored(look.attention(look.query[:, :, : look.prefix]).mean((1, 2)))

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return the multiply-accumulates of the class tokens' rows."""
        return prefix * tokens * width
