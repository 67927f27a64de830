"""Recycled attention: between full steps only the entries that the last full step attended to most are read.

Xu et al. 2024, arXiv 2411.05787. The whole cache stays; what is saved is reading. A step is full every ``stride``
steps, or sooner where the query has turned away from that of the last full step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.reading.reader import Read, Reads
from isthmus.bottlenecks.cache.roles import Tensors
from isthmus.errors import BadInput


@dataclass(frozen=True)
class Recycled:
    """The ``top`` entries of the last full step, until the next.

    Parameters
    ----------
    top : int
        Entries of history that a step between reads.
    stride : int
        Steps from one full step to the next.
    similarity : float
        A step is full where the mean cosine of its queries with those of the last full step is below it; -1: by stride
        alone.

    Raises
    ------
    BadInput
        If there are no entries or steps, or the similarity is not a cosine.
    """

    name: ClassVar[str] = "recycled-attention"
    slug: ClassVar[str | None] = "recycled-attention"

    centred: ClassVar[bool] = False

    top: int = 64
    stride: int = 8
    similarity: float = -1.0

    def __post_init__(self) -> None:
        if self.top < 1 or self.stride < 1 or not -1 <= self.similarity <= 1:
            raise BadInput(
                f"recycled attention: top {self.top}, stride {self.stride}, similarity {self.similarity};"
                " choose 1 or more, 1 or more, and -1 to 1"
            )

    @property
    def entry_bytes(self) -> int:
        """Return 0: no more is held for an entry."""
        return 0

    def extras(self, keys: Tensor, state: Reads, mean: Tensor) -> Tensors:
        """Return nothing: no more is held for an entry."""
        return {}

    def joined(self, state: Reads, which: Tensor) -> None:
        """Let the next step be full for rows whose history grew."""
        if "since" in state.held:
            state.held["since"] = state.held["since"].masked_fill(which, self.stride)

    def read(self, query: Tensor, history: History, state: Reads, scaling: float) -> Read | None:
        """Return the entries of the last full step; all, for rows whose step is to be full."""
        due = self._due(query, state)
        if due is None or bool(due.all()):
            state.held.pop("due", None)
            return None
        state.held["due"] = due
        state.held["since"] = state.held["since"] + 1
        index = state.held["index"].long()
        chosen = (index >= 0) & (index < history.counts[..., None])
        if not bool(due.any()):
            keys, values = history.look_up(index.clamp_min(0))
            return Read(keys, values, chosen[:, :, None, None], float(chosen.sum(-1).float().mean()))
        # Rows that are due read everything; the others see what they would see alone.
        keys, values = history.dense()
        own = torch.zeros((*index.shape[:2], keys.shape[2] + 1), dtype=torch.bool, device=keys.device)
        own.scatter_(2, torch.where(chosen, index, keys.shape[2]), True)
        seen = torch.where(due[:, None, None], history.real(), own[..., :-1])
        return Read(keys, values, seen[:, :, None, None], float(seen.sum(-1).float().mean()), whole=True)

    def _due(self, query: Tensor, state: Reads) -> Tensor | None:
        """Return which rows are to have a full step, bool of shape ``(B,)``; None before the first."""
        if "index" not in state.held:
            return None
        due = state.held["since"] >= self.stride
        if self.similarity > -1:
            before = state.held["query"].float()
            near = torch.nn.functional.cosine_similarity(query.float(), before, dim=-1).mean((1, 2, 3))
            due = due | (near < self.similarity)
        return due

    def learn(self, query: Tensor, probs: Tensor, history: History, state: Reads) -> None:
        """Keep which entries of history, of ``probs`` ``(B, H, G, Q, n)``, a full step attended to most."""
        mass = probs[:, :, :, -1].mean(2).masked_fill(~history.real(), -1.0)
        found = mass.topk(min(self.top, mass.shape[-1]), dim=-1)
        index = found.indices.masked_fill(found.values < 0, -1).int()
        index = torch.nn.functional.pad(index, (0, self.top - index.shape[-1]), value=-1)
        last, since = query[:, :, :, -1:], torch.ones(len(index), dtype=torch.int64, device=index.device)
        due = state.held.pop("due", None)
        if due is not None:
            index = torch.where(due[:, None, None], index, state.held["index"])
            last = torch.where(due[:, None, None, None, None], last, state.held["query"])
            since = torch.where(due, since, state.held["since"])
        state.held |= {"index": index, "query": last.clone(), "since": since}
