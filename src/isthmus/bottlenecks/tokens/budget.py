"""A schedule from a budget of multiply-accumulates: how many tokens stay after each layer, solved over all layers.

What is lost where only so many tokens stay after a layer is measured for a few shares, one layer at a time. Tokens that
leave later are taken to be the next in the same order: going from ``n`` to ``m`` tokens after a layer loses what ``m``
lose there less what ``n`` do. The counts that lose least are then found for all layers together, from the last to the
first, over how much of the budget is left; costs are rounded up to a thousandth of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from isthmus.bottlenecks.tokens.costing import TokenCost
from isthmus.bottlenecks.tokens.look import Score
from isthmus.bottlenecks.tokens.policy import Action, TokenNarrowing, most_paired
from isthmus.bottlenecks.tokens.schedule import WHOLE, Counts, Schedule, Shares
from isthmus.errors import BadInput, UnreachableBudget

Floats = NDArray[np.float64]
Measure = Callable[[TokenNarrowing], float]
BINS = 1000
"""Parts that a budget is divided into."""
_COUNTS = 96  # of tokens that are tried after a layer, at most
_TRIED = (750, 500, 250)
_TRIED_HALVES = (833, 667, 500)


def solved(cost: TokenCost, score: Score, action: Action, limit: float, measure: Measure) -> TokenNarrowing:
    """Return the policy that is predicted to lose least within a budget.

    Parameters
    ----------
    cost : TokenCost
        Of a network's tokens.
    limit : float
        Multiply-accumulates of one example, scoring and acting among them.
    measure : callable
        What a policy loses, at least 0, such as nats of divergence from the network with all tokens.

    Raises
    ------
    BadInput
        If tokens come back, so that what leaves one layer says nothing of the next.
    UnreachableBudget
        If no policy keeps it.
    """
    if action.layers_aside() not in (0, None):
        raise BadInput(f"tokens: {action.name} brings tokens back, which no budget follows; give a share or count")
    if limit >= cost.whole():
        raise BadInput("tokens: the budget keeps all tokens; leave them as they are, or give less")
    found = best(cost, score, action, losses(cost, score, action, measure), limit)
    if found is None:
        least = least_macs(cost, score, action) / cost.whole()
        raise UnreachableBudget(
            f"tokens: {limit / cost.whole():.1%} of the multiply-accumulates cannot be reached by {score.name}; "
            f"the nearest is macs={math.ceil(least * WHOLE) / WHOLE:.1%}"
        )
    return TokenNarrowing(score, action, schedule_of(cost, found))


def losses(cost: TokenCost, score: Score, action: Action, measure: Measure) -> Floats:
    """Return what is lost where so many tokens stay after a layer, shape ``(layers - 1, total + 1)``.

    Measured at three shares of the example's tokens, straight between them and beyond; never less for fewer tokens.
    """
    tokens = cost.tokens
    own = tokens.total - tokens.prefix
    counts = np.arange(tokens.total + 1) - tokens.prefix
    shares = _TRIED_HALVES if score.halves else _TRIED
    found = np.zeros((tokens.depth - 1, tokens.total + 1))
    for layer in range(tokens.depth - 1):
        lost = [0.0]
        for share in shares:
            policy = TokenNarrowing(score, action, Shares(((layer, share),)))
            lost.append(max(lost[-1], measure(policy)))
        places = [own * share / WHOLE for share in (WHOLE, *shares)]
        slope = (lost[-1] - lost[-2]) / (places[-2] - places[-1])
        places, lost = [*places, 0.0], [*lost, lost[-1] + slope * places[-1]]
        found[layer] = np.interp(counts, places[::-1], lost[::-1])
    return found


def best(cost: TokenCost, score: Score, action: Action, lost: Floats, limit: float) -> tuple[int, ...] | None:
    """Return how many tokens enter each layer where the least is lost within a limit; None where nothing keeps it.

    Parameters
    ----------
    lost : ndarray, shape ``(layers - 1, total + 1)``
    limit : float
        Multiply-accumulates of the whole network.

    Returns
    -------
    tuple of int, shape ``(layers,)``, or None
    """
    tokens = cost.tokens
    layers = [cost.layer(layer, tokens.total) for layer in range(tokens.depth)]
    unit = (limit - (cost.whole() - sum(layers))) / BINS
    if unit <= 0:
        return None
    fewest = tokens.prefix + 1
    step = -(-(tokens.total - fewest) // _COUNTS) or 1
    counts = sorted({*range(tokens.total, fewest, -step), fewest})
    # By how many tokens enter a layer and how much of the budget is left for it and all that follow: the least loss.
    ahead = np.full((len(counts), BINS + 1), np.inf)
    for place, count in enumerate(counts):
        ahead[place, math.ceil(cost.layer(tokens.depth - 1, count) / unit) :] = 0.0
    choices = []
    for layer in range(tokens.depth - 2, -1, -1):
        now = np.full_like(ahead, np.inf)
        chosen = np.zeros(ahead.shape, dtype=np.int64)
        for place, present in enumerate(counts):
            for after, left in enumerate(counts[: place + 1]):
                if score.halves and present - left > most_paired(present, tokens.prefix):
                    continue
                need = math.ceil((cost.layer(layer, present) + _step(cost, score, action, layer, present, left)) / unit)
                if need > BINS:
                    continue
                options = ahead[after, : BINS + 1 - need] + (lost[layer, left] - lost[layer, present])
                better = options < now[place, need:]
                now[place, need:][better] = options[better]
                chosen[place, need:][better] = after
        ahead = now
        choices.append(chosen)
    place, free = len(counts) - 1, BINS
    if not np.isfinite(ahead[place, free]):
        return None
    entering = [tokens.total]
    for layer, chosen in enumerate(reversed(choices)):
        after = int(chosen[place, free])
        present, left = counts[place], counts[after]
        free -= math.ceil((cost.layer(layer, present) + _step(cost, score, action, layer, present, left)) / unit)
        place = after
        entering.append(left)
    return tuple(entering)


def least_macs(cost: TokenCost, score: Score, action: Action) -> float:
    """Return about the fewest multiply-accumulates that a policy of a score and an action can come to."""
    tokens = cost.tokens
    found = [cost.whole()]
    for steps in range(1, tokens.depth):
        entering = [tokens.total]
        for layer in range(tokens.depth - 1):
            present = entering[-1]
            most = most_paired(present, tokens.prefix) if score.halves else present
            left = max(tokens.prefix + 1, present - most) if layer < steps else present
            entering.append(left)
        found.append(cost.of_policy(TokenNarrowing(score, action, schedule_of(cost, entering))))
    return min(found)


def _step(cost: TokenCost, score: Score, action: Action, layer: int, present: int, left: int) -> int:
    """Return the multiply-accumulates of scoring and acting after a layer."""
    if left == present:
        return 0
    scoring = score.macs(present, prefix=cost.tokens.prefix, width=cost.widths[layer], head=cost.head)
    return scoring + action.macs(present, left, halves=score.halves, head=cost.head)


def schedule_of(cost: TokenCost, entering: Sequence[int]) -> Schedule:
    """Return the schedule after which so many tokens enter each layer; fewer after one of them, at least."""
    tokens = cost.tokens
    leaving = [
        (layer, before, after) for layer, (before, after) in enumerate(itertools.pairwise(entering)) if after < before
    ]
    if not tokens.free:
        return Counts(tuple((layer, after) for layer, _, after in leaving))
    # Rounded down: the share is rounded up when tokens are counted.
    prefix = tokens.prefix
    return Shares(tuple((layer, WHOLE * (after - prefix) // (before - prefix)) for layer, before, after in leaving))
