"""Scissorhands: entries that were pivotal for the last queries stay (Liu et al. 2023, arXiv 2305.17118).

An entry is pivotal for a query that gives it more than the average attention, ``1 / entries`` (algorithm 2). Whether
such entries stay pivotal is what the method rests on: `persistence` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Look
from isthmus.bottlenecks.cache.selection.base import BaseSelector
from isthmus.errors import BadInput


@dataclass(frozen=True)
class Scissorhands(BaseSelector):
    """The entries that were pivotal for most of the last queries.

    Parameters
    ----------
    queries : int
        How many of a prompt's last queries count; later on those since the last choice.

    Raises
    ------
    BadInput
        If there are none.
    """

    name: ClassVar[str] = "scissorhands"
    slug: ClassVar[str | None] = "scissorhands"
    rows: ClassVar[Literal["none", "window", "all"]] = "window"
    channels: ClassVar[int] = 1
    fresh: ClassVar[bool] = True

    queries: int = 64

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise BadInput(f"scissorhands: {self.queries} queries; choose 1 or more")

    @property
    def window(self) -> int:
        """Return how many queries count."""
        return self.queries

    def observe(self, look: Look) -> Tensor:
        """Return for how many queries each entry was pivotal, ``(B, H, N, 1)``."""
        visible = torch.isfinite(look.logits).sum(-1, keepdim=True).clamp_min(1)
        return look.total((look.probs > 1.0 / visible).float())[..., None]


@dataclass(frozen=True)
class Persistence:
    """How far importance persists in a layer.

    Parameters
    ----------
    ratio : float
        Of the entries of the first half that are pivotal in the second half, the share that was so in the first.
    chance : float
        The share of all entries of the first half that was pivotal there: what ``ratio`` would be by chance.
    """

    ratio: float
    chance: float


def persistence(probs: Tensor) -> Persistence:
    """Return the persistence of importance (definition 3.2 there), averaged over rows and heads.

    Parameters
    ----------
    probs : Tensor, shape ``(B, heads, T, T)``
        Causal attention of one layer; T is 4 or more.

    Raises
    ------
    BadInput
        If it is of another shape.
    """
    length = probs.shape[-1]
    if probs.ndim != 4 or probs.shape[-2] != length or length < 4:
        raise BadInput(f"persistence: attention of shape {list(probs.shape)}; give (rows, heads, T, T), T 4 or more")
    visible = torch.arange(1, length + 1, device=probs.device)[:, None]
    pivotal = probs > 1.0 / visible
    half = length // 2
    before = pivotal[..., :half, :half].any(-2)
    after = pivotal[..., half:, :half].any(-2)
    both = (before & after).sum(-1).double()
    counted = after.sum(-1).double()
    ratio = torch.where(counted > 0, both / counted.clamp_min(1), 1.0).mean()
    return Persistence(float(ratio), float(before.double().mean()))
