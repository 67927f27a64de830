"""Readers: which of the entries of history a step reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.roles import Tensors


@dataclass(frozen=True)
class Read:
    """What a step reads of history.

    Parameters
    ----------
    keys, values : Tensor, shape ``(B, H, K, D)``
    bias : Tensor, shape ``(B, H, 1 or G, 1, K)``
        Added to the logits; or bool: which may be seen.
    count : int
        Entries that were read for each head, on average.
    whole : bool
        Whether these are all entries of history, in order, so that the reader may learn from the step.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    count: float
    whole: bool = False


@dataclass
class Reads:
    """What a reader holds from step to step, and the count of what was read."""

    held: Tensors = field(default_factory=dict)
    steps: int = 0
    read: float = 0.0
    """Entries of history read for each head, summed over the steps."""
    full: float = 0.0
    """Entries of history that there were, summed over the steps."""


class Reader(Protocol):
    """Says which entries of history a step reads. A frozen dataclass; what it holds is in `Reads`."""

    name: ClassVar[str]
    slug: ClassVar[str | None]

    centred: ClassVar[bool]
    """Whether it needs mean keys, which are then held."""

    @property
    def entry_bytes(self) -> int:
        """Bytes that are held beside an entry of history."""

    def extras(self, keys: Tensor, state: Reads, mean: Tensor) -> Tensors:
        """Return what is held beside entries that join history, ``(n, ...)``.

        Parameters
        ----------
        keys : Tensor, shape ``(n, D)``
        mean : Tensor, shape ``(n, D)``
            The mean key of the head of each at the first time that entries joined.
        """

    def joined(self, state: Reads, which: Tensor) -> None:
        """Learn that entries joined the history of rows, bool of shape ``(B,)``."""

    def read(self, query: Tensor, history: History, state: Reads, scaling: float) -> Read | None:
        """Return what a step with the queries ``(B, H, G, 1, D)`` reads, None: all."""

    def learn(self, query: Tensor, probs: Tensor, history: History, state: Reads) -> None:
        """Look at a full step."""
