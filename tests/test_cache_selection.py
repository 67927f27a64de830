"""What selectors keep, against an independent computation from the network's own attention (eager) or from loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import softmax
from torch import Tensor

from decoders import decoder, full_cache
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.cache import NarrowCache
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.measuring import persistences
from isthmus.bottlenecks.cache.roles import best
from isthmus.bottlenecks.cache.selection.ems import merged, shares
from isthmus.bottlenecks.cache.selection.keyformer import gumbel
from isthmus.bottlenecks.cache.selection.scissorhands import persistence
from isthmus.bottlenecks.cache.selection.snapkv import pooled
from isthmus.bottlenecks.cache.selection.zipvl import covering
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

SMALL = {"sinks": 4, "recent": 8, "block": 8}
LENGTH, ENTRIES = 92, 44
MOVED = range(4, 84)  # between the sinks and the recent tokens, a multiple of the block


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """A network, a prompt, its keys, and its attention and logits as the eager function has them."""
    model = decoder()
    # No token twice: keys of the same token have the same norm.
    ids = torch.stack([torch.randperm(94, generator=torch.Generator().manual_seed(row))[:LENGTH] + 3 for row in (0, 1)])
    cache = full_cache(model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        model.set_attn_implementation("eager")
        probs = model(ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    # Two query heads share a key-value head.
    grouped = [one.view(2, 2, 2, LENGTH, LENGTH).double().numpy() for one in probs]
    return {"model": model, "ids": ids, "keys": [layer.keys for layer in cache.layers], "probs": grouped}


def kept(seen: dict[str, Any], name: str, **options: Any) -> list[list[list[set[int]]]]:
    """Return which of the moved tokens stay, by layer, row and head."""
    setting = CacheSetting(registry.selector(name, **options), entries=ENTRIES, **SMALL)
    cache = NarrowCache(seen["model"], setting)
    with torch.no_grad():
        seen["model"](seen["ids"], past_key_values=cache)
    return [
        [
            [
                places(keys[row, head], layer.tiers[0].dense()[0][row, head, : int(layer.tiers[0].counts[row, head])])
                for head in range(2)
            ]
            for row in range(2)
        ]
        for layer, keys in zip(cache.narrowed, seen["keys"], strict=True)
    ]


def places(keys: Tensor, held: Tensor, within: float = 1e-4) -> set[int]:
    distance = torch.cdist(held.double(), keys.double())
    assert float(distance.min(1).values.max()) < within
    return set(distance.argmin(1).tolist())


def top(score: np.ndarray, count: int = ENTRIES - 20) -> set[int]:
    """Return the moved tokens with the highest scores, ``(T,)``."""
    order = sorted(MOVED, key=lambda at: (-score[at], -at))
    return set(order[:count])


def check(seen: dict[str, Any], name: str, score: Any, **options: Any) -> None:
    found = kept(seen, name, **options)
    for layer in range(2):
        for row in range(2):
            for head in range(2):
                wanted = top(score(seen["probs"][layer][row, head], seen["keys"][layer][row, head]))
                assert len(found[layer][row][head]) == ENTRIES - 20
                assert found[layer][row][head] == wanted, (layer, row, head)


def test_window_keeps_the_newest(seen: dict[str, Any]) -> None:
    check(seen, "window", lambda probs, keys: np.arange(LENGTH))


def test_key_norm_keeps_the_shortest_keys(seen: dict[str, Any]) -> None:
    check(seen, "key-norm", lambda probs, keys: -np.linalg.norm(keys.double().numpy(), axis=1))


def test_h2o_keeps_what_drew_most_attention(seen: dict[str, Any]) -> None:
    check(seen, "h2o", lambda probs, keys: probs.mean(0).sum(0))


def test_snapkv_keeps_what_the_last_queries_look_at_and_its_neighbours(seen: dict[str, Any]) -> None:
    def score(probs: np.ndarray, keys: Tensor) -> np.ndarray:
        drawn = probs[:, -10:].mean(0).sum(0)
        out = np.full(LENGTH, -1.0)
        for at in MOVED:
            around = [drawn[near] for near in range(at - 2, at + 3) if near in MOVED]
            out[at] = sum(around) / 5
        return out

    check(seen, "snapkv", score, queries=10, kernel=5)


def test_keyformer_adds_noise_and_heat(seen: dict[str, Any]) -> None:
    ranks = torch.arange(LENGTH)
    noise = gumbel(ranks[None, :], ranks[:, None], 5).double().numpy()

    def score(probs: np.ndarray, keys: Tensor) -> np.ndarray:
        with np.errstate(divide="ignore"):
            logits = np.log(probs)  # but for a constant a query, which the softmax takes away
        return softmax((logits + noise) / 1.5, axis=-1).mean(0).sum(0)

    check(seen, "keyformer", score, start=1.5, end=2.0, seed=5)


def test_keyformers_noise_is_gumbels_and_its_heat_rises() -> None:
    grid = torch.arange(200)
    noise = gumbel(grid[:, None], grid[None, :], 1).flatten().numpy()
    assert scipy.stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    assert not np.array_equal(noise, gumbel(grid[:, None], grid[None, :], 2).flatten().numpy())
    keyformer = registry.selector("keyformer", start=1.0, end=2.0, steps=10)
    heat = keyformer.temperature(torch.tensor([[0, 19, 20, 24, 29, 99]]), torch.tensor([20]))
    assert heat[0].tolist() == pytest.approx([1.0, 1.0, 1.1, 1.5, 2.0, 2.0])


def test_scissorhands_keeps_what_was_pivotal(seen: dict[str, Any]) -> None:
    def score(probs: np.ndarray, keys: Tensor) -> np.ndarray:
        visible = np.arange(1, LENGTH + 1)[:, None]
        return (probs > 1 / visible)[:, -20:].mean(0).sum(0)

    check(seen, "scissorhands", score, queries=20)


def test_persistence_is_counted_entry_by_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 12, 12, generator=generator).mul(2).masked_fill(~torch.ones(12, 12).tril().bool(), -9e9)
    probs = logits.softmax(-1)
    ratios, chances = [], []
    for row in range(2):
        for head in range(3):
            early = {k for q in range(6) for k in range(q + 1) if probs[row, head, q, k] > 1 / (q + 1)}
            late = {k for q in range(6, 12) for k in range(6) if probs[row, head, q, k] > 1 / (q + 1)}
            ratios.append(len(early & late) / len(late) if late else 1.0)
            chances.append(len(early) / 6)
    found = persistence(probs)
    assert found.ratio == pytest.approx(np.mean(ratios))
    assert found.chance == pytest.approx(np.mean(chances))
    with pytest.raises(BadInput, match="give \\(rows, heads, T, T\\)"):
        persistence(probs[0])


def test_persistence_is_measured_on_a_networks_own_attention(seen: dict[str, Any]) -> None:
    before = seen["model"].config._attn_implementation
    found = persistences(seen["model"], seen["ids"])
    assert seen["model"].config._attn_implementation == before
    assert len(found) == 2
    for layer, one in enumerate(found):
        own = persistence(torch.from_numpy(seen["probs"][layer]).flatten(1, 2))
        assert one.ratio == pytest.approx(own.ratio)
        assert one.chance == pytest.approx(own.chance)
        assert one.ratio > one.chance
    with pytest.raises(BadInput, match="4 tokens or more"):
        persistences(seen["model"], seen["ids"][:, :3])


def test_zipvl_covers_the_attention_with_the_first_code(seen: dict[str, Any]) -> None:
    codes = (Uniform(8, 8, tokens=8), Uniform(2, 2, tokens=8))
    cache = NarrowCache(seen["model"], CacheSetting(registry.selector("zipvl", mass=0.8), codes, **SMALL))
    with torch.no_grad():
        seen["model"](seen["ids"], past_key_values=cache)
    counts = []
    for layer, probs in zip(cache.narrowed, seen["probs"], strict=True):
        for row in range(2):
            drawn = probs[row].mean(1).sum(1).mean(0)
            moved = np.array(MOVED)
            ordered, covered, needed = np.sort(drawn[moved])[::-1], 0.0, 0
            while covered < 0.8 * drawn[moved].sum():
                covered += ordered[needed]
                needed += 1
            counts.append(needed)
            assert layer.tiers[0].counts[row].tolist() == [needed, needed]
            assert layer.tiers[1].counts[row].tolist() == [len(moved) - needed] * 2
            normal = drawn / np.arange(LENGTH, 0, -1)
            chosen = set(moved[np.argsort(-normal[moved], kind="stable")][:needed].tolist())
            held = layer.tiers[0].dense()[0][row, 0][:needed]
            assert places(seen["keys"][layer.index][row, 0], held, within=0.1) == chosen
    assert len(set(counts)) > 1


def test_covering_is_the_fewest() -> None:
    drawn = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert covering(drawn, 0.7).tolist() == [2, 3, 0]
    assert covering(drawn, 1.0).tolist() == [4, 4, 0]


def test_pooling_passes_over_what_is_no_entry() -> None:
    score = torch.tensor([[[1.0, 9.0, 2.0, 3.0, 9.0]]])
    real = torch.tensor([[[True, False, True, True, False]]])
    assert pooled(score, real, 3)[real].tolist() == pytest.approx([1.0, 2.0, 5 / 3])


def test_best_prefers_the_newer_of_equals() -> None:
    keep = best(torch.tensor([[[1.0, 2.0, 1.0, 1.0]]]), torch.ones(1, 1, 4, dtype=torch.bool), torch.tensor([[2]]))
    assert keep.tolist() == [[[False, True, False, True]]]


def test_ems_scores_and_shares_entries_among_heads(seen: dict[str, Any]) -> None:
    found = kept(seen, "ems-kv", queries=10, similarity=2.0, floor=0.5, mass=0.9)
    allowed = ENTRIES - 20
    for layer in range(2):
        for row in range(2):
            scores, needs = [], []
            for head in range(2):
                probs = seen["probs"][layer][row, head].mean(0)
                everywhere = probs.sum(0)[4:84] / np.arange(LENGTH, 0, -1)[4:84]
                local = probs[-10:].sum(0)[4:84]
                score = np.maximum(everywhere / everywhere.sum(), local / local.sum())
                ordered = np.sort(score)[::-1].cumsum()
                needs.append(int((ordered < 0.9 * ordered[-1]).sum()) + 1)
                scores.append(score)
            given = [len(found[layer][row][head]) for head in range(2)]
            assert sum(given) == 2 * allowed
            assert min(given) >= allowed // 2
            spare = 2 * allowed - 2 * (allowed // 2)
            for head in range(2):
                exact = allowed // 2 + spare * needs[head] / sum(needs)
                assert abs(given[head] - exact) <= 1
                order = np.argsort(-scores[head], kind="stable")[: given[head]]
                assert found[layer][row][head] == {int(at) + 4 for at in order}


def test_shares_go_round_heads_that_have_few() -> None:
    score = torch.rand(1, 3, 20, generator=torch.Generator().manual_seed(1))
    real = torch.ones(1, 3, 20, dtype=torch.bool)
    real[0, 0, 3:] = False
    given = shares(score, real, 10, 0.9, 0.5)[0].tolist()
    assert given[0] == 3
    assert sum(given) == 30
    assert shares(score, real, 30, 0.9, 0.5)[0].tolist() == [3, 20, 20]


def test_merging_adds_by_score_to_the_likest_key() -> None:
    generator = torch.Generator().manual_seed(2)
    keys, values = torch.randn(1, 1, 7, 4, generator=generator), torch.randn(1, 1, 7, 3, generator=generator)
    score = torch.rand(1, 1, 7, generator=generator)
    keep = torch.tensor([[[True, False, True, False, False, True, False]]])
    real = torch.tensor([[[True, True, True, True, True, True, False]]])
    found = merged(keys, values, score, keep, real, 0.2)
    for part, out in zip((keys, values), found, strict=True):
        for at in (0, 2, 5):
            total, mass = score[0, 0, at] * part[0, 0, at], score[0, 0, at]
            for other in (1, 3, 4):
                cosines = [
                    float(torch.cosine_similarity(keys[0, 0, other], keys[0, 0, k], dim=0)) if keep[0, 0, k] else -9
                    for k in range(7)
                ]
                if int(np.argmax(cosines)) == at and max(cosines) >= 0.2:
                    total, mass = total + score[0, 0, other] * part[0, 0, other], mass + score[0, 0, other]
            assert torch.allclose(out[0, 0, at], total / mass, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snapkv", {"kernel": 4}, "odd kernel"),
        ("keyformer", {"start": 0.0}, "above zero"),
        ("scissorhands", {"queries": 0}, "1 or more"),
        ("zipvl", {"mass": 0.0}, "above 0"),
        ("zipvl", {"mass": math.nan}, "above 0"),
        ("ems-kv", {"floor": 2.0}, "two shares"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        registry.selector(name, **options)
