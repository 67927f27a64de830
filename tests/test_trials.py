"""Claims about measures and objectives: how trials are run and kept, their rules on made-up results, tiny runs."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from claims import (
    adaptive_mi_estimators,
    ai_memory_wall,
    bf16_or_death,
    cs_ib,
    dimco,
    ib_generalization_bound,
    mpq,
    trials,
)
from claims.__main__ import TRIALS
from claims.coding import Point
from claims.data import digest_of
from claims.tables import render, trial_table
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED

from isthmus.errors import BadInput
from isthmus.tasks.data import data_folder

every = pytest.mark.parametrize("slug", TRIALS)


def of(slug: str) -> Trials:
    found: Trials = import_module(f"claims.{TRIALS[slug]}").TRIALS
    return found


@every
def test_nothing_is_decided_without_trials(slug: str) -> None:
    claim = of(slug)
    assert claim.slug == slug
    parts = claim.parts([])
    assert [part["verdict"] for part in parts] == [UNTESTED] * len(parts)
    assert all(part["rule"] and part["name"] for part in parts)
    points = claim.points(claim.seeds)
    assert len(set(points)) == len(points)
    assert len(claim.seeds) >= 3


def made_up(measure: Any) -> Trials:
    def parts(outcomes: Any) -> list[dict[str, Any]]:
        values = of_arm(outcomes, "a", None, "value")
        return [{"name": "n", "rule": "r", "verdict": HOLDS if values else UNTESTED, "summary": "s", "figures": {}}]

    return Trials(
        "made-up", "c", "e", {"a": (1.0, 2.0), "b": (1.0,)}, (0, 1), measure, parts, (Column("value", "v", "{:.1f}"),),
        "size", {"steps": 1}, lambda: "d" * 64,
    )  # fmt: skip


def test_trials_go_on_where_they_stopped(tmp_path: Path) -> None:
    asked: list[Point] = []

    def measure(point: Point) -> dict[str, Any]:
        asked.append(point)
        return {"value": point.level + point.seed}

    claim, out = made_up(measure), tmp_path / "made-up.json"
    assert trials.run(claim, out, seeds=(0,), say=lambda _: None) == "unfinished"
    assert len(asked) == 3
    assert trials.run(claim, out, say=lambda _: None) == HOLDS
    assert len(asked) == len(set(asked)) == 6
    found = json.loads(out.read_text())
    assert trial_table(found) == [
        ["arm", "size", "v"], ["`a`", "1", "1.5 ± 0.7"], ["`a`", "2", "2.5 ± 0.7"], ["`b`", "1", "1.5 ± 0.7"],
    ]  # fmt: skip
    page = render([found])
    assert "| `a` | 2 | 2.5 ± 0.7 |" in page
    assert "data `dddddddddddd`; " in page
    with pytest.raises(BadInput, match="made with another recipe"):
        trials.run(replace(claim, recipe={"steps": 2}), out, say=lambda _: None)


def test_missing_data_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISTHMUS_DATA", "/nowhere")
    with pytest.raises(BadInput, match="dimco: skipped, no folder of data"):
        trials.run(of("dimco"), tmp_path / "x.json")


def test_paired_differences() -> None:
    mean, error = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert mean == 2
    assert error == pytest.approx(np.std([2, 3, 1], ddof=1) / 3**0.5)


def test_digests_tell_shapes_and_kinds_apart() -> None:
    array = np.arange(6)
    assert digest_of([array]) == digest_of([array.copy()])
    assert len({digest_of([one]) for one in (array, array[::-1], array.reshape(2, 3), array.astype(np.int8))}) == 4


def outcomes(claim: Trials, figures: Any) -> list[dict[str, Any]]:
    return [vars(point) | figures(point) for point in claim.points(claim.seeds)]


@pytest.mark.parametrize(("less", "verdict"), [(5.0, HOLDS), (-5.0, FAILS)])
def test_errors_are_compared_at_equal_information(less: float, verdict: str) -> None:
    """One arm passes more at each weight; at equal information it is ahead all the same, or behind."""

    def figures(point: Point) -> dict[str, Any]:
        passed = 1 - 0.2 * np.log10(max(point.level, 1e-4)) + (0.1 if point.arm == cs_ib.CS else 0)
        error = 60 - 10 * passed - (less if point.arm == cs_ib.CS else 0) + 0.01 * point.seed * (point.arm == cs_ib.VIB)
        rise = 0.1 if point.arm == cs_ib.CS else 0.3 + 0.01 * point.seed
        return {"passed": passed, "rmse": error, "rise": rise, "validation": error, "error": 0.01 * point.level}

    parts = of("cs-ib").parts(outcomes(of("cs-ib"), figures))
    assert [part["verdict"] for part in parts] == [verdict, HOLDS, HOLDS]
    assert parts[0]["figures"]["gap"] == pytest.approx(-less, abs=0.1)


def test_codes_are_ahead_only_where_they_are_at_every_size() -> None:
    def figures(point: Point) -> dict[str, Any]:
        worse = point.arm == dimco.CLASSIFIER and point.level > 16
        score = 0.6 + 0.001 * point.seed + (0.1 if point.arm == dimco.OURS else 0.2 if worse else 0)
        between = {"between": 0.1 if point.arm == dimco.OURS else 0.5}
        return {"map": score, "says": [0.1, 0.3, 0.2, 0.5], "gap": point.level / 100, "last": 0.5, **between}

    parts = of("dimco").parts(outcomes(of("dimco"), figures))
    assert [part["verdict"] for part in parts] == [HOLDS, MIXED, FAILS, HOLDS, HOLDS]


@pytest.mark.parametrize(("follows", "verdict"), [("bytes", HOLDS), ("operations", FAILS)])
def test_what_time_follows_is_told(follows: str, verdict: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        size = np.random.default_rng(int(point.level) + 1)
        counts = {"bytes": size.uniform(1, 2), "operations": size.uniform(1, 2)}
        noise = 1 + 0.01 * np.random.default_rng(point.seed).uniform()
        intensity = 30.0 if point.arm == ai_memory_wall.ENCODE else 0.5
        return {**counts, "ms": counts[follows] * noise, "intensity": intensity}

    parts = of("ai-memory-wall").parts(outcomes(of("ai-memory-wall"), figures))
    assert [part["verdict"] for part in parts] == [HOLDS, verdict]


@pytest.mark.parametrize(("sign", "verdict"), [(1, HOLDS), (-1, FAILS)])
def test_information_and_the_gap_are_ranked_alike_or_not(sign: int, verdict: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        drawn = np.random.default_rng([len(point.arm), int(10 * point.level), sum(point.arm.encode())]).uniform()
        noise = 0.01 * np.random.default_rng(point.seed).uniform()
        parameters = ib_generalization_bound.ARMS[point.arm][0]
        return {"gap": drawn + noise, "layer 1": 1.0 + drawn, "layer 2": sign * drawn, "parameters": parameters}

    claim = of("ib-generalization-bound")
    parts = claim.parts(outcomes(claim, figures))
    assert [part["verdict"] for part in parts[:1]] == [verdict]
    assert parts[2]["verdict"] == HOLDS


def test_compression_that_fixed_bins_miss_is_told() -> None:
    def figures(point: Point) -> dict[str, Any]:
        accuracy = 0.9 + 0.01 * point.seed
        adaptive = [-accuracy, -accuracy, -accuracy, -accuracy, accuracy]
        mean = 0.5 + point.level + 0.001 * point.seed
        return {"adaptive": adaptive, "adaptive mean": mean, "fixed mean": 0.01 * point.seed, "accuracy": accuracy}

    claim = of("adaptive-mi-estimators")
    assert [part["verdict"] for part in claim.parts(outcomes(claim, figures))] == [HOLDS, HOLDS, HOLDS]


def test_entropy_of_bins_and_what_was_lost() -> None:
    assert adaptive_mi_estimators.entropy(np.array([0, 0, 1, 2])) == pytest.approx(1.5 * np.log(2))
    assert adaptive_mi_estimators.compression([1.0, 3.0, 2.5]) == 0.5
    values = np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    assert len(np.unique(adaptive_mi_estimators.fixed_symbols(values, np.array([0.5])))) == 2


def test_a_layer_is_recorded_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_mi_estimators, "EPOCHS", 3)
    found = adaptive_mi_estimators.measure(Point("relu", 0.0, 0))
    assert len(found["adaptive"]) == len(found["fixed"]) == 5
    assert all(value >= 0 for value in (*found["adaptive"], *found["fixed"]))


@pytest.mark.skipif(data_folder() is None, reason="no folder of data")
def test_a_gap_is_measured_with_what_layers_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAINED", 400), ("HELD", 200), ("EPOCHS", 4)):
        monkeypatch.setattr(ib_generalization_bound, name, value)
    ib_generalization_bound.data.cache_clear()
    try:
        found = ib_generalization_bound.measure(Point(ib_generalization_bound.arm_of(32, 0.0), 0.2, 0))
        assert found["layer 1"] > 0
        assert found["parameters"] == 784 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    finally:
        ib_generalization_bound.data.cache_clear()


def test_a_generating_decoder_does_few_operations_a_byte() -> None:
    one, other = (ai_memory_wall.measure(Point(arm, 64.0, 0)) for arm in (ai_memory_wall.ENCODE, ai_memory_wall.DECODE))
    assert other["intensity"] < 1 < one["intensity"] / 10
    # Two operations for every weight of the layers and the vocabulary's matrix, and little more.
    weights = 4 * 12 * 512**2 + 8000 * 512
    assert 2 * weights < other["operations"] < 2.1 * weights


def test_the_closed_form_is_the_integral() -> None:
    """On a line, by adding up densities."""
    grid = np.linspace(-12, 12, 20001)

    def density(mean: float, variance: float) -> Any:
        return np.exp(-((grid - mean) ** 2) / 2 / variance) / np.sqrt(2 * np.pi * variance)

    p, q = density(0.0, 1.0), density(1.5, 2.0)
    step = grid[1] - grid[0]
    expected = np.log((p * p).sum() * step) + np.log((q * q).sum() * step) - 2 * np.log((p * q).sum() * step)
    found = cs_ib.closed_form((np.zeros(1), np.eye(1)), (np.full(1, 1.5), 2 * np.eye(1)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_bottleneck_is_trained_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cs_ib, "EPOCHS", 4)
    for arm in (cs_ib.CS, cs_ib.VIB, cs_ib.PLAIN):
        first, again = (cs_ib.measure(Point(arm, 0.01, 0)) for _ in range(2))
        assert first == again
        assert np.isfinite(list(first.values())).all()


@pytest.mark.skipif(data_folder() is None, reason="no folder of data")
def test_codes_are_trained_and_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAINED", 400), ("STORED", 300), ("QUERIES", 50), ("EPOCHS", 5)):
        monkeypatch.setattr(dimco, name, value)
    dimco.data.cache_clear()
    try:
        for arm in of("dimco").arms:
            found = dimco.measure(Point(arm, 16.0, 0))
            assert 0.1 < found["map"] < 1  # better than chance on ten classes
    finally:
        dimco.data.cache_clear()


@pytest.mark.parametrize(("kept", "near", "verdicts"), [
    (0.98, 0.975, [HOLDS, HOLDS, HOLDS]), (0.96, 0.93, [MIXED, FAILS, MIXED]),
])  # fmt: skip
def test_formats_are_judged_by_quality_and_use(kept: float, near: float, verdicts: list[str]) -> None:
    """Where four bits lose more than eight, whole numbers of weights alone are taken for one text at a time."""

    def figures(point: Point) -> dict[str, Any]:
        relative = {bf16_or_death.TUNED: kept, bf16_or_death.COARSE: near}.get(point.arm, 0.99)
        single = bf16_or_death.COARSE if near > 0.95 else bf16_or_death.WEIGHTS
        chosen = single if point.level == 1 else bf16_or_death.TUNED
        return {"relative": relative, "recommended": point.arm == chosen}

    claim = of("bf16-or-death")
    assert [part["verdict"] for part in claim.parts(outcomes(claim, figures))] == verdicts


@pytest.mark.parametrize(("deep", "verdicts"), [(0.95, [HOLDS, HOLDS, MIXED]), (0.7, [FAILS, FAILS, MIXED])])
def test_distances_are_held_against_each_other(deep: float, verdicts: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        ahead = 0.1 if point.arm == mpq.OTHER else -0.1
        by_image = {"deep by image": 0.5 + ahead, "squared by image": 0.5 + 0.001 * point.seed}
        return {"deep": deep, "squared": 0.8 + 0.001 * point.seed, **by_image}

    claim = of("mpq")
    assert [part["verdict"] for part in claim.parts(outcomes(claim, figures))] == verdicts
