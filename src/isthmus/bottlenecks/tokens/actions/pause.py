"""Pausing: what does not stay passes some layers by and comes back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from isthmus.bottlenecks.tokens.held import Aside, Held, taken
from isthmus.bottlenecks.tokens.look import Choice, Look, Scored
from isthmus.errors import BadInput


@dataclass(frozen=True)
class Pause:
    """Put tokens aside for some layers; they come back as they were, in their old places.

    What a router that lets tokens skip a block does to them (``dynamic-token-routing-dit``), without its training.

    Parameters
    ----------
    layers : int
        How many they pass by.

    Raises
    ------
    BadInput
        If it is below 1.
    """

    name: ClassVar[str] = "pause"
    slug: ClassVar[str | None] = None
    uneven: ClassVar[bool] = False
    pauses: ClassVar[bool] = True

    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise BadInput(f"tokens: a pause of {self.layers} layers; give 1 or more")

    def done(self, look: Look, scored: Scored, choice: Choice, last: int) -> tuple[Tensor, Held]:
        """Return the tokens that stay, ``(B, k, width)``, and what is known of them."""
        return put_aside(look, choice, min(look.layer + self.layers, last))

    def restored(self, hidden: Tensor, held: Held) -> Tensor:
        """Return all places, ``(B, total, width)``: after the last layer every token is back."""
        return hidden

    def macs(self, tokens: int, left: int, *, halves: bool, head: int) -> int:
        """Return 0: nothing is multiplied."""
        return 0

    def layers_aside(self) -> int | None:
        """Return how many layers a token passes by."""
        return self.layers


@dataclass(frozen=True)
class Finalize:
    """Let tokens end early: they pass all further layers by, and come back behind the last.

    What becomes of tokens that a head behind an early layer is sure of (``dtop``), without such heads.
    """

    name: ClassVar[str] = "finalize"
    slug: ClassVar[str | None] = None
    uneven: ClassVar[bool] = False
    pauses: ClassVar[bool] = True

    def done(self, look: Look, scored: Scored, choice: Choice, last: int) -> tuple[Tensor, Held]:
        """Return the tokens that stay, ``(B, k, width)``, and what is known of them."""
        return put_aside(look, choice, last)

    def restored(self, hidden: Tensor, held: Held) -> Tensor:
        """Return all places, ``(B, total, width)``: behind the last layer every token is back."""
        return hidden

    def macs(self, tokens: int, left: int, *, halves: bool, head: int) -> int:
        """Return 0: nothing is multiplied."""
        return 0

    def layers_aside(self) -> int | None:
        """Return None: until the last layer."""
        return None


def put_aside(look: Look, choice: Choice, back: int) -> tuple[Tensor, Held]:
    """Return the tokens that stay, and what is known with the others aside until after layer ``back``."""
    after = look.held.at(choice.kept, choice.kept_real)
    places = look.held.places.gather(1, choice.gone)
    aside = Aside(taken(look.hidden, choice.gone), places, choice.gone_real, back)
    return taken(look.hidden, choice.kept), replace(after, aside=(*look.held.aside, aside))
