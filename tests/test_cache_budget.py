"""The joint budget of bytes over the caches of layers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from decoders import decoder, tokens
from isthmus.allocation.cache import CachePlan, cheapest, menu, plan_cache
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.cache import NarrowCache
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.saving import read_settings, settings_data
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput, UnreachableBudget

SMALL = {"sinks": 4, "recent": 8, "block": 8}
LENGTH = 120
CHOICES = [
    CacheSetting(**SMALL),
    *(CacheSetting(codes=(Uniform(bits, bits, tokens=8),), **SMALL) for bits in (8, 3)),
    *(
        CacheSetting(registry.selector("snapkv"), (Uniform(bits, bits, tokens=8),), entries=entries, **SMALL)
        for bits in (8, 3)
        for entries in (60, 30)
    ),
]


@pytest.mark.parametrize("seed", range(6))
def test_the_solver_finds_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    nats, bytes_ = random.exponential(size=(4, 5)), random.integers(100, 9000, size=(4, 5))
    least = int(bytes_.min(1).sum())
    budget = least + int(random.integers(0, 6000))
    picked = cheapest(nats, bytes_, budget)
    rows = np.arange(4)
    assert bytes_[rows, picked].sum() <= budget
    best = min(
        nats[rows, list(way)].sum()
        for way in itertools.product(range(5), repeat=4)
        if bytes_[rows, list(way)].sum() <= budget
    )
    assert nats[rows, picked].sum() == pytest.approx(best, rel=1e-9)


@pytest.fixture(scope="module")
def plans() -> tuple[object, list[CachePlan]]:
    model, batches = decoder(), [tokens(2, LENGTH, seed=2)]
    budgets = [14_000, 18_000, 26_000]
    made = [plan_cache(model, batches, budget=one, length=LENGTH - 1, prompt=100, choices=CHOICES) for one in budgets]
    return model, made


def test_bytes_planned_are_bytes_allocated(plans: tuple[object, list[CachePlan]]) -> None:
    model, made = plans
    for plan in made:
        cache = NarrowCache(model, plan.settings)
        with torch.no_grad():
            model(tokens(1, LENGTH - 1), past_key_values=cache)  # type: ignore[operator]
        assert cache.allocated_bytes() == plan.bytes <= plan.budget < plan.full_bytes


def test_a_larger_budget_loses_no_more(plans: tuple[object, list[CachePlan]]) -> None:
    _, made = plans
    assert [plan.predicted for plan in made] == sorted((plan.predicted for plan in made), reverse=True)
    assert made[0].predicted > made[-1].predicted
    assert made[0].measured.nats > made[-1].measured.nats
    assert made[0].measured.nats == pytest.approx(made[0].predicted, rel=1.0)


def test_a_plan_is_data(plans: tuple[object, list[CachePlan]]) -> None:
    _, made = plans
    told = json.loads(json.dumps(settings_data(made[0].settings)))
    assert tuple(read_settings(told)) == made[0].settings
    with pytest.raises(BadInput, match="version 1"):
        read_settings({"version": 2, "settings": []})


def test_the_menu_is_shares_times_bits() -> None:
    offered = menu(512)
    # A sixteenth of 512 tokens, and an eighth, would not even hold the recent ones and a block.
    assert {one.entries for one in offered} == {None, 384, 256, 192, 128}
    assert len({(one.entries, one.codes) for one in offered}) == len(offered) == 5 * 5


def test_budgets_that_cannot_be_met_are_refused() -> None:
    model, batches = decoder(), [tokens(2, LENGTH, seed=2)]
    with pytest.raises(UnreachableBudget, match=r"the least is \d+ bytes"):
        plan_cache(model, batches, budget=1000, length=LENGTH, prompt=100, choices=CHOICES)
    with pytest.raises(BadInput, match="no settings"):
        plan_cache(model, batches, budget=10**6, length=LENGTH, prompt=100, choices=[])
    with pytest.raises(BadInput, match="has 192 positions"):
        plan_cache(model, batches, budget=10**6, length=200, prompt=100, choices=CHOICES)
    with pytest.raises(BadInput, match="a length of 0"):
        plan_cache(model, batches, budget=10**6, length=0, prompt=100, choices=CHOICES)
