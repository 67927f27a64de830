"""Schedules: after which layers tokens leave, and how many stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.held import Held
from isthmus.errors import BadInput

WHOLE = 1000
"""Shares are held in thousandths, so that engines divide and round as Python does."""


@runtime_checkable
class Schedule(Protocol):
    """Says how many tokens stay after which layers; a frozen dataclass."""

    name: ClassVar[str]
    fixed: ClassVar[bool]
    """Whether how many stay follows from how many there are, so that an engine knows all shapes beforehand."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers after which tokens leave, rising."""
        ...

    def least(self, prefix: int) -> tuple[int, bool]:
        """Return a layer at which fewest stay, and whether a token of the example is among them."""
        ...

    def left(self, layer: int, tokens: int, prefix: int) -> int:
        """Return how many of so many tokens are held on after a layer, of any example."""
        ...

    def staying(self, layer: int, prefix: int, rank: Tensor, counted: Tensor) -> Tensor:
        """Return which ranks ``(B, n)`` stay in rows of so many tokens that count, ``(B, 1)``."""
        ...


@dataclass(frozen=True)
class Counts:
    """So many tokens stay after each of some layers, those before the example's among them.

    Parameters
    ----------
    counts : tuple of (layer, tokens)

    Raises
    ------
    BadInput
        If layers do not rise; `left` if lengths are free, as in an export of a network of text.
    """

    name: ClassVar[str] = "count"
    fixed: ClassVar[bool] = True

    counts: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        _check_layers(self.layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers after which tokens leave."""
        return tuple(layer for layer, _ in self.counts)

    def least(self, prefix: int) -> tuple[int, bool]:
        """Return the layer of the smallest count, and whether it is above the tokens before the example's."""
        layer, count = min(self.counts, key=lambda pair: pair[1])
        return layer, count > prefix

    def left(self, layer: int, tokens: int, prefix: int) -> int:
        """Return the count, or all where there are no more."""
        if not isinstance(tokens, int):
            raise BadInput("tokens: a count cannot be exported where lengths are free; give a share")
        return min(dict(self.counts)[layer], tokens)

    def staying(self, layer: int, prefix: int, rank: Tensor, counted: Tensor) -> Tensor:
        """Return the first ranks, as many as the count."""
        return (rank < dict(self.counts)[layer]) & (rank < counted)


@dataclass(frozen=True)
class Shares:
    """A share of the example's tokens that are there stays after each of some layers, rounded up.

    Parameters
    ----------
    shares : tuple of (layer, share)
        Shares in thousandths.

    Raises
    ------
    BadInput
        If one is above 1000.
    """

    name: ClassVar[str] = "share"
    fixed: ClassVar[bool] = True

    shares: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        for layer, share in self.shares:
            if share > WHOLE:
                raise BadInput(f"tokens: a share of {share / WHOLE:.1%} after layer {layer}; give 100% or less")

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers after which tokens leave."""
        return tuple(layer for layer, _ in self.shares)

    def least(self, prefix: int) -> tuple[int, bool]:
        """Return the layer of the smallest share, and whether anything stays of it."""
        layer, share = min(self.shares, key=lambda pair: pair[1])
        return layer, share > 0

    def left(self, layer: int, tokens: int, prefix: int) -> int:
        """Return the share of the tokens behind those before the example's, rounded up, and those."""
        if dict(self.shares)[layer] == WHOLE:
            return tokens
        return prefix + ((tokens - prefix) * dict(self.shares)[layer] + WHOLE - 1) // WHOLE

    def staying(self, layer: int, prefix: int, rank: Tensor, counted: Tensor) -> Tensor:
        """Return the ranks within the share of those that count."""
        # The same as rank < left(counted), without a division, which engines round in other ways.
        return (rank - prefix) * WHOLE < (counted - prefix) * dict(self.shares)[layer]


@dataclass(frozen=True)
class Mass:
    """As few tokens stay after each of some layers as hold a share of the attention that the score gives.

    How many that is differs between examples; of a batch, as many are held on as the row needs that needs most.

    Parameters
    ----------
    mass : int
        In thousandths.
    at : tuple of int
        Layers.

    Raises
    ------
    BadInput
        If the mass is above 1000.
    """

    name: ClassVar[str] = "mass"
    fixed: ClassVar[bool] = False

    mass: int
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        if self.mass > WHOLE:
            raise BadInput(f"tokens: an attention mass of {self.mass / WHOLE:.1%}; give 100% or less")

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers after which tokens leave."""
        return self.at

    def least(self, prefix: int) -> tuple[int, bool]:
        """Return the first layer, and whether anything stays."""
        return self.at[0], self.mass > 0

    def left(self, layer: int, tokens: int, prefix: int) -> int:
        """Return all: any number may stay."""
        return tokens

    def staying(self, layer: int, prefix: int, rank: Tensor, counted: Tensor) -> Tensor:
        """Return all that count; which of them hold the mass is seen from the scores, see `needed`."""
        return rank < counted

    def needed(self, values: Tensor, held: Held, prefix: int) -> Tensor:
        """Return how many tokens of each row stay, int64 of shape ``(B, 1)``, those before the example's among them.

        Parameters
        ----------
        values : Tensor, shape ``(B, n)``
            Shares of attention, at least 0.
        """
        own = values[:, prefix:].float()
        if held.real is not None:
            own = torch.where(held.real[:, prefix:], own, 0.0)
        ranked = own.sort(dim=1, descending=True).values
        total = ranked.sum(1, keepdim=True)
        # A token is needed while those before it do not hold the mass.
        before = ranked.cumsum(1) - ranked
        wanted = (before < total * (self.mass / WHOLE)) & (ranked > 0)
        return prefix + wanted.sum(1, keepdim=True).clamp(min=1)


def _check_layers(layers: tuple[int, ...]) -> None:
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise BadInput(f"tokens: after layers {list(layers)}; give rising numbers of layers, from 0 on, each once")
