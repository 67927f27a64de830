"""What a policy saves: multiply-accumulates predicted from shapes, and the policy as decisions of a plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.bottlenecks.tokens.narrowing import Tokens
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths, policy_macs
from isthmus.bottlenecks.tokens.registry import from_data, to_data
from isthmus.bottlenecks.tokens.schedule import WHOLE, Counts, Shares
from isthmus.cost.examples import one_example
from isthmus.cost.measure import measure_macs
from isthmus.cost.rates import Rate
from isthmus.cost.tokens import token_macs, token_macs_rate
from isthmus.errors import BadInput
from isthmus.network import Network
from isthmus.plan import Decision
from isthmus.sites.tokens import token_sites, tokens_site

KIND = "tokens"


@dataclass(frozen=True)
class TokenCost:
    """What the tokens of a network cost.

    Parameters
    ----------
    rate : Rate
        Multiply-accumulates of one example by how many tokens go on from each layer.
    each : tuple of (int, int)
        What a token costs in each layer, and what a pair of tokens does.
    head : int
        The width of a head.
    tokens : Tokens
    """

    rate: Rate
    each: tuple[tuple[int, int], ...]
    head: int
    tokens: Tokens

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the width of each layer's heads together."""
        return tuple(pair // 2 for _, pair in self.each)

    def whole(self) -> float:
        """Return the multiply-accumulates with all tokens."""
        return self.of([self.tokens.total] * self.tokens.depth)

    def layer(self, layer: int, tokens: int) -> int:
        """Return the multiply-accumulates of a layer that so many tokens enter."""
        single, pair = self.each[layer]
        return single * tokens + pair * tokens**2

    def of(self, entering: Sequence[int]) -> float:
        """Return the multiply-accumulates with so many tokens entering each layer, without scoring."""
        return float(self.rate({tokens_site(layer): float(count) for layer, count in enumerate(entering[1:])}))

    def of_policy(self, policy: TokenNarrowing) -> float:
        """Return the multiply-accumulates of a policy, scoring and acting among them."""
        found = self.tokens
        entering = lengths(policy, found.depth, found.total, found.prefix)
        own = policy_macs(policy, entering, prefix=found.prefix, widths=self.widths, head=self.head)
        return self.of(entering) + sum(own)


def token_cost(network: Network, tokens: Tokens) -> TokenCost:
    """Measure what the tokens of a network cost, on one example of ``tokens.total`` of them."""
    config: Any = network.model.config
    inputs = one_example(network, tokens.total)
    each = token_macs(network.model, tokens.layers, inputs, tokens.total)
    sites = token_sites(tokens.depth, tokens.total, tokens.prefix)
    rate = token_macs_rate(measure_macs(network.model, inputs), each, sites, tokens.total)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return TokenCost(rate, tuple(each), int(head), tokens)


def to_decisions(policy: TokenNarrowing, tokens: Tokens) -> tuple[Decision, ...]:
    """Return a policy as decisions of a plan, one for each layer after which tokens leave.

    A unit is a place in the order of the score; where examples differ in length, a thousandth of the tokens.

    Raises
    ------
    BadInput
        If how many stay is not known beforehand.
    """
    schedule = policy.schedule
    if not isinstance(schedule, Counts | Shares):
        raise BadInput("tokens: how many stay by attention mass differs between examples, which a plan cannot hold")
    data = to_data(policy)
    how = json.dumps({**data, "schedule": schedule.name}, sort_keys=True)
    whole = WHOLE if isinstance(schedule, Shares) else tokens.total
    pairs = schedule.shares if isinstance(schedule, Shares) else schedule.counts
    return tuple(
        Decision(site=tokens_site(layer), kind=KIND, bottleneck=how, units=whole, keep=tuple(range(min(kept, whole))))
        for layer, kept in pairs
    )


def from_decisions(decisions: Sequence[Decision], tokens: Tokens) -> TokenNarrowing | None:
    """Return the policy that a plan holds, or None where it holds none.

    Raises
    ------
    BadInput
        If its decisions do not go together.
    """
    own = [decision for decision in decisions if decision.kind == KIND]
    if not own:
        return None
    if len({(decision.bottleneck, decision.units) for decision in own}) > 1:
        raise BadInput("plan: its decisions on tokens name several policies; leave one")
    names = {tokens_site(layer): layer for layer in range(tokens.depth - 1)}
    strange = [decision.site for decision in own if decision.site not in names]
    if strange:
        raise BadInput(f"plan: site {strange[0]} is not one of this network; plan again")
    pairs = sorted([names[decision.site], len(decision.keep)] for decision in own)
    try:
        how = json.loads(own[0].bottleneck)
    except ValueError:
        how = None
    if not isinstance(how, dict) or not isinstance(how.get("schedule"), str):
        raise BadInput(f"plan: {own[0].bottleneck!r} is not how tokens leave; plan again")
    name = how["schedule"]
    return from_data({**how, "schedule": {"name": name, f"{name}s": pairs}})
