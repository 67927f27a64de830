"""Joint allocation: one budget of bytes spent over units and over the bits of every matrix at once.

At a price of a byte, in nats, each matrix takes the code that is cheapest with it; with the bits that a weight then
takes, the bytes of the network are a rate like any other, and which units stay is the problem that is solved anyway.
The price is searched: where bytes are dear, weights are coarse and units stay; where they are cheap, the reverse.
"""

from __future__ import annotations

import math
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


def spend(
    curves: Curves, weights: Mapping[str, float], chosen: Chosen, spare: float, *, weight: float = 1.0
) -> dict[str, Candidate]:
    """Return finer codes where bytes are left over, those first that save the most nats a byte.

    Coders with few settings leave much of a budget unspent at any price; so do prices that are tried in steps.

    Parameters
    ----------
    weights : mapping of str to float
        Of each matrix, how many weights stay; matrices of none keep their code.
    chosen : mapping of str to Candidate
        What is given now.
    spare : float
        Bytes.
    weight : float
        What a nat of coding counts beside one of units.

    Returns
    -------
    dict of str to Candidate
        They take at most ``spare`` bytes more and lose no more nats.
    """
    found = dict(chosen)

    def better(name: str, most: float) -> tuple[float, float, Candidate] | None:
        """Return the candidate that saves the most nats a byte of those that fit: nats a byte, bytes, which."""
        now, offers = found[name], []
        for one in curves[name]:
            more = weights[name] * (one.bits - now.bits) / 8
            if more <= most and one.nats < now.nats:
                gain = weight * (now.nats - one.nats)
                offers.append((gain / more if more > 0 else math.inf, more, one))
        return max(offers, key=lambda offer: offer[:2], default=None)

    best = {name: offer for name, count in weights.items() if count and (offer := better(name, spare)) is not None}
    while best:
        name = max(best, key=lambda one: best[one][0])
        _, more, candidate = best.pop(name)
        if more <= spare:
            spare -= more
            found[name] = candidate
        if (offer := better(name, spare)) is not None:
            best[name] = offer
    return found


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
