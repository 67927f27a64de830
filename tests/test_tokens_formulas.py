"""The formulas of scores, actions, schedules and budgets of tokens, each against a computation of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.bottlenecks.tokens import registry
from isthmus.bottlenecks.tokens.actions.drop import Drop
from isthmus.bottlenecks.tokens.actions.merge import Merge
from isthmus.bottlenecks.tokens.budget import BINS, best, losses, solved
from isthmus.bottlenecks.tokens.costing import token_cost
from isthmus.bottlenecks.tokens.engine import narrowed
from isthmus.bottlenecks.tokens.held import Held, started
from isthmus.bottlenecks.tokens.look import Look, Scored, chosen
from isthmus.bottlenecks.tokens.narrowing import narrow_tokens
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths
from isthmus.bottlenecks.tokens.refining import refined
from isthmus.bottlenecks.tokens.schedule import Counts, Mass, Shares
from isthmus.bottlenecks.tokens.scores.chance import Chance
from isthmus.bottlenecks.tokens.scores.class_attention import ClassAttention
from isthmus.bottlenecks.tokens.scores.information_degree import InformationDegree
from isthmus.bottlenecks.tokens.scores.received_attention import ReceivedAttention
from isthmus.bottlenecks.tokens.scores.similarity import Similarity
from isthmus.cost.measure import measure_macs
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.network import Network
from tokened import WHERE, inputs_of, network_of, ran

ROWS, HEADS, COUNT, HEAD = 2, 3, 9, 4


def look(prefix: int = 1, real: Tensor | None = None, sizes: Tensor | None = None, seed: int = 0) -> Look:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, COUNT, 6, generator=generator)
    query, key = (torch.randn(ROWS, HEADS, COUNT, HEAD, generator=generator) for _ in range(2))
    held = replace(started(hidden, None), real=real, sizes=sizes)
    return Look(hidden, query, key, 0.5, held, prefix, 1)


def padded() -> Tensor:
    real = torch.ones(ROWS, COUNT, dtype=torch.bool)
    real[1, 6:] = False
    return real


def attention(seen: Look, row: int, head: int, query: int) -> list[float]:
    """Return what a query looks at, number by number."""
    weights = []
    for key in range(COUNT):
        if seen.held.real is not None and not seen.held.real[row, key]:
            weights.append(0.0)
            continue
        product = sum(
            float(a) * float(b) for a, b in zip(seen.query[row, head, query], seen.key[row, head, key], strict=True)
        )
        size = 1.0 if seen.held.sizes is None else float(seen.held.sizes[row, key])
        weights.append(size * math.exp(product * seen.scaling))
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("prefix", [1, 2])
def test_class_attention(prefix: int) -> None:
    seen = look(prefix, padded(), torch.arange(1.0, COUNT + 1).expand(ROWS, COUNT))
    found = ClassAttention().scored(seen).values
    for row in range(ROWS):
        rows = [attention(seen, row, head, query) for head in range(HEADS) for query in range(prefix)]
        assert found[row].tolist() == pytest.approx(np.mean(rows, 0), abs=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_received_attention(every: int) -> None:
    seen = look(1, padded())
    found = ReceivedAttention(every).scored(seen).values
    for row, count in enumerate((COUNT, 6)):
        rows = [attention(seen, row, head, query) for head in range(HEADS) for query in range(0, count, every)]
        assert found[row].tolist() == pytest.approx(np.mean(rows, 0), abs=1e-6)
    whole = ReceivedAttention().scored(look()).values
    assert whole.sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def pairs(seen: Look, row: int) -> dict[int, tuple[float, int]]:
    """Return the likeness and the partner of each token that may leave."""
    keys = seen.key[row].mean(0).double().numpy()
    real = [True] * COUNT if seen.held.real is None else seen.held.real[row].tolist()
    found = {}
    for token in range(0, COUNT, 2):
        others = [other for other in range(1, COUNT, 2) if other >= seen.prefix and real[other]]
        if token < seen.prefix or not real[token]:
            continue
        likeness = [
            float(keys[token] @ keys[other] / np.linalg.norm(keys[token]) / np.linalg.norm(keys[other]))
            for other in others
        ]
        found[token] = (max(likeness), others[int(np.argmax(likeness))])
    return found


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("real", [None, padded()])
def test_similarity_and_information_degree(prefix: int, real: Tensor | None) -> None:
    seen = look(prefix, real)
    scored = Similarity().scored(seen)
    assert scored.partners is not None
    degree = InformationDegree(weight=3.0).scored(seen) if prefix else None
    for row in range(ROWS):
        own = pairs(seen, row)
        for token in range(COUNT):
            if token in own:
                assert float(scored.values[row, token]) == pytest.approx(-own[token][0], abs=1e-6)
                assert int(scored.partners[row, token]) == own[token][1]
            elif token % 2 or token < prefix:
                assert float(scored.values[row, token]) == math.inf
            if degree is not None and token in own:
                given = np.mean(
                    [attention(seen, row, head, query)[token] for head in range(HEADS) for query in range(prefix)]
                )
                assert float(degree.values[row, token]) == pytest.approx(3 * given - own[token][0], abs=1e-5)


def test_chance_depends_on_seed_and_layer_alone() -> None:
    seen = look()
    first = Chance().scored(seen).values
    assert torch.equal(first, Chance().scored(look(seed=3)).values)
    assert not torch.equal(first, Chance(1).scored(seen).values)
    assert not torch.equal(first, Chance().scored(replace(seen, layer=2)).values)
    many = Chance().scored(replace(seen, hidden=torch.zeros(1, 4000, 1))).values[0]
    counts = torch.histc(many, 8, 0, 32749)
    assert counts.min() > 400
    assert counts.max() < 600
    assert len(set(many.tolist())) > 3500


def test_merged_tokens_are_means_of_what_they_stand_for() -> None:
    """Two steps: every token that is left is the plain mean of the first ones that became a part of it."""
    seen = look(1, padded())
    first_hidden = seen.hidden
    for score in (Similarity(), ClassAttention()):
        now = seen
        for left in (7, 6):
            scored = score.scored(now)
            schedule = Shares(((1, 720),))
            choice = chosen(
                scored, now.held, 1, left, lambda rank, counted, own=schedule: own.staying(1, 1, rank, counted)
            )
            hidden, held = Merge().done(now, scored, choice, 9)
            shape = (ROWS, HEADS, left, HEAD)
            now = replace(now, hidden=hidden, held=held, query=now.query[:, :, :left], key=torch.randn(shape))
        assert now.held.slots is not None
        assert now.held.sizes is not None
        for row, count in enumerate((COUNT, 6)):
            groups: dict[int, list[int]] = {}
            for token in range(count):
                groups.setdefault(int(now.held.slots[row, token]), []).append(token)
            assert groups[0] == [0]
            for slot, members in groups.items():
                assert float(now.held.sizes[row, slot]) == len(members)
                mean = first_hidden[row, members].mean(0)
                assert torch.allclose(now.hidden[row, slot], mean, atol=1e-6)
            assert float(now.held.sizes[row].sum()) == count
        spread = Merge().restored(now.hidden, now.held)
        assert torch.allclose(spread[0].mean(0), first_hidden[0].mean(0), atol=1e-6)


def test_a_plain_score_merges_into_the_nearest_that_stays() -> None:
    seen = look()
    values = torch.arange(COUNT, 0, -1.0).expand(ROWS, COUNT)
    scored = Scored(values)
    choice = chosen(scored, seen.held, 1, 5)
    _, held = Merge().done(seen, scored, choice, 9)
    assert held.slots is not None
    keys = torch.nn.functional.normalize(seen.key.mean(1), dim=-1)
    for row, token in itertools.product(range(ROWS), range(5, COUNT)):
        likeness = [float(keys[row, token] @ keys[row, other]) for other in range(1, 5)]
        assert int(held.slots[row, token]) == 1 + int(np.argmax(likeness))


def test_sizes_count_in_attention_as_so_many_equal_keys() -> None:
    """Proportional attention on merged keys is plain attention on the keys repeated."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4, 8, generator=generator) for _ in range(3))
    sizes = torch.tensor([[1.0, 3.0, 2.0, 1.0]])
    held = Held(7, torch.arange(4)[None], sizes=sizes, changed=True)
    function = torch.nn.functional.scaled_dot_product_attention
    found = function(query, key, value, attn_mask=held.mask(torch.float32))
    repeats = sizes[0].long()
    expected = function(query, key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2))
    assert torch.allclose(found, expected, atol=1e-6)
    assert replace(held, proportional=False).mask(torch.float32) is None


