"""A schedule from a budget of multiply-accumulates: how many tokens stay after each layer, solved over all layers.

What is lost after a layer is the share of the score that the tokens which are no longer there would have had, measured
with all tokens present. At a price of a multiply-accumulate the best counts are found exactly, from the last layer to
the first; the price is searched.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.bottlenecks.tokens.costing import TokenCost
from isthmus.bottlenecks.tokens.engine import scored_layers
from isthmus.bottlenecks.tokens.held import Held
from isthmus.bottlenecks.tokens.look import Score, Scored
from isthmus.bottlenecks.tokens.policy import Action, TokenNarrowing
from isthmus.bottlenecks.tokens.schedule import WHOLE, Counts, Schedule, Shares
from isthmus.errors import BadInput, UnreachableBudget

Floats = NDArray[np.float64]
_SEARCH = 60


def solved(
    model: Any, cost: TokenCost, score: Score, action: Action, limit: float, batches: Sequence[Mapping[str, Tensor]]
) -> TokenNarrowing:
    """Return the policy that loses least within a budget.

    Parameters
    ----------
    model : transformers model
        With all of its tokens.
    cost : TokenCost
        Of its tokens.
    limit : float
        Multiply-accumulates of one example, scoring and acting among them.
    batches : sequence of mappings of str to Tensor
        Inputs that the score is measured on.

    Raises
    ------
    BadInput
        If there is nothing to measure on, or tokens come back, so that what leaves one layer says nothing of the next.
    UnreachableBudget
        If no policy keeps it.
    """
    tokens = cost.tokens
    if action.layers_aside() not in (0, None):
        raise BadInput(f"tokens: {action.name} brings tokens back, which no budget follows; give a share or count")
    if not batches:
        raise BadInput("tokens: no examples to measure the score on; give a task that has some")
    everywhere = Shares(tuple((layer, WHOLE) for layer in range(tokens.depth - 1)))
    lost = lost_shares(model, TokenNarrowing(score, action, everywhere), cost, batches)
    low, high = 0.0, 1.0
    while _macs(cost, score, action, found := best(cost, score, action, lost, high)) > limit:
        low, high = high, high * 8
        if high > 8.0**_SEARCH:
            least = _macs(cost, score, action, found) / cost.whole()
            raise UnreachableBudget(
                f"tokens: {limit / cost.whole():.1%} of the multiply-accumulates cannot be reached by {score.name}; "
                f"the nearest is macs={least:.1%}"
            )
    for _ in range(_SEARCH):
        middle = (low + high) / 2
        tried = best(cost, score, action, lost, middle)
        if _macs(cost, score, action, tried) > limit:
            low = middle
        else:
            high, found = middle, tried
    schedule = _schedule(cost, found)
    if schedule is None:
        raise BadInput("tokens: the budget keeps all tokens; leave them as they are, or give less")
    return TokenNarrowing(score, action, schedule)


def lost_shares(model: Any, policy: TokenNarrowing, cost: TokenCost, batches: Sequence[Mapping[str, Tensor]]) -> Floats:
    """Return what share of the score goes where only so many tokens stay, shape ``(layers - 1, total + 1)``.

    Scores that are no shares are counted from the smallest one on, those of tokens that cannot leave as the largest.
    """
    tokens = cost.tokens
    grid = np.arange(tokens.total + 1) / tokens.total
    sums = np.zeros((tokens.depth - 1, tokens.total + 1))
    rows = 0

    def see(layer: int, scored: Scored, held: Held) -> None:
        nonlocal rows
        values = scored.values.double().numpy()
        for index, row in enumerate(values):
            own = row if held.real is None else row[held.real[index].numpy()]
            ranked = _weights(own[tokens.prefix :], policy.score.shares)
            kept = np.concatenate([np.zeros(tokens.prefix + 1), np.cumsum(ranked)])
            sums[layer] += np.interp(grid, np.arange(len(kept)) / max(1, len(kept) - 1), 1 - kept)
        rows += len(values) if layer == 0 else 0

    with torch.inference_mode(), scored_layers(model, tokens.layers, policy, tokens.prefix, see):
        for batch in batches:
            model(**batch)
    return sums / max(1, rows)


def _weights(values: Floats, shares: bool) -> Floats:
    """Return the scores of a row's tokens from the largest on, made to add up to 1."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.full(len(values), 1 / max(1, len(values)))
    own = np.where(np.isfinite(values), values, finite.max()) - (0.0 if shares else finite.min())
    ranked = -np.sort(-own)
    total = ranked.sum()
    return ranked / total if total > 0 else np.full(len(values), 1 / len(values))


def best(cost: TokenCost, score: Score, action: Action, lost: Floats, price: float) -> tuple[int, ...]:
    """Return how many tokens enter each layer where loss plus price times share of the cost is least.

    Parameters
    ----------
    lost : ndarray, shape ``(layers - 1, total + 1)``
    price : float
        Of all multiply-accumulates of the network together.

    Returns
    -------
    tuple of int, shape ``(layers,)``
    """
    tokens, whole = cost.tokens, cost.whole()
    counts = np.arange(tokens.total + 1)
    head = tokens.prefix + 1  # the fewest that may stay
    ahead: Floats = np.zeros(tokens.total + 1)
    choices = []
    for layer in range(tokens.depth - 1, -1, -1):
        single, pair = cost.each[layer]
        own: Floats = np.asarray(price * (single * counts + pair * counts**2) / whole, dtype=np.float64)
        if layer == tokens.depth - 1:
            ahead = own
            continue
        after = lost[layer] + ahead
        chosen = np.zeros(tokens.total + 1, dtype=np.int64)
        total = np.full(tokens.total + 1, np.inf)
        for present in range(head, tokens.total + 1):
            least = head
            if score.halves:
                least = max(head, present - ((present + 1) // 2 - (tokens.prefix + 1) // 2))
            options = after[least : present + 1].copy()
            scoring = score.macs(present, prefix=tokens.prefix, width=cost.widths[layer], head=cost.head)
            options[:-1] += price * scoring / whole
            options[:-1] += [
                price * action.macs(present, one, halves=score.halves, head=cost.head) / whole
                for one in range(least, present)
            ]
            place = int(np.argmin(options))
            chosen[present], total[present] = least + place, options[place] + own[present]
        ahead = total
        choices.append(chosen)
    entering = [tokens.total]
    for chosen in reversed(choices):
        entering.append(int(chosen[entering[-1]]))
    return tuple(entering)


def _macs(cost: TokenCost, score: Score, action: Action, entering: Sequence[int]) -> float:
    schedule = _schedule(cost, entering)
    return cost.whole() if schedule is None else cost.of_policy(TokenNarrowing(score, action, schedule))


def _schedule(cost: TokenCost, entering: Sequence[int]) -> Schedule | None:
    """Return the schedule after which so many tokens enter each layer; None where all stay."""
    tokens = cost.tokens
    leaving = [
        (layer, before, after) for layer, (before, after) in enumerate(itertools.pairwise(entering)) if after < before
    ]
    if not leaving:
        return None
    if not tokens.free:
        return Counts(tuple((layer, after) for layer, _, after in leaving))
    # Rounded down: the share is rounded up when tokens are counted.
    prefix = tokens.prefix
    return Shares(tuple((layer, WHOLE * (after - prefix) // (before - prefix)) for layer, before, after in leaving))
