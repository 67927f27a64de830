"""What a score sees of a layer, what it says, and which tokens stay by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.held import Held

Stays = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Look:
    """A layer after it ran, ``B`` rows of ``n`` tokens, ``H`` heads of width ``d``.

    Parameters
    ----------
    hidden : Tensor, shape ``(B, n, width)``
        What left the layer.
    query, key : Tensor, shape ``(B, H, n, d)``
    scaling : float
        Of the logits.
    held : Held
    prefix : int
        How many tokens come before those of the example: class tokens, registers.
    layer : int
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    scaling: float
    held: Held
    prefix: int
    layer: int

    def attention(self, queries: Tensor) -> Tensor:
        """Return what some queries ``(B, H, q, d)`` look at, float32 of shape ``(B, H, q, n)``; only these rows."""
        logits = (queries @ self.key.transpose(-1, -2)).float() * self.scaling
        bias = self.held.bias(logits.dtype)
        return torch.softmax(logits if bias is None else logits + bias, -1)


@dataclass(frozen=True)
class Scored:
    """What a score says of tokens.

    Parameters
    ----------
    values : Tensor, shape ``(B, n)``
        The larger, the sooner it stays.
    partners : Tensor of int64, shape ``(B, n)``, or None
        The token that each would be merged into; those that are partners stay. None: the nearest that stays.
    """

    values: Tensor
    partners: Tensor | None = None


@runtime_checkable
class Score(Protocol):
    """Says which tokens stay sooner; a frozen dataclass of its options."""

    name: ClassVar[str]
    slug: ClassVar[str | None]
    shares: ClassVar[bool]
    """Whether values are shares of attention, so that a schedule of attention mass can add them up."""
    halves: ClassVar[bool]
    """Whether tokens are paired, so that no more than half can leave a layer."""

    def scored(self, look: Look) -> Scored:
        """Return what it says of the tokens after a layer."""
        ...

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return the multiply-accumulates of scoring one row of tokens; all heads together are ``width`` wide."""
        ...


@dataclass(frozen=True)
class Choice:
    """Which tokens stay.

    Parameters
    ----------
    kept, gone : Tensor of int64, shapes ``(B, k)`` and ``(B, n - k)``
        Those that are held on and those that are not. The kept are in their old order, then what fills up the row.
    kept_real, gone_real : Tensor of bool, of the same shapes, or None
        Which of the kept count, and which of the gone counted.
    """

    kept: Tensor
    gone: Tensor
    kept_real: Tensor | None
    gone_real: Tensor | None


def chosen(scored: Scored, held: Held, prefix: int, left: int, stays: Stays | None = None) -> Choice:
    """Choose the tokens that stay: those before the example's, then by value.

    A row with padding keeps by its own length, not by that of the longest, so that it holds what it would alone.

    Parameters
    ----------
    left : int
        How many are held on in every row.
    stays : callable, optional
        Which ranks ``(B, n)`` stay in a row that has so many tokens that count, ``(B, 1)``; no more than ``left`` may.
        Not asked where all rows are alike: the first ``left`` stay.
    """
    count = scored.values.shape[1]
    here = torch.arange(count, device=scored.values.device)
    values = torch.where(here < prefix, torch.inf, scored.values.float())
    if held.real is not None:
        values = torch.where(held.real, values, -torch.inf)
    rank = values.argsort(1, descending=True).argsort(1)
    if stays is None:
        stay = rank < left
    elif held.real is None:
        stay = stays(rank, torch.full_like(rank[:, :1], count))
    else:
        stay = stays(rank, held.real.sum(1, keepdim=True))
    # First what stays, then what does not count, last what leaves, each in its old order: all keys are different, for
    # engines do not agree on the order of equals.
    counted = torch.ones_like(stay) if held.real is None else held.real
    group = torch.where(stay, 0, torch.where(counted, 2, 1))
    order = (group * count + here).argsort(1)
    kept, gone = order[:, :left], order[:, left:]
    if stays is None:
        return Choice(kept, gone, None, None)
    return Choice(kept, gone, stay.gather(1, kept), counted.gather(1, gone))
