"""Minimum entropy coupling with a bottleneck: say as much of X as a code of bounded entropy and given outputs allow.

Ebrahimi et al. 2024 (arXiv 2410.21666): an encoder ``T`` of ``X`` with ``H(T) <= R`` that keeps as much as it can
(EBIM), and a decoder that couples ``T`` with outputs of a prescribed distribution at the least joint entropy (MEC).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from isthmus.errors import BadInput

Floats = npt.NDArray[np.float64]
Part = tuple[float, tuple[int, ...]]


@dataclass(frozen=True)
class BottleneckCoupling:
    """An encoder, a decoder and what reaches the output.

    Parameters
    ----------
    encoder : ndarray, shape ``(inputs, symbols)``
        Joint probabilities of input and symbol.
    decoder : ndarray, shape ``(symbols, outputs)``
        Joint probabilities of symbol and output: exact in both marginals.
    rate : float
        Entropy of the symbols, nats.
    information : float
        ``I(X; Y)``, nats.
    least : float
        ``I(X; T) + I(T; Y) - H(T)``: what the two steps promise together, at most ``information``.
    """

    encoder: Floats
    decoder: Floats
    rate: float
    information: float
    least: float


def entropy(probabilities: npt.ArrayLike) -> float:
    """Return the entropy of a table of probabilities, in nats."""
    held = np.asarray(probabilities, dtype=np.float64).ravel()
    held = held[held > 0]
    return float(-(held * np.log(held)).sum())


def joint_information(joint: npt.ArrayLike) -> float:
    """Return the mutual information of a table of joint probabilities, shape ``(rows, columns)``, in nats."""
    table = np.asarray(joint, dtype=np.float64)
    return max(entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table), 0.0)


def minimum_entropy_coupling(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Return a joint distribution of the two given ones whose entropy is low, shape ``(first, second)``.

    Greedy (Kocaoglu et al. 2017, Algorithm 1): the largest masses left on both sides are paired, as far as the smaller
    goes. At most ``1 / e`` nats above the least possible (Compton et al. 2023, Theorem 1), with fewer than ``first +
    second`` cells.

    Parameters
    ----------
    first, second : array_like, shape ``(symbols,)``
        Probabilities.

    Raises
    ------
    BadInput
        If one is no distribution.
    """
    rows, columns = _distribution(first, "first"), _distribution(second, "second")
    joint = np.zeros((len(rows), len(columns)))
    left = [(-mass, place) for place, mass in enumerate(rows) if mass > 0]
    right = [(-mass, place) for place, mass in enumerate(columns) if mass > 0]
    heapq.heapify(left)
    heapq.heapify(right)
    while left and right:
        (one, row), (other, column) = heapq.heappop(left), heapq.heappop(right)
        paired = min(-one, -other)
        joint[row, column] += paired
        if -one > paired:
            heapq.heappush(left, (one + paired, row))
        if -other > paired:
            heapq.heappush(right, (other + paired, column))
    return joint


def bounded_encoder(probabilities: npt.ArrayLike, rate: float, *, whole: bool = True) -> Floats:
    """Return an encoder whose symbols have an entropy of at most ``rate`` and say much of the input.

    Entropy-bounded information maximisation, greedy. Symbols are merged: the two most probable ones as long as the
    entropy stays above the rate, from then on the two least probable ones, until it does not; the best of all mappings
    on the way that keep the rate is taken. Merging the most probable ones alone steps from ``H(X)`` to 0 by at most
    ``h(p)``, p the second largest probability and h the entropy of a coin, so at most ``h(p)`` nats are missed (Theorem
    2).

    Parameters
    ----------
    probabilities : array_like, shape ``(inputs,)``
    rate : float
        Nats, 0 or more.
    whole : bool
        Whether each input has one symbol. Otherwise the entropy left over is spent on sending the input that is
        the smallest part of its symbol to a symbol of its own some of the time (Theorem 3).

    Returns
    -------
    ndarray, shape ``(inputs, symbols)``
        Joint probabilities of input and symbol.

    Raises
    ------
    BadInput
        If the probabilities are no distribution, or the rate is below 0 or not a number.
    """
    given = _distribution(probabilities, "inputs")
    if not rate >= 0:
        raise BadInput(f"rate {rate!r}; give nats, 0 or more")
    groups = _merged(given, rate)
    joint = np.zeros((len(given), len(groups)))
    for symbol, members in enumerate(groups):
        joint[list(members), symbol] = given[list(members)]
    return joint if whole else _refined(joint, rate)


