"""The benchmark of caches on a tiny decoder: every method is measured or said not to fit, and targets are judged."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import cache as benchmark
from benchmarks.page import render
from claims import caches

import decoders
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.tasks.recall import Recall

LENGTH, READ = 160, 16


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoders.decoder().to(torch.bfloat16)
    ids = decoders.tokens(1, 150)[0].numpy().astype(np.int32)
    asked: Any = {kind: [Recall(ids, ((140, 145),))] for kind in ("pairs", "copies", "needles")}
    for name in ("claims.caches", "benchmarks.cache"):
        module = import_module(name)
        for key, value in (("LENGTH", LENGTH), ("READ", READ), ("BLOCK", 8), ("RECENT", 8)):
            monkeypatch.setattr(module, key, value)
    made = caches.Bed(model, decoders.tokens(4, LENGTH, seed=3), decoders.tokens(2, LENGTH, seed=4), asked)
    monkeypatch.setattr(caches, "bed", lambda seed=0: made)
    monkeypatch.setattr(benchmark, "why_not", lambda *_: None)
    monkeypatch.setattr(benchmark, "SELECTORS", ("window", "snapkv"))
    monkeypatch.setattr(benchmark, "PLANNED", ("snapkv",))
    monkeypatch.setattr(benchmark, "tables", lambda bed: [Plain()] * 2)
    monkeypatch.setattr(benchmark, "TARGETS", {0.6: (0.5, 0.5)})


@pytest.mark.usefixtures("_small")
def test_every_method_is_measured_at_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    out = tmp_path / "cache.json"
    made = benchmark.run(out, shares=(0.6,), peer=False, say=said.append)
    points = {one["method"]: one for one in made["points"]}
    assert {"full", "window", "snapkv", "snapkv, 4 bits", "uniform bits", "joint plan"} <= set(points)
    assert points["full"]["share"] == 1.0
    for name in ("window", "snapkv", "joint plan"):
        assert points[name]["share"] <= 0.62
        assert points[name]["perplexity"] > 1
    assert len(points["joint plan"]["settings"]) == 2
    assert made["targets"][0]["name"].startswith("cache at 60")
    assert json.loads(out.read_text())["points"] == made["points"]
    again = benchmark.run(out, shares=(0.6,), peer=False, say=said.append)
    assert again["points"] == made["points"]
    assert "## Key-value caches" in render(tmp_path, tmp_path)
