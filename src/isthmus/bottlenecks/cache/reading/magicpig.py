r"""MagicPIG: attention estimated from keys that hashing samples (Chen et al. 2024, arXiv 2410.16179).

Keys, centred, are hashed by ``tables`` times ``bits`` random hyperplanes; a query samples the keys that collide with it
in at least two tables. With the angle :math:`\theta` between them a bit agrees with probability
:math:`p = 1 - \theta / \pi`, so that a key is sampled with probability
:math:`u = 1 - (1 - p^K)^L - L p^K (1 - p^K)^{L-1}`, and its weight :math:`\exp(q \cdot k)` is divided by :math:`u`.
The whole cache stays, and the hashes beside it; what is saved is reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.reading.reader import Read, Reads
from isthmus.bottlenecks.cache.roles import Tensors
from isthmus.errors import BadInput


@dataclass(frozen=True)
class MagicPig:
    """Keys that collide with the query in two tables or more.

    Parameters
    ----------
    bits : int
        Of a hash, 1 to 8.
    tables : int
        Hashes of a key, 2 or more: so many bytes more for each entry.
    seed : int
        Of the hyperplanes.

    Raises
    ------
    BadInput
        If bits or tables are out of range.
    """

    name: ClassVar[str] = "magicpig"
    slug: ClassVar[str | None] = "magicpig"

    centred: ClassVar[bool] = True

    bits: int = 6
    tables: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.tables < 2:
            raise BadInput(f"magicpig: {self.bits} bits, {self.tables} tables; choose 1 to 8 bits and 2 tables or more")

    def planes(self, dim: int) -> Tensor:
        """Return the hyperplanes, ``(dim, tables * bits)``."""
        made = torch.Generator().manual_seed(self.seed)
        return torch.randn(dim, self.tables * self.bits, generator=made)

    def hashes(self, vectors: Tensor) -> Tensor:
        """Return the hashes of vectors ``(..., dim)``, uint8 of shape ``(..., tables)``."""
        signs = (vectors.float() @ self.planes(vectors.shape[-1]).to(vectors.device)) > 0
        powers = 1 << torch.arange(self.bits, dtype=torch.uint8, device=vectors.device)
        return torch.sum(signs.view(*signs.shape[:-1], self.tables, self.bits) * powers, -1, dtype=torch.uint8)

    def probability(self, cosine: Tensor) -> Tensor:
        """Return the probability that a key is sampled by a query with this cosine to it."""
        agree = (1 - torch.acos(cosine.double().clamp(-1, 1)) / math.pi) ** self.bits
        return 1 - (1 - agree) ** self.tables - self.tables * agree * (1 - agree) ** (self.tables - 1)

    @property
    def entry_bytes(self) -> int:
        """Return the bytes of the hashes of an entry."""
        return self.tables

    def extras(self, keys: Tensor, state: Reads, mean: Tensor) -> Tensors:
        """Return the hashes of keys."""
        return {"hashes": self.hashes(keys.float() - mean)}

    def joined(self, state: Reads, which: Tensor) -> None:
        """Nothing changes."""

    def read(self, query: Tensor, history: History, state: Reads, scaling: float) -> Read | None:
        """Return the sampled keys with their corrections."""
        own = self.hashes(query[:, :, :, 0])
        there = history.spread(history.entries["hashes"])
        real = history.real()
        hits = torch.stack([(own[:, :, g, None] == there).sum(-1) for g in range(own.shape[2])], 2)
        sampled = (hits >= 2) & real[:, :, None]
        # Heads of a group read together: what one of them samples is read, and hidden from the others.
        union = sampled.any(2)
        most = max(1, int(union.sum(-1).max()))
        index = torch.sort(union, dim=-1, descending=True, stable=True).indices[..., :most]
        keys, values = history.look_up(index)
        chosen = torch.gather(sampled, -1, index[:, :, None].expand(-1, -1, sampled.shape[2], -1))
        centred = keys.float() - state.held["mean"][:, :, None]
        cosine = torch.nn.functional.normalize(query[:, :, :, 0].float(), dim=-1) @ torch.nn.functional.normalize(
            centred, dim=-1
        ).transpose(-1, -2)
        correction = -torch.log(self.probability(cosine).clamp_min(1e-12)).float()
        bias = torch.where(chosen, correction, -torch.inf)[:, :, :, None]
        return Read(keys, values, bias, float(union.sum(-1).float().mean()))

    def learn(self, query: Tensor, probs: Tensor, history: History, state: Reads) -> None:
        """Nothing is learnt from a full step."""
