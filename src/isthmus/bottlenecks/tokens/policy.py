"""A policy: which tokens stay, after which layers, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from isthmus.bottlenecks.tokens.held import Held
from isthmus.bottlenecks.tokens.look import Choice, Look, Score, Scored
from isthmus.bottlenecks.tokens.schedule import Schedule
from isthmus.errors import BadInput


@runtime_checkable
class Action(Protocol):
    """Says what becomes of the tokens that do not stay; a frozen dataclass of its options."""

    name: ClassVar[str]
    slug: ClassVar[str | None]
    uneven: ClassVar[bool]
    """Whether rows of a batch may lose different numbers of tokens."""
    pauses: ClassVar[bool]
    """Whether tokens come back."""

    def done(self, look: Look, scored: Scored, choice: Choice, last: int) -> tuple[Tensor, Held]:
        """Return the tokens after it, ``(B, k, width)``, and what is known of them; ``last`` is the last layer."""
        ...

    def restored(self, hidden: Tensor, held: Held) -> Tensor:
        """Return a token for every first place, ``(B, total, width)``."""
        ...

    def macs(self, tokens: int, left: int, *, halves: bool, head: int) -> int:
        """Return the multiply-accumulates of one row, of a score that names partners (halves) or does not."""
        ...

    def layers_aside(self) -> int | None:
        """Return how many layers a token that does not stay passes by: 0 where it never comes back, None: all."""
        ...


@dataclass(frozen=True)
class TokenNarrowing:
    """Which tokens stay after which layers, and what becomes of the others.

    Parameters
    ----------
    score : Score
    action : Action
    schedule : Schedule

    Raises
    ------
    BadInput
        If these do not go together.
    """

    score: Score
    action: Action
    schedule: Schedule

    def __post_init__(self) -> None:
        if not self.schedule.fixed and not self.score.shares:
            raise BadInput(
                f"tokens: {self.score.name} is no share of attention, which a schedule of mass adds up; "
                "give class-attention or received-attention, or a share or count"
            )
        if not self.schedule.fixed and not self.action.uneven:
            raise BadInput(
                f"tokens: {self.action.name} takes as many tokens of every example, and a schedule of mass does not; "
                "give drop, or a share or count"
            )
        if self.score.halves and self.action.pauses:
            raise BadInput(
                f"tokens: {self.score.name} finds tokens that stand for one another, and {self.action.name} keeps "
                "both; give merge or drop"
            )

    def check(self, layers: int, prefix: int) -> None:
        """Check it against a network of so many layers, with so many tokens before those of an example.

        Raises
        ------
        BadInput
            If no token of the example would stay, or tokens would leave where no layer follows.
        """
        layer, stays = self.schedule.least(prefix)
        if not stays:
            raise BadInput(
                f"tokens: none of an example's would stay after layer {layer} ({prefix} stand before them); keep more"
            )
        if self.schedule.layers[-1] >= layers - 1:
            raise BadInput(
                f"tokens: after layer {self.schedule.layers[-1]} none follows that would be spared, the network has "
                f"layers 0 to {layers - 1}; give layers below {layers - 1}"
            )
        if self.score.name in ("class-attention", "information-degree") and not prefix:
            raise BadInput(
                f"tokens: {self.score.name} asks the class token, and this network has none; give received-attention "
                "or similarity"
            )


def lengths(policy: TokenNarrowing, layers: int, tokens: int, prefix: int) -> tuple[int, ...]:
    """Return how many tokens enter each layer of an example of so many, shape ``(layers,)``.

    Raises
    ------
    BadInput
        If more would leave than the score can pair.
    """
    present, entering = tokens, []
    coming: dict[int, int] = {}
    for layer in range(layers):
        entering.append(present)
        if layer in policy.schedule.layers:
            left = policy.schedule.left(layer, present, prefix)
            check_half(policy, layer, present, left, prefix)
            aside = policy.action.layers_aside()
            if aside != 0:
                back = layers - 1 if aside is None else min(layer + aside, layers - 1)
                coming[back] = coming.get(back, 0) + present - left
            present = left
        present += coming.pop(layer, 0)
    return tuple(entering)


def most_paired(tokens: int, prefix: int) -> int:
    """Return how many of so many tokens can leave a layer at once where a score pairs every other with one between."""
    return (tokens + 1) // 2 - (prefix + 1) // 2


def check_half(policy: TokenNarrowing, layer: int, tokens: int, left: int, prefix: int) -> None:
    """Refuse that more tokens leave a layer than the score pairs.

    Raises
    ------
    BadInput
        If they would.
    """
    if not policy.score.halves:
        return
    most = most_paired(tokens, prefix)
    if tokens - left > most:
        raise BadInput(
            f"tokens: {policy.score.name} pairs tokens, so no more than {most} of {tokens} can leave after "
            f"layer {layer}, not {tokens - left}; spread them over more layers"
        )


def policy_macs(
    policy: TokenNarrowing, entering: Sequence[int], *, prefix: int, widths: Sequence[int], head: int
) -> tuple[int, ...]:
    """Return the multiply-accumulates that scoring and acting add to each layer, for one example.

    Parameters
    ----------
    entering : sequence of int
        How many tokens enter each layer; see `lengths`.
    widths : sequence of int
        Of each layer's heads together.
    head : int
        The width of a head.
    """
    found = []
    for layer, (present, width) in enumerate(zip(entering, widths, strict=True)):
        left = policy.schedule.left(layer, present, prefix) if layer in policy.schedule.layers else present
        own = 0
        if left < present:
            own = policy.score.macs(present, prefix=prefix, width=width, head=head)
            own += policy.action.macs(present, left, halves=policy.score.halves, head=head)
        found.append(own)
    return tuple(found)