def bottleneck_coupling(
    inputs: npt.ArrayLike, outputs: npt.ArrayLike, rate: float, *, whole: bool = True
) -> BottleneckCoupling:
    """Return encoder and decoder for inputs and outputs of given distributions and a code of at most ``rate`` nats.

    Parameters
    ----------
    inputs, outputs : array_like, shape ``(symbols,)``
        Probabilities.
    rate : float
        Nats.
    whole : bool
        See `bounded_encoder`.

    Raises
    ------
    BadInput
        If one is no distribution, or the rate is below 0.
    """
    encoder = bounded_encoder(inputs, rate, whole=whole)
    symbols = encoder.sum(0)
    decoder = minimum_entropy_coupling(symbols, _distribution(outputs, "outputs"))
    # The decoder's rows are the symbols' probabilities; an output is drawn given its symbol alone.
    through = encoder @ (decoder / symbols[:, None])
    held = entropy(symbols)
    least = joint_information(encoder) + joint_information(decoder) - held
    return BottleneckCoupling(encoder, decoder, held, joint_information(through), least)


def _merged(given: Floats, rate: float) -> list[tuple[int, ...]]:
    """Return the groups of inputs that share a symbol."""
    order: list[Part] = sorted((float(mass), (place,)) for place, mass in enumerate(given) if mass > 0)
    held = entropy(given)
    if held <= rate + 1e-12:
        return [members for _, members in order[::-1]]
    best, groups = -1.0, [tuple(place for _, members in order for place in members)]
    down = True
    while len(order) > 1:
        large = _merge(order, -2, -1)
        kept = entropy([mass for mass, _ in large])
        if best < kept <= rate:
            best, groups = kept, [members for _, members in large]
        if down and kept > rate:
            order = large
            continue
        down = False
        order = _merge(order, 0, 1)
        kept = entropy([mass for mass, _ in order])
        if kept <= rate:
            return [members for _, members in order] if kept > best else groups
    return groups


def _merge(order: list[Part], one: int, other: int) -> list[Part]:
    merged = order[one][0] + order[other][0], (*order[one][1], *order[other][1])
    gone = {one % len(order), other % len(order)}
    return sorted([merged, *(part for place, part in enumerate(order) if place not in gone)])


def _refined(joint: Floats, rate: float) -> Floats:
    """Return the encoder with one input sent elsewhere so often that the entropy of symbols is the rate."""
    symbols = joint.sum(0)
    if rate - entropy(symbols) <= 1e-12:
        return joint
    shares = np.where((joint > 0) & (joint < symbols), joint / symbols, np.inf)
    if not np.isfinite(shares).any():
        return joint
    row, column = np.unravel_index(int(shares.argmin()), shares.shape)

    def moved(mass: float) -> Floats:
        found = np.hstack([joint, np.zeros((len(joint), 1))])
        found[row, column] -= mass
        found[row, -1] = mass
        return found

    whole = float(joint[row, column])
    # The entropy is concave in the mass: it rises as far as the two symbols are alike, and may fall beyond.
    peak = min(whole, float(symbols[column]) / 2)
    if entropy(moved(peak).sum(0)) <= rate:
        return moved(whole) if entropy(moved(whole).sum(0)) <= rate else moved(peak)
    mass = float(brentq(lambda size: entropy(moved(size).sum(0)) - rate, 0.0, peak, xtol=1e-15))
    while entropy(moved(mass).sum(0)) > rate:
        mass *= 1 - 1e-12
    return moved(mass)


def _distribution(values: npt.ArrayLike, name: str) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or found.min() < 0:
        raise BadInput(f"{name}: of shape {found.shape}; give probabilities, none below 0, in one row")
    if abs(found.sum() - 1) > 1e-9:
        raise BadInput(f"{name}: probabilities sum to {found.sum():.12g}; divide them by their sum")
    shares: Floats = found / found.sum()
    return shares
