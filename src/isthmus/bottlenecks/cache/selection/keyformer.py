"""Keyformer: accumulated attention under Gumbel noise and a rising temperature (Adnan et al. 2024, arXiv 2403.09054).

``score += softmax((logit + gumbel) / tau)``, equation 9: noise keeps entries that the evicted ones would have outdone
by chance, and the temperature rises from ``start`` at the prompt to ``end`` after ``steps`` tokens were generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.attention import softmax
from isthmus.bottlenecks.cache.roles import Look
from isthmus.bottlenecks.cache.selection.base import BaseSelector
from isthmus.errors import BadInput


@dataclass(frozen=True)
class Keyformer(BaseSelector):
    """Key tokens by a regularised score.

    Parameters
    ----------
    start, end : float
        Temperatures.
    steps : int
        Generated tokens over which the temperature rises.
    seed : int
        Of the noise, which is the same for the same entry and query in any batch.

    Raises
    ------
    BadInput
        If a temperature or the steps are not above zero.
    """

    name: ClassVar[str] = "keyformer"
    slug: ClassVar[str | None] = "keyformer"
    rows: ClassVar[Literal["none", "window", "all"]] = "all"
    channels: ClassVar[int] = 1

    start: float = 1.0
    end: float = 2.0
    steps: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0 and self.steps > 0):
            raise BadInput(f"keyformer: temperatures {self.start} and {self.end}, {self.steps} steps; all above zero")

    def temperature(self, ordinals: Tensor, prompt: Tensor) -> Tensor:
        """Return the temperature of queries, shape ``(B, Q)``."""
        made = (ordinals - prompt[:, None] + 1).clamp(0, self.steps)
        return self.start + (self.end - self.start) * made / self.steps

    def observe(self, look: Look) -> Tensor:
        """Return the softmax of noisy logits, ``(B, H, N, 1)``."""
        noise = gumbel(look.ranks[:, :, None, :], look.ordinals[:, None, :, None], self.seed)[:, :, None]
        heat = self.temperature(look.ordinals, look.prompt)[:, None, None, :, None]
        return look.total(softmax((look.logits + noise) / heat))[..., None]


def gumbel(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """Return standard Gumbel noise that depends on two numbers and the seed alone.

    Parameters
    ----------
    first, second : Tensor of int64
        Broadcast against each other.
    """
    mixed = first * 0x9E3779B1 + second * 0x85EBCA77 + seed * 0xC2B2AE3D + 0x27D4EB2F
    for shift, factor in ((16, 0x7FEB352D), (15, 0x2C1B3C6D)):
        mixed = ((mixed ^ ((mixed >> shift) & 0xFFFF_FFFF)) * factor) & 0xFFFF_FFFF
    mixed = mixed ^ (mixed >> 16)
    uniform = (mixed.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform)).float()
