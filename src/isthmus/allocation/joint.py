"""Joint allocation: one budget of bytes spent over units and over the bits of every matrix at once.

At a price of a byte, in nats, each matrix takes the code that is cheapest with it; with the bits that a weight then
takes, the bytes of the network are a rate like any other, and which units stay is the problem that is solved anyway.
The price is searched: where bytes are dear, weights are coarse and units stay; where they are cheap, the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isthmus.allocation.problem import Allocation
from isthmus.bottlenecks.curves import Candidate, Curves
from isthmus.errors import UnreachableBudget

Chosen = Mapping[str, Candidate]


@dataclass(frozen=True)
class Joint:
    """What stays, how it is coded, and what that is predicted to lose.

    Parameters
    ----------
    price : float
        Nats a byte.
    distortion : float
        Nats: those of units as they count in the choice, and those of codes.
    bytes : float
        Predicted, with all that stays.
    """

    price: float
    allocation: Allocation
    chosen: Chosen
    distortion: float
    bytes: float


def choose(curves: Curves, entries: Mapping[str, float], price: float, weight: float = 1.0) -> dict[str, Candidate]:
    """Return for each matrix the candidate of the least nats and bytes together.

    Parameters
    ----------
    entries : mapping of str to float
        Weights of each matrix.
    price : float
        Nats a byte.
    weight : float
        What a nat of coding counts beside one of units.
    """
    return {
        name: min(candidates, key=lambda one: weight * one.nats + price * entries[name] * one.bits / 8)
        for name, candidates in curves.items()
    }


def search(solve: Callable[[float], Joint], prices: tuple[float, ...], *, refine: int = 3) -> tuple[Joint, list[Joint]]:
    """Return the joint allocation of least distortion over prices, and all that were found.

    Parameters
    ----------
    solve : callable
        From a price to its joint allocation; raises `UnreachableBudget` where the budget cannot be met at it.
    prices : tuple of float
        Rising.
    refine : int
        How often the neighbourhood of the best price is halved.

    Raises
    ------
    UnreachableBudget
        If the budget is met at no price; the message is that of the highest, where weights are coarsest.
    """
    found: dict[float, Joint] = {}
    refusal: UnreachableBudget | None = None

    def attempt(price: float) -> None:
        nonlocal refusal
        try:
            found[price] = solve(price)
        except UnreachableBudget as error:
            refusal = error

    for price in prices:
        attempt(price)
    if not found:
        raise refusal or UnreachableBudget("bytes: nothing was tried")
    ratio = (prices[1] / prices[0]) if len(prices) > 1 else 2.0
    for _ in range(refine):
        ratio **= 0.5
        best = min(found.values(), key=lambda one: one.distortion).price
        attempt(best * ratio)
        attempt(best / ratio)
    everything = sorted(found.values(), key=lambda one: one.price)
    return min(everything, key=lambda one: one.distortion), everything
