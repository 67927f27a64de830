"""What a method of the cache is: it selects entries, codes them, or says which of them a step reads.

Shapes in this package: B rows of a batch, H key-value heads, G query heads for each of them, Q queries, N entries that
queries look at, n flat entries (of all rows and heads, one after another), D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Look:
    """What queries saw of the entries.

    Parameters
    ----------
    logits : Tensor of float32, shape ``(B, H, G, Q, N)``
        Scaled products of queries and keys; -inf where an entry is hidden.
    probs : Tensor of float32, shape ``(B, H, G, Q, N)``
        Their softmax.
    watch : Tensor of bool, shape ``(B, Q)``
        Which queries count: real tokens, and of these the last ones for a method that looks at a window.
    late : Tensor of bool, shape ``(B, Q)``
        Which are among the last `Selector.window` real ones.
    ordinals : Tensor of int64, shape ``(B, Q)``
        The how-manieth real token of its row a query is.
    ranks : Tensor of int64, shape ``(B, H, N)``
        The how-manieth held entry of its head an entry is, whatever the padding.
    prompt : Tensor of int64, shape ``(B,)``
        Real tokens of the first call.
    """

    logits: Tensor
    probs: Tensor
    watch: Tensor
    late: Tensor
    ordinals: Tensor
    ranks: Tensor
    prompt: Tensor

    def total(self, value: Tensor, which: Tensor | None = None) -> Tensor:
        """Return ``(B, H, G, Q, N)`` summed over the queries that count, and averaged over the group: ``(B, H, N)``."""
        counted = (self.watch if which is None else self.watch & which)[:, None, None, :, None]
        return torch.where(counted, value, 0.0).sum(3).mean(2)


@dataclass(frozen=True)
class Candidates:
    """Entries to choose from, in the order of time: those that history holds, then those that would join it.

    Parameters
    ----------
    stats : Tensor of float32, shape ``(B, H, N, C)``
        What `Selector.observe` added up.
    real : Tensor of bool, shape ``(B, H, N)``
        False where a row has fewer entries than others.
    past : int
        How many of the N are in history.
    keys, values : Tensor, shape ``(B, H, N - past, D)``
        Of those that would join it.
    flushing : Tensor of bool, shape ``(B,)``
        Rows of which entries join now.
    """

    stats: Tensor
    real: Tensor
    past: int
    keys: Tensor
    values: Tensor
    flushing: Tensor


@dataclass(frozen=True)
class Choice:
    """What stays.

    Parameters
    ----------
    past : Tensor of bool, shape ``(B, H, past)``
    tiers : Tensor of int64, shape ``(B, H, new)``
        The code that holds a new entry, -1: none.
    keys, values : Tensor, shape ``(B, H, new, D)``
        New entries, changed where others were merged into them.
    """

    past: Tensor
    tiers: Tensor
    keys: Tensor
    values: Tensor


class Selector(Protocol):
    """Chooses which entries stay. A frozen dataclass without state."""

    name: ClassVar[str]
    slug: ClassVar[str | None]
    rows: ClassVar[Literal["none", "window", "all"]]
    """Queries whose attention it needs to see of a prompt."""
    channels: ClassVar[int]
    """Numbers that it keeps for each entry."""
    fresh: ClassVar[bool]
    """Whether they start at zero again after each choice."""
    tiers: ClassVar[int]
    """Codes that it needs, the finest first."""

    @property
    def window(self) -> int:
        """Queries at the end of a prompt that count as late."""

    def born(self, keys: Tensor) -> Tensor | None:
        """Return what entries start with, ``(B, H, new, C)``; None: zeros."""

    def observe(self, look: Look) -> Tensor:
        """Return what a look adds to the numbers of each entry, shape ``(B, H, N, C)``."""

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Return what stays of the candidates: at most ``allowed`` a head (on average over the heads)."""


class Span:
    """Flat entries that are coded in one go: their groups and their heads, found when a code asks for them.

    Parameters
    ----------
    ids : Tensor of int64, shape ``(n,)``, or a function that returns it
        The group of each, rising.
    count : int
        Groups.
    heads : Tensor of int64, shape ``(n,)``, or a function that returns it
        The head of each.
    """

    def __init__(self, ids: Tensor | Callable[[], Tensor], count: int, heads: Tensor | Callable[[], Tensor]) -> None:
        self._ids, self.count, self._heads = ids, count, heads

    @property
    def ids(self) -> Tensor:
        """Return the group of each entry."""
        return self._ids if isinstance(self._ids, Tensor) else self._ids()

    @property
    def heads(self) -> Tensor:
        """Return the head of each entry."""
        return self._heads if isinstance(self._heads, Tensor) else self._heads()


@dataclass(frozen=True)
class Form:
    """What keys and values are like: channels of a key and of a value, and the precision of both."""

    key_dim: int
    value_dim: int
    dtype: torch.dtype


class Code(Protocol):
    """Turns keys and values into what is held, and back. A frozen dataclass without state."""

    name: ClassVar[str]
    slug: ClassVar[str | None]

    @property
    def group(self) -> int:
        """Entries of a head that share scales; 0: none do."""

    def encode(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensors, Tensors]:
        """Return what is held for each entry, ``(n, ...)``, and for each group, ``(count, ...)``."""

    def decode(self, entries: Tensors, groups: Tensors, span: Span, form: Form) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``(n, D)`` each."""

    def sizes(self, key_dim: int, value_dim: int, item: int) -> tuple[int, int]:
        """Return the bytes of an entry and of a group, where plain numbers take ``item`` bytes."""

    def shared_bytes(self) -> int:
        """Return the bytes of tables that all entries of a layer share."""


def best(preference: Tensor, real: Tensor, count: Tensor) -> Tensor:
    """Return which entries are the ``count`` most preferred of their head; of equal ones the newer.

    Parameters
    ----------
    preference : Tensor, shape ``(B, H, N)``
    real : Tensor of bool, shape ``(B, H, N)``
    count : Tensor of int64, shape ``(B, H)``

    Returns
    -------
    Tensor of bool, shape ``(B, H, N)``
    """
    wanted = preference.masked_fill(~real, -torch.inf).flip(-1)
    order = torch.sort(wanted, dim=-1, descending=True, stable=True).indices
    places = torch.empty_like(order)
    places.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return (places.flip(-1) < count[..., None]) & real


def keep_preferred(candidates: Candidates, preference: Tensor, allowed: int | None) -> Choice:
    """Return the choice of the ``allowed`` most preferred entries of each head, all in the first code."""
    keep = candidates.real
    if allowed is not None:
        keep = best(preference, candidates.real, torch.full(keep.shape[:2], allowed, device=keep.device))
    return in_first_tier(candidates, keep)


def in_first_tier(candidates: Candidates, keep: Tensor) -> Choice:
    """Return the choice that keeps what ``keep``, shape ``(B, H, N)``, says, new entries in the first code."""
    fresh = keep[..., candidates.past :]
    return Choice(keep[..., : candidates.past], fresh.long() - 1, candidates.keys, candidates.values)
