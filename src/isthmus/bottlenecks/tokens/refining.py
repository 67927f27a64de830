"""A solved schedule, refined: layers trade tokens, and what all of them lose together is measured.

The solver takes losses of single layers to add up. Near its answer one layer at a time is given some tokens more and
another so many fewer that the budget still holds; a trade is kept where less is lost. The step is halved when none is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from isthmus.bottlenecks.tokens.budget import Measure, schedule_of
from isthmus.bottlenecks.tokens.costing import TokenCost
from isthmus.bottlenecks.tokens.look import Score
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths, most_paired

MEASUREMENTS = 60
"""Trades that are measured at most."""

Entering = tuple[int, ...]


def refined(
    cost: TokenCost, policy: TokenNarrowing, limit: float, measure: Measure, *, measurements: int = MEASUREMENTS
) -> TokenNarrowing:
    """Return a policy that loses no more, measured with all layers together, within the same limit.

    Parameters
    ----------
    cost : TokenCost
    policy : TokenNarrowing
        Of a fixed schedule.
    limit : float
        Multiply-accumulates of one example, scoring and acting among them.
    measure : callable
        As in `isthmus.bottlenecks.tokens.budget.solved`.
    measurements : int
        Trades that are measured at most; none leaves the policy as it is.
    """
    if measurements <= 0:
        return policy
    tokens = cost.tokens
    best = tuple(lengths(policy, tokens.depth, tokens.total, tokens.prefix))
    found, least, left = policy, measure(policy), measurements
    step = max(1, (tokens.total - tokens.prefix) // 8)
    tried = {best}

    def made(entering: Entering) -> TokenNarrowing:
        return TokenNarrowing(policy.score, policy.action, schedule_of(cost, entering))

    while step and left > 0:
        better = False
        for trade in _trades(best, step):
            kept = _fitted(trade, best, tokens.prefix, policy.score, lambda one: cost.of_policy(made(one)) <= limit)
            if kept is None or kept in tried:
                continue
            tried.add(kept)
            left -= 1
            tried_policy = made(kept)
            lost = measure(tried_policy)
            if lost < least:
                found, best, least, better = tried_policy, kept, lost, True
            if better or left <= 0:
                break
        if not better:
            step //= 2
    return found


def _trades(now: Entering, step: int) -> Iterator[tuple[Entering, int]]:
    """Yield schedules with more tokens before one layer, and which other layer is to give way."""
    for gains, pays in itertools.permutations(range(1, len(now)), 2):
        more = list(now)
        more[gains] = min(more[gains] + step, more[gains - 1])
        if more[gains] > now[gains]:
            yield tuple(more), pays


def _fitted(
    trade: tuple[Entering, int], before: Entering, prefix: int, score: Score, fits: Callable[[Entering], bool]
) -> Entering | None:
    """Let a layer, and those after it, give way until the budget holds; None where it cannot."""
    entering, pays = list(trade[0]), trade[1]
    while _possible(entering, score, prefix):
        if fits(tuple(entering)):
            return tuple(entering)
        entering[pays] -= 1
        for layer in range(pays + 1, len(entering)):
            entering[layer] = min(entering[layer], entering[pays])
        if entering[pays] < max(prefix + 1, before[pays] // 3):
            break
    return None


def _possible(entering: Sequence[int], score: Score, prefix: int) -> bool:
    """Return whether no more tokens leave a layer than the score can tell apart."""
    return not score.halves or all(
        before - after <= most_paired(before, prefix) for before, after in itertools.pairwise(entering)
    )