def test_what_was_dropped_is_given_back_as_the_mean_of_what_stayed() -> None:
    seen = look(1, padded())
    scored = ClassAttention().scored(seen)
    choice = chosen(scored, seen.held, 1, 5, lambda rank, counted: rank < torch.tensor([[5], [3]]))
    hidden, held = Drop().done(seen, scored, choice, 9)
    spread = Drop().restored(hidden, held)
    for row, (left, count) in enumerate(((5, COUNT), (3, 6))):
        order = sorted(range(1, count), key=lambda token, row=row: -float(scored.values[row, token]))
        kept = sorted([0, *order[: left - 1]])
        mean = seen.hidden[row, kept].mean(0)
        for token in range(count):
            assert torch.allclose(spread[row, token], seen.hidden[row, token] if token in kept else mean, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_shares_are_rounded_up_in_every_row(prefix: int) -> None:
    for share, count in itertools.product((1, 333, 500, 700, 701, 999, 1000), range(prefix + 1, 30)):
        schedule = Shares(((0, share),))
        left = schedule.left(0, count, prefix)
        assert left == prefix + math.ceil((count - prefix) * share / 1000 - 1e-9)
        stay = schedule.staying(0, prefix, torch.arange(30)[None], torch.tensor([[count]]))
        assert int(stay.sum()) == left
    assert Counts(((0, 7),)).left(0, 5, 1) == 5
    assert Counts(((0, 7),)).left(0, 9, 1) == 7
    with pytest.raises(BadInput, match="give 100% or less"):
        Mass(1100, (0,))


def test_mass_needs_the_fewest_tokens_that_hold_it() -> None:
    values = torch.tensor([[9.0, 0.1, 0.5, 0.1, 0.3], [9.0, 0.7, 0.1, 0.1, 0.1], [9.0, 0.0, 0.0, 0.0, 0.0]])
    held = started(values[..., None], None)
    for mass in (100, 450, 750, 850, 1000):
        needed = Mass(mass, (0,)).needed(values, held, 1)[:, 0].tolist()
        for row, found in enumerate(needed[:2]):
            own = sorted(values[row, 1:].tolist(), reverse=True)
            fewest = next(count for count in range(1, 5) if sum(own[:count]) >= mass / 1000 * sum(own) - 1e-6)
            assert found == 1 + fewest, (mass, row)
        assert needed[2] == 2
    real = torch.tensor([[True, True, False, True, True]]).expand(3, 5)
    assert Mass(700, (0,)).needed(values, replace(held, real=real), 1)[0, 0] == 3


def test_a_token_costs_what_a_layer_multiplies() -> None:
    cost = token_cost(network_of("vit"), WHERE["vit"])
    width, neurons = 32, 48
    assert cost.each == ((4 * width**2 + 2 * width * neurons, 2 * width),) * 4
    assert (cost.widths, cost.head) == ((32,) * 4, 8)


@pytest.mark.parametrize("name", ["class-attention", "similarity"])
def test_the_best_counts_are_those_of_trying_all(name: str) -> None:
    score, place = registry.score(name), replace(WHERE["vit"], total=6)
    cost = replace(token_cost(network_of("vit"), WHERE["vit"]), tokens=place)
    lost = np.random.default_rng(0).random((3, 7))
    lost = -np.sort(-lost, axis=1)
    rest = cost.whole() - sum(a * 6 + b * 36 for a, b in cost.each)
    tried = {}
    for after in itertools.product(range(2, 7), repeat=3):
        entering = (6, *after)
        steps = list(itertools.pairwise(entering))
        if any(after > before for before, after in steps):
            continue
        if score.halves and any(before - after > (before + 1) // 2 - 1 for before, after in steps):
            continue
        macs = rest + sum(a * n + b * n * n for (a, b), n in zip(cost.each, entering, strict=True))
        macs += sum(score.macs(n, prefix=1, width=32, head=8) for n, after in steps if after < n)
        tried[entering] = macs, sum(lost[layer, m] - lost[layer, n] for layer, (n, m) in enumerate(steps))
    for share in (0.8, 0.85, 0.9, 0.95):
        limit = share * cost.whole()
        found = best(cost, score, registry.action("drop"), lost, limit)
        assert found is not None
        macs, lose = tried[found]
        assert macs <= limit
        # Costs are rounded up, each layer's to a thousandth of the limit.
        assert lose <= min(one for some, one in tried.values() if some <= limit * (1 - 5 / BINS)) + 1e-12
    assert best(cost, score, registry.action("drop"), lost, 0.1 * cost.whole()) is None


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize(
    ("score", "action"), [("class-attention", "drop"), ("similarity", "merge"), ("random", "drop")]
)
def test_a_budget_is_kept_and_nearly_spent(name: str, score: str, action: str) -> None:
    network = network_of(name)
    cost = token_cost(network, WHERE[name])
    limit = 0.75 * cost.whole()
    found = solved(cost, registry.score(score), registry.action(action), limit, moved(network, name))
    assert 0.65 * cost.whole() < cost.of_policy(found) <= limit
    small = narrow_tokens(network, found, WHERE[name])
    inputs = inputs_of(name, 1)
    inputs = {key: value[:, : WHERE[name].total] for key, value in inputs.items()}
    assert measure_macs(small.model, inputs) <= limit
    assert network.model.config._attn_implementation == "sdpa"


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    network = network_of("vit")
    cost = token_cost(network, WHERE["vit"])

    def solve(score: str, action: str, share: float) -> None:
        measure = moved(network, "vit")
        solved(cost, registry.score(score), registry.action(action), share * cost.whole(), measure)

    with pytest.raises(UnreachableBudget, match=r"the nearest is macs=\d"):
        solve("similarity", "merge", 0.05)
    with pytest.raises(BadInput, match="brings tokens back"):
        solve("random", "pause", 0.5)
    with pytest.raises(BadInput, match="keeps all tokens"):
        solve("random", "drop", 1.0)


@pytest.mark.parametrize("name", ["similarity", "random"])
def test_losses_are_those_measured_straight_between_and_beyond(name: str) -> None:
    cost = token_cost(network_of("vit"), WHERE["vit"])
    asked: list[tuple[int, int]] = []

    def measure(policy: TokenNarrowing) -> float:
        assert isinstance(policy.schedule, Shares)
        ((layer, share),) = policy.schedule.shares
        asked.append((layer, share))
        return (1000 - share) * (layer + 1) / 1000

    score = registry.score(name)
    found = losses(cost, score, registry.action("drop"), measure)
    assert len(asked) == 9
    assert all(share >= 500 for _, share in asked) == score.halves
    for layer in range(3):
        expected = [(layer + 1) * (1 - count / 16) for count in range(17)]
        assert found[layer, 1:] == pytest.approx(expected, abs=1e-9)
    # Fewer tokens never lose less, whatever noise measuring has.
    noise = iter([0.5, 0.2, 0.7] * 3)
    falling = losses(cost, score, registry.action("drop"), lambda policy: next(noise))
    assert (np.diff(falling, axis=1) <= 0).all()


def moved(network: Network, name: str) -> Callable[[TokenNarrowing], float]:
    """Return a measure of how far a policy moves the outputs of a network."""
    inputs, place = inputs_of(name), WHERE[name]
    whole = ran(network, inputs)

    def measure(policy: TokenNarrowing) -> float:
        with narrowed(network.model, place.layers, policy, prefix=place.prefix, restore=name == "bert"):
            return float((ran(network, inputs) - whole).square().mean())

    return measure


@pytest.mark.parametrize("name", ["class-attention", "similarity"])
def test_trades_between_layers_find_what_the_sum_of_losses_did_not(name: str) -> None:
    """A loss that does not add up: the answer is set beside every schedule that keeps the limit."""
    score, place = registry.score(name), replace(WHERE["vit"], total=8)
    cost = replace(token_cost(network_of("vit"), WHERE["vit"]), tokens=place)
    action, limit = registry.action("drop"), 0.7 * cost.whole()

    def measure(policy: TokenNarrowing) -> float:
        _, first, second, third = lengths(policy, 4, 8, 1)
        return (8 - first) ** 2 / 9 + (first - second) * (second - third) / 4 + (8 - third) / 8

    before = solved(cost, score, action, limit, lambda policy: float(sum(8 - n for n in lengths(policy, 4, 8, 1))))
    after = refined(cost, before, limit, measure)
    assert cost.of_policy(after) <= limit
    assert measure(after) <= measure(before)
    tried = []
    for left in itertools.product(range(2, 9), repeat=3):
        steps = list(itertools.pairwise((8, *left)))
        if any(n > m for m, n in steps) or (score.halves and any(m - n > (m + 1) // 2 - 1 for m, n in steps)):
            continue
        leaving = tuple((layer, n) for layer, (m, n) in enumerate(steps) if n < m)
        made = TokenNarrowing(score, action, Counts(leaving)) if leaving else None
        if made is not None and cost.of_policy(made) <= limit:
            tried.append(measure(made))
    assert measure(after) <= sorted(tried)[len(tried) // 10]
    assert refined(cost, before, limit, measure, measurements=0) is before


def test_a_refined_share_of_texts_keeps_the_budget_too() -> None:
    network = network_of("bert")
    cost = token_cost(network, WHERE["bert"])
    score, action, measure = registry.score("received-attention"), registry.action("merge"), moved(network, "bert")
    limit = 0.75 * cost.whole()
    before = solved(cost, score, action, limit, measure)
    after = refined(cost, before, limit, measure, measurements=12)
    assert isinstance(after.schedule, Shares)
    assert cost.of_policy(after) <= limit
    assert measure(after) <= measure(before)
