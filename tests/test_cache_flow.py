"""A cache in a budget: planned, saved with the network, given by it when opened again, and measured as allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import decoders
import isthmus
import quick
import small
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.measuring import in_bfloat16
from isthmus.bottlenecks.cache.saving import apply, describe, keep_settings, kept_settings
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.budget import parse_budget
from isthmus.errors import BadArtifact, BadBudget, BadInput, UnreachableBudget
from isthmus.flow import caching, verifying
from isthmus.network import Network
from isthmus.tasks import Task
from isthmus.tasks.language import language_task

LENGTH = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoders.write_decoder(tmp_path_factory.mktemp("decoder") / "model", max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return isthmus.open(folder)


@pytest.fixture(scope="module")
def task() -> Task:
    texts = [" ".join(small.sentences(30, seed=seed)) for seed in range(16)]
    return language_task("texts", "texts", texts[:10], texts[10:], 0)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    monkeypatch.setattr(verifying, "bench_networks", quick.benched)
    few = caching.menu(LENGTH, sinks=2, recent=8, block=8)[::4]
    monkeypatch.setattr(caching, "menu", lambda *_, **__: few)


@pytest.mark.parametrize("budget", ["cache=40%", "params=80%,cache=40%"])
def test_a_budget_of_the_cache_is_met_and_the_opened_network_gives_it(
    budget: str, network: Network, task: Task, tmp_path: Path
) -> None:
    made = isthmus.narrow(network, task, to=budget, method="magnitude", effort="none", out=tmp_path / "small")
    first, second = (made.record["measurements"][name] for name in ("original", "narrowed"))
    heads, size, layers = 2, 8, 2
    assert first["cache_bytes"] == 2 * layers * heads * size * 2 * (LENGTH - 1), "of bfloat16"
    assert 0 < second["cache_bytes"] <= 0.4 * first["cache_bytes"]
    assert second["cache_perplexity"] > 0
    assert set(second["cache_recall"]) == {"pairs", "copies", "needles"}
    opened = isthmus.open(tmp_path / "small")
    if budget.startswith("cache"):
        assert all(
            torch.equal(a, b) for a, b in zip(opened.model.parameters(), network.model.parameters(), strict=True)
        )
    half = in_bfloat16(opened.model)
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32 != half.dtype
    object.__setattr__(opened, "model", half)
    cache = opened.cache()
    with torch.no_grad():
        half(torch.full((1, LENGTH - 1), 7), past_key_values=cache)
    assert cache.allocated_bytes() <= 0.4 * first["cache_bytes"]
    said: Any = opened.model.generate(torch.full((1, 40), 7), past_key_values=opened.cache(), max_new_tokens=3)
    assert said.shape == (1, 43)
    saving = next(one for one in made.report.savings if one.currency == "cache")
    assert saving.narrowed == second["cache_bytes"]
    with pytest.raises(BadInput, match="cache is planned, which comes last"):
        isthmus.narrow(opened, task, to="params=80%")


def test_an_unreachable_cache_is_refused(network: Network, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UnreachableBudget, match="the least is"):
        isthmus.narrow(network, task, to="cache=1%", effort="none", out=tmp_path / "small")
    assert not (tmp_path / "small").exists()
    with pytest.raises(BadBudget, match="the original costs only"):
        isthmus.narrow(network, task, to="cache=1GB", effort="none")


def test_a_network_without_cache_is_refused(network: Network) -> None:
    encoder = Network("encoder", network.model, network.tokenizer, "mean", False, 64)
    with pytest.raises(BadInput, match="keeps no cache"):
        caching.check_keeps_cache(encoder)
    with pytest.raises(BadInput, match="nothing is planned"):
        network.cache()


def test_a_budget_says_what_the_cache_is() -> None:
    budget = parse_budget("bytes=25%,cache=2KB")
    limit = caching.limit_of(budget)
    assert limit is not None
    assert (limit.value, limit.relative, str(caching.rest_of(budget))) == (2000.0, False, "bytes=25%")


def test_a_damaged_plan_is_refused() -> None:
    model = decoders.decoder()
    settings = [CacheSetting(registry.selector("snapkv"), entries=80), CacheSetting()]
    keep_settings(model, settings)
    data = describe(model)
    other = decoders.decoder()
    assert describe(other) is None
    assert data is not None
    apply(other, data, lambda name: name)
    assert kept_settings(other) == tuple(settings)
    for damage in ({**data, "version": 9}, {**data, "settings": data["settings"][:1]}, {**data, "settings": [{}, {}]}):
        with pytest.raises(BadArtifact, match="restore the file"):
            apply(other, damage, lambda name: name)
