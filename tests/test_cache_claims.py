"""Claims about caches: what is measured is what is allocated, and parts decide as their rules say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from claims import caches, trials
from claims.__main__ import TRIALS
from claims.cache_trials import ahead, selecting, setting, uniform
from claims.coding import Point
from claims.common import Outcome

import decoders
from isthmus.bottlenecks.cache.cache import NarrowCache
from isthmus.tasks.recall import Recall

SLUGS = (
    "cachegen",
    "coupled-quantization",
    "ems-kv",
    "keyformer",
    "recycled-attention",
    "scissorhands",
    "zipvl",
)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> caches.Bed:
    """A tiny decoder on random tokens, with random questions."""
    monkeypatch.setattr(caches, "LENGTH", 160)
    monkeypatch.setattr(caches, "READ", 16)
    for name in ("cache_trials", "cachegen", "zipvl", "coupled_quantization"):
        module = import_module(f"claims.{name}")
        for key, value in (("LENGTH", 160), ("READ", 16)):
            if hasattr(module, key):
                monkeypatch.setattr(module, key, value)
    model = decoders.decoder().to(torch.bfloat16)
    ids = decoders.tokens(1, 150)[0].numpy().astype(np.int32)
    asked: Any = {kind: [Recall(ids, ((140, 145),))] for kind in ("pairs", "copies", "needles")}
    made = caches.Bed(model, decoders.tokens(9, 160, seed=3), decoders.tokens(4, 160, seed=4), asked)
    monkeypatch.setattr(caches, "bed", lambda seed=0: made)
    return made


def test_the_widest_setting_keeps_the_budget(bed: caches.Bed) -> None:
    budget = 0.6 * bed.full_bytes
    found = selecting("snapkv")(bed, budget)
    taken = bed.taken(caches.through(bed.model, found), bed.calibration[:1])
    assert 0.95 * budget <= taken <= budget
    assert selecting("snapkv")(bed, 10.0) is None
    heads, size, layers = 2, 8, 2
    assert bed.full_bytes == 2 * 2 * layers * heads * size * 159


def test_measured_is_what_a_cache_holds_and_says(bed: caches.Bed) -> None:
    one = setting(None, uniform(4), None)
    found = caches.measured(bed, caches.through(bed.model, one))
    cache = NarrowCache(bed.model, one)
    with torch.no_grad():
        bed.model(bed.rows[:1, :144], past_key_values=cache)
        bed.model(bed.rows[:1, 144:159], past_key_values=cache)
    assert found["bytes"] == pytest.approx(cache.allocated_bytes(), rel=0.02)
    assert found["share"] == found["bytes"] / bed.full_bytes
    whole = caches.measured(bed, bed.full)
    assert whole["share"] == 1.0
    with torch.no_grad():
        said = torch.log_softmax(bed.model(bed.rows).logits.float(), -1)[:, 143:-1].gather(-1, bed.rows[:, 144:, None])
    assert whole["perplexity"] == pytest.approx(float((-said.mean()).exp()), rel=0.02)


@pytest.mark.parametrize("slug", SLUGS)
def test_a_trial_is_measured_and_judged(slug: str, bed: caches.Bed, tmp_path: Path, monkeypatch: Any) -> None:
    module = import_module(f"claims.{TRIALS[slug]}")
    found: trials.Trials = module.TRIALS
    for name in ("_layers", "_measured"):
        if hasattr(getattr(module, name, None), "cache_clear"):
            getattr(module, name).cache_clear()
    arm, levels = next(iter(found.arms.items()))
    # A short sequence is no less than the sinks, the recent tokens and a block.
    level = {"recycled-attention": 60.0, "cachegen": 1.0, "coupled-quantization": 1.0, "zipvl": 2.0}.get(slug, 0.6)
    assert levels
    if slug == "coupled-quantization":
        monkeypatch.setattr(module, "COUPLED", {module.OURS: 4})  # few tokens, so small tables
    figures = dict(found.measure(Point(arm, level, 0)))
    assert figures["perplexity"] > 1
    outcomes: list[Outcome] = [{"arm": arm, "level": level, "seed": 0, **figures}]
    assert {one["verdict"] for one in found.parts(outcomes)} <= {"not tested", "holds", "does not hold", "mixed"}
    assert len(found.points(found.seeds)) == 3 * sum(len(levels) for levels in found.arms.values())


def test_parts_decide_as_their_rule_says() -> None:
    def told(ours: list[float], others: list[float]) -> str:
        rows: list[Outcome] = [
            {"arm": arm, "level": 0.5, "seed": seed, "perplexity": value}
            for arm, values in (("a", ours), ("b", others))
            for seed, value in enumerate(values)
        ]
        return str(ahead(rows, "a", "b", "perplexity", (0.5,))["verdict"])

    assert told([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]) == "holds"
    assert told([2.0, 2.1, 2.2], [1.0, 1.1, 1.2]) == "does not hold"
    assert told([1.0, 2.0, 1.0], [1.5, 1.5, 1.6]) == "mixed"
    assert told([1.0], [2.0]) == "not tested"
