"""Minimum entropy coupling with a bottleneck (Ebrahimi et al. 2024): messages in the actions of an agent.

45 times 400 games on a small grid, and all mappings of small alphabets: half a minute on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import UNTESTED, Part
from isthmus.information.coupling import bounded_encoder, entropy, minimum_entropy_coupling

Floats = npt.NDArray[np.float64]
OURS, BINS, LIKELIEST, ALPHABETS = "bounded encoder", "equal bins", "likeliest apart", "alphabets of up to six"
RATES = (0.4, 0.8, 1.2, 1.6, 2.0)
"""Nats that the code of a message may have."""
SYMBOLS = (2.0, 3.0, 4.0, 5.0, 6.0)
MESSAGES, GAMES, DRAWN = 16, 400, 60
"""Messages, of probabilities drawn evenly over all distributions; games a point; distributions a size of alphabet."""
SIDE, HORIZON, DISCOUNT, SLIP, TEMPERATURE = 5, 14, 0.95, 0.1, 0.01
"""The grid, from corner to opposite corner, worth 1 on arrival; a move goes elsewhere with the chance of a slip."""
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
CLOSE = 1e-9


@dataclass(frozen=True)
class Grid:
    """A Markov decision process and a policy for it.

    Parameters
    ----------
    moves : ndarray, shape ``(states, actions, states)``
    policy : ndarray, shape ``(horizon, states, actions)``
        Of the largest reward plus entropy times a temperature.
    value : float
        Mean discounted reward of the policy from the start.
    """

    moves: Floats
    policy: Floats
    value: float


@cache
def grid() -> Grid:
    """Return the game: the policy by backward induction, and its own value."""
    states, goal = SIDE * SIDE, SIDE * SIDE - 1
    sure = np.zeros((states, len(MOVES), states))
    for state in range(states):
        row, column = divmod(state, SIDE)
        for action, (down, right) in enumerate(MOVES):
            place = min(max(row + down, 0), SIDE - 1), min(max(column + right, 0), SIDE - 1)
            sure[state, action, place[0] * SIDE + place[1]] = 1.0
    moves = (1 - SLIP) * sure + SLIP * sure.mean(1, keepdims=True)
    worth, own = np.zeros(states), np.zeros(states)
    policy = np.zeros((HORIZON, states, len(MOVES)))
    arrival = np.eye(states)[goal]
    for step in reversed(range(HORIZON)):
        # Who has arrived has ended: nothing is worth more there.
        wanted = moves @ (arrival + DISCOUNT * np.where(arrival, 0.0, worth))
        policy[step] = np.exp(wanted / TEMPERATURE - logsumexp(wanted / TEMPERATURE, axis=1, keepdims=True))
        worth = TEMPERATURE * logsumexp(wanted / TEMPERATURE, axis=1)
        own = (policy[step] * (moves @ (arrival + DISCOUNT * np.where(arrival, 0.0, own)))).sum(1)
    return Grid(moves, policy, float(own[0]))


def equal_bins(probabilities: Floats, rate: float) -> Floats:
    """Return an encoder to as many bins of messages in a row as keep the rate, equally many messages in each."""
    for bins in range(len(probabilities), 0, -1):
        joint = _joint(probabilities, np.arange(len(probabilities)) * bins // len(probabilities))
        if entropy(joint.sum(0)) <= rate:
            return joint
    raise AssertionError("one bin has no entropy")


def likeliest_apart(probabilities: Floats, rate: float) -> Floats:
    """Return an encoder that keeps as many of the likeliest messages apart as the rate allows, all others together."""
    ranks = np.argsort(np.argsort(-probabilities, kind="stable"), kind="stable")
    for kept in range(len(probabilities), -1, -1):
        joint = _joint(probabilities, np.minimum(ranks, kept))
        if entropy(joint.sum(0)) <= rate:
            return joint
    raise AssertionError("one symbol has no entropy")


def _joint(probabilities: Floats, symbols: npt.NDArray[np.integer]) -> Floats:
    joint = np.zeros((len(probabilities), int(symbols.max()) + 1))
    joint[np.arange(len(probabilities)), symbols] = probabilities
    return joint[:, joint.sum(0) > 0]


ENCODERS = {OURS: bounded_encoder, BINS: equal_bins, LIKELIEST: likeliest_apart}


def play(game: Grid, encoder: Floats, rng: np.random.Generator) -> tuple[int, Floats, float]:
    """Play one game and return the message, what the receiver believes of it afterwards, and the reward.

    At each step the receiver's belief in symbols is coupled with the policy's actions; the sender draws the action
    given the symbol, so that actions have the policy's distribution to whoever does not know it.

    Parameters
    ----------
    encoder : ndarray, shape ``(messages, symbols)``
        Joint probabilities.
    """
    given = encoder.sum(1)
    message = int(rng.choice(len(given), p=given))
    symbol = int(rng.choice(encoder.shape[1], p=encoder[message] / given[message]))
    belief = encoder.sum(0)
    state, goal, factor, reward = 0, len(game.moves) - 1, 1.0, 0.0
    for step in range(len(game.policy)):
        joint = minimum_entropy_coupling(belief, game.policy[step, state])
        chances = joint[symbol] / joint[symbol].sum()
        action = int(rng.choice(len(chances), p=chances))
        belief = joint[:, action] / joint[:, action].sum()
        state = int(rng.choice(len(game.moves), p=game.moves[state, action]))
        if state == goal:
            reward = factor
            break
        factor *= DISCOUNT
    return message, (encoder / encoder.sum(0)) @ belief, reward


def _game(arm: str, rate: float, seed: int) -> dict[str, Any]:
    messages = np.random.default_rng(seed).dirichlet(np.ones(MESSAGES))
    encoder = ENCODERS[arm](messages, rate)
    rng = np.random.default_rng([seed, round(100 * rate)])
    right, nats, rewards = [], [], []
    for _ in range(GAMES):
        message, believed, reward = play(grid(), encoder, rng)
        right.append(int(believed.argmax()) == message)
        nats.append(math.log(max(believed[message], 1e-300) / messages[message]))
        rewards.append(reward)
    return {
        "accuracy": float(np.mean(right)),
        "nats": float(np.mean(nats)),
        "rate": entropy(encoder.sum(0)),
        "reward": float(np.mean(rewards)),
        "reward error": float(np.std(rewards, ddof=1) / math.sqrt(GAMES)),
    }


def partitions(count: int) -> Iterator[tuple[int, ...]]:
    """Return every way to give symbols to so many inputs, as the number of each one's symbol."""

    def grown(row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(row) == count:
            yield row
            return
        for symbol in range(max(row, default=-1) + 2):
            yield from grown((*row, symbol))

    return grown(())


def _alphabet(size: int, seed: int) -> dict[str, Any]:
    """Return how far the greedy encoder is from the best of all mappings, and couplings from their marginals."""
    rng = np.random.default_rng([seed, size])
    ways, missed, over, beyond, marginals = list(partitions(size)), [], [], [], []
    for _ in range(DRAWN):
        given, other = rng.dirichlet(np.ones(size)), rng.dirichlet(np.ones(int(rng.integers(2, 7))))
        rate = float(rng.uniform(0, entropy(given)))
        best = max((held for way in ways if (held := entropy(np.bincount(way, given))) <= rate + 1e-12), default=0.0)
        symbols = bounded_encoder(given, rate).sum(0)
        second = float(np.sort(given)[-2])
        missed.append(best - entropy(symbols))
        over.append(entropy(symbols) - rate)
        beyond.append(missed[-1] - entropy([second, 1 - second]))
        joint = minimum_entropy_coupling(given, other)
        marginals.append(max(np.abs(joint.sum(1) - given).max(), np.abs(joint.sum(0) - other).max()))
    worst = {"over": over, "beyond": beyond, "marginal": marginals}
    return {"missed": float(np.mean(missed)), **{name: float(np.max(values)) for name, values in worst.items()}}


def measure(point: Point) -> Mapping[str, Any]:
    """Play games at one rate, or try all mappings of small alphabets."""
    if point.arm == ALPHABETS:
        return _alphabet(int(point.level), point.seed)
    return _game(point.arm, point.level, point.seed)


def better(outcomes: Sequence[Outcome], other: str, key: str, name: str) -> Part:
    """Decide whether more of the messages arrive than by another encoder of the same rate."""
    what = "of messages that the receiver guesses" if key == "accuracy" else "of nats by which the receiver is surer"
    rule = (
        f"at every rate the mean {what} is above that with `{other}` by more than twice the standard error of paired "
        "differences; mixed: at some; does not hold: nowhere"
    )
    passed, texts = [], []
    for rate in RATES:
        own, theirs = (of_arm(outcomes, arm, rate, key) for arm in (OURS, other))
        if len(own) < 2 or len(own) != len(theirs):
            return part_of(name, rule, UNTESTED)
        gap, error = paired(own, theirs)
        passed.append(gap > 0 and gap > 2 * error)
        texts.append(f"{rate:g}: {np.mean(own):.2f} against {np.mean(theirs):.2f}")
    return part_of(name, rule, share_passed(passed), "; ".join(texts))


def rewarded(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether messages cost nothing of the reward."""
    rule = (
        "with every encoder and rate the mean reward over seeds is within three standard errors of the policy's own; "
        "mixed: with some"
    )
    passed, values = [], []
    for arm in ENCODERS:
        for rate in RATES:
            found, errors = (of_arm(outcomes, arm, rate, key) for key in ("reward", "reward error"))
            if not found:
                return part_of("equal reward", rule, UNTESTED)
            error = float(np.sqrt(np.mean(np.square(errors)) / len(found)))
            passed.append(abs(float(np.mean(found)) - grid().value) <= 3 * error)
            values.append(float(np.mean(found)))
    text = f"{min(values):.3f} to {max(values):.3f}, the policy's {grid().value:.3f}; {sum(passed)} of {len(passed)}"
    return part_of("equal reward", rule, share_passed(passed), text)


def guaranteed(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether the greedy encoder keeps its bound and its guarantee, and couplings their marginals."""
    rule = (
        "in every distribution the code's entropy is within the rate, what it misses of the best of all mappings is "
        f"within the entropy of a coin of the second largest probability, and marginals are exact, all to {CLOSE:g}; "
        "mixed: in some sizes of alphabet"
    )
    own = [one for one in outcomes if one["arm"] == ALPHABETS]
    if not own:
        return part_of("bounds", rule, UNTESTED)
    passed = [max(one["over"], one["beyond"], one["marginal"]) <= CLOSE for one in own]
    text = f"{np.mean([one['missed'] for one in own]):.4f} nats missed in the mean"
    return part_of("bounds", rule, share_passed(passed), text)


TRIALS = Trials(
    slug="mec-b",
    claim=(
        "A code of bounded entropy made by greedy merging, coupled with the actions of an agent at the least joint "
        "entropy, brings more of a message to whoever watches than plain compression of the same rate, at no cost in "
        "reward, and stays within its guarantees."
    ),
    experiment=(
        f"A grid of {SIDE} by {SIDE} places, from corner to corner in at most {HORIZON} moves, each going elsewhere "
        f"with a chance of {SLIP:g}; a policy of the largest reward plus {TEMPERATURE:g} times entropy. One of "
        f"{MESSAGES} messages, probabilities drawn by seed, is coded at a rate and hidden in the actions of each of "
        f"{GAMES} games; the receiver sees places and actions. Plain compression: messages in a row in equal bins, or "
        f"the likeliest apart and the others together. Then {DRAWN} distributions of each alphabet beside all mappings."
    ),
    arms={**dict.fromkeys(ENCODERS, RATES), ALPHABETS: SYMBOLS},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    parts=lambda outcomes: [
        better(outcomes, BINS, "accuracy", "messages guessed, against equal bins"),
        better(outcomes, LIKELIEST, "accuracy", "messages guessed, against the likeliest apart"),
        better(outcomes, LIKELIEST, "nats", "nats received, against the likeliest apart"),
        rewarded(outcomes),
        guaranteed(outcomes),
    ],
    columns=(
        Column("accuracy", "guessed", "{:.1%}"),
        Column("nats", "nats received", "{:.2f}"),
        Column("rate", "nats of the code", "{:.2f}"),
        Column("reward", "reward", "{:.3f}"),
        Column("missed", "nats missed", "{:.4f}"),
    ),
    level="rate, or symbols",
    recipe={
        "messages": MESSAGES, "games": GAMES, "drawn": DRAWN, "side": SIDE, "horizon": HORIZON, "discount": DISCOUNT,
        "slip": SLIP, "temperature": TEMPERATURE,
    },
    data=lambda: digest_of([grid().moves]),
)  # fmt: skip
