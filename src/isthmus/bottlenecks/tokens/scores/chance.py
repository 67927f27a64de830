"""Chance: the baseline that every score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isthmus.bottlenecks.tokens.look import Look, Scored

_PRIME = 32749


@dataclass(frozen=True)
class Chance:
    """Numbers that depend on seed, layer and place alone, so that the same tokens leave in every run and engine.

    Parameters
    ----------
    seed : int
    """

    name: ClassVar[str] = "random"
    slug: ClassVar[str | None] = None
    shares: ClassVar[bool] = False
    halves: ClassVar[bool] = False

    seed: int = 0

    def scored(self, look: Look) -> Scored:
        """Return numbers from 0 to below 32749, shape ``(B, n)``; all products stay within 32 bits."""
        rows, count = look.hidden.shape[:2]
        here = torch.arange(count, device=look.hidden.device)
        mixed = (here * 10007 + (self.seed % _PRIME) * 7 + look.layer * 613 + 1) % _PRIME
        mixed = (mixed * mixed + here * 31) % _PRIME
        mixed = (mixed * mixed + here) % _PRIME
        return Scored(mixed.to(torch.float32).expand(rows, count))

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return 0: nothing is multiplied but integers."""
        return 0
