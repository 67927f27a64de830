"""The claim about activations of 4 bits: its rules on made-up results, and its points on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from claims.coding import Point, Workbench, run
from claims.int4_w4a4 import (
    BOTH,
    CLAIM,
    OF_HALF,
    WEIGHTS,
    Rounding,
    activations,
    composed,
    narrowed,
    negligible,
)
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED

from isthmus.sites import discover, narrow_model
from isthmus.storage.coded import Uniform
from isthmus.storage.rounding import rounded_inputs
from test_trained_claims import bench, outcome


@pytest.mark.parametrize(("scores", "verdict"), [((0.99, 0.985), HOLDS), ((0.99, 0.975), MIXED), ((0.97, 0.98), FAILS)])
def test_next_to_nothing_is_under_two_points(scores: tuple[float, float], verdict: str) -> None:
    assert negligible([outcome(BOTH, 4, 9, score, 0.1, before=1) for score in scores])["verdict"] == verdict
    assert negligible([])["verdict"] == UNTESTED


@pytest.mark.parametrize(
    ("score", "nats", "verdict"),
    [(0.985, 0.2, HOLDS), (0.97, 0.2, MIXED), (0.985, 0.6, MIXED), (0.97, 0.6, FAILS)],
)
def test_activations_beside_weights(score: float, nats: float, verdict: str) -> None:
    weights = [outcome(WEIGHTS, 4, 9, 0.99, 0.1, before=0.5)]
    assert activations([*weights, outcome(BOTH, 4, 9, score, nats, before=1.4)])["verdict"] == verdict
    assert activations(weights)["verdict"] == UNTESTED


@pytest.mark.parametrize(
    ("half", "verdict"),
    [((0.98, 0.985), HOLDS), ((0.99, 0.999), HOLDS), ((0.95, 0.953), FAILS), ((0.95, 0.999), MIXED)],
)
def test_with_pruning(half: tuple[float, float], verdict: str) -> None:
    whole = [outcome(BOTH, 4, 9, score, 0.1) for score in (0.99, 0.99)]
    assert composed([*whole, *(outcome(BOTH + OF_HALF, 4, 9, score, 0.1) for score in half)])["verdict"] == verdict
    assert composed(whole)["verdict"] == UNTESTED


def test_points(tmp_path: Path) -> None:
    own = bench()
    sites = discover(own.network)
    kept = {site.name: tuple(range(0, site.units, 2)) for site in sites if site.kind == "neurons"}
    half = own.network.with_model(narrow_model(own.network.model, sites, kept))
    trainer = Rounding(own, Workbench(half, own.task, say=lambda _: None), steps=2)
    arms = {arm.label: arm for arm in CLAIM.arms}
    student, made = trainer.train(arms[BOTH], Point(BOTH, 4.0, 0), trainer.codes(arms[BOTH], 4.0, 0))
    assert set(rounded_inputs(student.model).values()) == {4}
    assert all(len(np.unique(code.integers)) <= 16 for code in made.values() if isinstance(code, Uniform))
    assert rounded_inputs(trainer.student(arms[WEIGHTS]).model) == {}
    assert rounded_inputs(own.network.model) == {}
    out = tmp_path / "claim.json"
    verdict = run(CLAIM, trainer, out, seeds=(0,), say=lambda _: None)
    points = {one["arm"]: one for one in json.loads(out.read_text())["points"]}
    assert points.keys() == arms.keys()
    assert verdict in (HOLDS, MIXED, FAILS)
    assert points[BOTH + OF_HALF]["parameters"] < points[BOTH]["parameters"]
    # Rounding adds to what is lost before training, and what the narrowed network loses is its own.
    assert len({one["before"] for one in points.values()}) == len(arms)


def test_the_narrowed_network_is_made_once(tmp_path: Path) -> None:
    own = bench()
    made = narrowed(own, tmp_path, effort="none")
    count = sum(parameter.numel() for parameter in own.network.model.parameters())
    assert sum(parameter.numel() for parameter in made.model.parameters()) <= count / 2
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    again = narrowed(own, tmp_path, effort="none")
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    for name, parameter in made.model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), again.model.get_parameter(name).detach().numpy())
