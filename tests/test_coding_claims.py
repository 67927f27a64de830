"""Claims about coders: rules on made-up results, comparison at equal bytes, and the workbench on a tiny network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from claims import (
    alds,
    coding,
    comq,
    deepcabac,
    equal_bytes,
    finequant,
    llm_int8,
    lr2vq,
    squeezellm,
    vptq,
    zeroquant_4plus2,
)
from claims.__main__ import CODING, main
from claims.coding import Arm, Claim, Point, Workbench, run
from claims.equal_bytes import DRAWS, against, at_equal_bytes, compare
from claims.tables import curve_table, render
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED
from safetensors.torch import save_file
from scipy.stats import spearmanr

import networks
import small
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.flow.verifying import measure_quality
from isthmus.relevance.probe import measure_network
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import Uniform, decode
from isthmus.storage.holders import with_codes, write_coded
from isthmus.tasks.task import HeldOut, Task

CLAIMS: dict[str, Claim] = {slug: import_module(f"claims.{module}").CLAIM for slug, module in CODING.items()}
every_claim = pytest.mark.parametrize("slug", CLAIMS)


def outcome(arm: str, level: float, size: float, relative: float, nats: float, **more: Any) -> dict[str, Any]:
    """Return a made-up outcome; resamples are a hundredth of a point apart."""
    return {
        "arm": arm,
        "level": level,
        "setting": f"{level:g} bits",
        "seed": 0,
        "spec": "",
        "bytes": size,
        "bits": level,
        "relative": relative,
        "nats": nats,
        "nats_by_group": [nats * factor for factor in (0.9, 1.0, 1.1)],
        "resamples": [relative + 1e-4 * (draw % 2) for draw in range(DRAWS)],
        "packed": {"a": size - 10, "b": 5},
        "seconds": {"all": 1.0},
        **more,
    }


def curve(
    arm: str, shift: float = 0.0, factor: float = 1.0, levels: tuple[float, ...] = (4, 3, 2, 1), **more: Any
) -> Any:
    """Return outcomes on straight lines of score and of the logarithm of nats."""
    return [
        outcome(arm, level, 100 * level, 0.9 + 0.02 * level + shift, factor * math.exp(-level), **more)
        for level in levels
    ]


def verdict_of(ours: tuple[float, float]) -> str:
    rows = curve("ours", *ours) + curve("theirs")
    return str(against("", rows, "ours", ["theirs"])["verdict"])


def test_gap_of_straight_lines_and_of_a_parabola() -> None:
    gap = at_equal_bytes([(0, 1), (4, 9)], [(6, 6), (2, 2)])
    assert gap is not None
    assert (gap.low, gap.high) == (2, 4)
    assert gap.mean == pytest.approx(1 + 3)  # (1 + 2 x) - x at the middle, x = 3
    fine = np.linspace(0, 3, 3001)
    gap = at_equal_bytes([(x, x**2) for x in fine], [(3, 0), (-1, 0)])
    assert gap is not None
    assert gap.mean == pytest.approx(3, rel=1e-6)  # the mean of x² from 0 to 3


def test_gap_where_lines_bend_between_the_points_of_the_other() -> None:
    bent = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
    gap = at_equal_bytes(bent, [(0.0, 0.0), (2.0, 0.0)])
    assert gap is not None
    assert gap.mean == pytest.approx(0.5)  # the area of the triangle over its base


def test_gap_of_a_single_point_and_of_curves_apart() -> None:
    gap = at_equal_bytes([(3, 10)], [(2, 4), (4, 8)])
    assert gap is not None
    assert (gap.low, gap.high, gap.mean) == (3, 3, 4)
    assert at_equal_bytes([(1, 1), (2, 2)], [(3, 3), (4, 4)]) is None


@pytest.mark.parametrize(
    ("shift", "factor", "verdict"),
    [
        (0.01, 0.5, HOLDS),
        (0.01, 1.0, HOLDS),
        (0.0, 0.5, HOLDS),
        (-0.01, 2.0, FAILS),
        (-0.01, 1.0, FAILS),
        (0.01, 2.0, MIXED),
        (-0.01, 0.5, MIXED),
        (0.0, 1.0, MIXED),
    ],
)
def test_ahead_in_one_and_behind_in_neither(shift: float, factor: float, verdict: str) -> None:
    assert verdict_of((shift, factor)) == verdict


def test_comparison() -> None:
    rows = curve("ours", 0.01, 0.5) + curve("theirs", levels=(3, 2.5, 0.5))
    found = compare(rows, "ours", "theirs")
    assert found is not None
    assert found["bytes"] == [100, 300]
    assert found["gap"] == pytest.approx(0.01)
    assert found["nats"] == pytest.approx(math.log(0.5))
    assert found["nats_spread"] == pytest.approx(0, abs=1e-12)  # every group differs by the same factor
    assert compare(rows, "ours", "nobody") is None
    assert against("", rows, "ours", ["theirs", "nobody"])["verdict"] == UNTESTED


def test_spread_is_of_paired_resamples_and_over_seeds() -> None:
    ours, theirs = curve("ours"), curve("theirs")
    noise = np.random.default_rng(0).normal(0, 0.01, DRAWS)
    for row in (*ours, *theirs):
        row["resamples"] = [row["relative"] + float(each) for each in noise]
    found = compare(ours + theirs, "ours", "theirs")
    assert found is not None
    assert found["spread"] == pytest.approx(0, abs=1e-12)
    for row in ours:
        row["resamples"] = [row["relative"] + 3 * float(each) for each in noise]
    found = compare(ours + theirs, "ours", "theirs")
    assert found is not None
    assert found["spread"] == pytest.approx(2 * np.std(noise, ddof=1))
    others = [{**row, "seed": 1, "relative": row["relative"] + 0.02} for row in theirs]
    assert equal_bytes.seed_noise(equal_bytes.of_arm(theirs + others, "theirs"), equal_bytes.relative) == pytest.approx(
        0.01
    )


def test_one_arm_ahead_of_some_is_mixed() -> None:
    rows = curve("ours") + curve("worse", -0.01) + curve("better", 0.01)
    assert against("", rows, "ours", ["worse", "better"])["verdict"] == MIXED
    assert against("", rows, "ours", ["worse", "worse"])["verdict"] == HOLDS
    assert against("", rows, "ours", ["better"])["verdict"] == FAILS


def test_verdict_of_a_claim() -> None:
    def judged(*verdicts: str, complete: bool = True) -> str:
        parts = [equal_bytes.part_of("", "", verdict) for verdict in verdicts]
        claim = Claim("slug", "", "", (), lambda _: parts)
        return str(claim.judge([], complete=complete)["verdict"])

    assert judged(HOLDS, HOLDS) == HOLDS
    assert judged(HOLDS, FAILS) == judged(MIXED, HOLDS) == judged(MIXED, FAILS) == MIXED
    assert judged(FAILS, HOLDS) == FAILS
    assert judged(HOLDS, UNTESTED) == judged(HOLDS, complete=False) == "unfinished"


@every_claim
def test_nothing_is_decided_without_points(slug: str) -> None:
    parts = CLAIMS[slug].parts([])
    assert [part["verdict"] for part in parts] == [UNTESTED] * len(parts)
    assert all(part["rule"] and part["name"] for part in parts)


@every_claim
def test_points(slug: str) -> None:
    claim = CLAIMS[slug]
    assert claim.slug == slug
    points = claim.points((0, 1, 2))
    assert len(set(points)) == len(points)
    assert set(claim.points((0,), quick=True)) <= set(points)
    for arm in claim.arms:
        seeds = {point.seed for point in points if point.arm == arm.label}
        assert seeds == ({0, 1, 2} if arm.draws else {0})
        assert len({arm.spec(level) for level in arm.levels}) == (1 if arm.decide else len(arm.levels))


# Each claim's own rules.


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, MIXED), (-0.01, FAILS)])
def test_rounding_is_judged_by_the_slope_with_fewer_nats(shift: float, verdict: str) -> None:
    rows = curve(deepcabac.NEAREST) + curve(deepcabac.QUARTER, shift, 0.99) + curve(deepcabac.FULL, -0.05, 1.5)
    for row in rows:
        row["nats_by_group"] = [1.0, 1.0, 1.0]
        if row["arm"] == deepcabac.FULL:
            row["nats_by_group"] = [1.1, 1.1, 1.1]
    part = deepcabac.rounding(rows)
    assert part["figures"]["chosen"] == deepcabac.QUARTER
    assert part["verdict"] == verdict


@pytest.mark.parametrize(("exact", "verdict"), [((2, 2), HOLDS), ((2, 1), MIXED), ((1, 1), FAILS)])
def test_exact_bitstream(exact: tuple[int, int], verdict: str) -> None:
    assert deepcabac.exact([{"exact": one, "matrices": 2} for one in exact])["verdict"] == verdict


@pytest.mark.parametrize(("zlib", "verdict"), [(99, HOLDS), (90, MIXED)])
def test_smaller_than_other_codes(zlib: int, verdict: str) -> None:
    rows = [outcome(deepcabac.NEAREST, 3, 100, 1, 1, others={"a": {"huffman": 96, "zlib": zlib}})]
    assert deepcabac.smaller(rows)["verdict"] == verdict  # ours take 95
    rows[0]["packed"]["a"] = 200
    assert deepcabac.smaller(rows)["verdict"] == FAILS


def test_huffman_against_a_tree_by_hand_and_entropy() -> None:
    # 8, 4, 2, 1 and 1 occurrences take 1, 2, 3, 4 and 4 bits: 30 bits in all.
    integers = np.repeat(np.arange(5), [8, 4, 2, 1, 1]).astype(np.int32)
    assert deepcabac.huffman_bytes(integers) == math.ceil(30 / 8)
    drawn = np.rint(np.random.default_rng(0).normal(0, 2, 20_000)).astype(np.int32)
    shares = np.unique(drawn, return_counts=True)[1] / drawn.size
    entropy = -float(shares @ np.log2(shares))
    assert entropy <= 8 * deepcabac.huffman_bytes(drawn) / drawn.size < entropy + 0.09
    sizes = deepcabac.others(drawn)
    assert sizes["huffman"] < sizes["zlib"]


@pytest.mark.parametrize(("apart", "verdict"), [((1e-6, 1e-7), HOLDS), ((1e-6, 1e-4), MIXED), ((1e-3, 1e-4), FAILS)])
def test_scaling_on_the_fly(apart: tuple[float, float], verdict: str) -> None:
    assert finequant.on_the_fly([{"furthest": one} for one in apart])["verdict"] == verdict


def test_product_over_integers() -> None:
    rng = np.random.default_rng(0)
    code = FineQuant().code(rng.normal(size=(7, 50)).astype(np.float32), nothing(7, 50), Setting(4, 16))
    inputs = rng.normal(size=(3, 50)).astype(np.float32)
    np.testing.assert_allclose(finequant.product(inputs, code), inputs @ decode(code).T, atol=1e-5)


def nothing(rows: int, columns: int) -> MatrixStatistics:
    return MatrixStatistics(Sensitivity(np.ones(rows), np.ones(columns)))


def errors(arm: str, *values: float) -> list[dict[str, Any]]:
    """Return a made-up outcome of seven levels with the error of each matrix."""
    return [outcome(arm, 7, 100, 0.9, 0.1, reconstruction=dict(zip("abcd", values, strict=True)))]


@pytest.mark.parametrize(("values", "verdict"), [((1, 1, 1, 1), HOLDS), ((1, 1, 1, 3), MIXED), ((1, 1, 3, 3), FAILS)])
def test_error_of_outputs(values: tuple[float, ...], verdict: str) -> None:
    rows = errors("comq", *values) + errors("rtn", 2, 2, 2, 2) + errors("rtn, fitted", 2, 2, 2, 2)
    assert comq.reconstruction(rows)["verdict"] == verdict


@pytest.mark.parametrize(
    ("second", "fourth", "verdict"),
    [((3, 3, 3, 3), (2, 2, 2, 1), HOLDS), ((3, 3, 3, 3), (2, 2, 2, 2.1), MIXED), ((5, 5, 5, 5), (9, 9, 9, 9), FAILS)],
)
def test_sweeps(second: tuple[float, ...], fourth: tuple[float, ...], verdict: str) -> None:
    rows = errors("comq, 1 sweep", 4, 4, 4, 4) + errors("comq, 2 sweeps", *second)
    rows += errors("comq", 2, 2, 2, 2) + errors("comq, 4 sweeps", *fourth)
    assert comq.sweeps(rows)["verdict"] == verdict


@pytest.mark.parametrize(("greedy", "verdict"), [((1, 1, 1, 3), HOLDS), ((1, 1, 3, 3), FAILS)])
def test_order(greedy: tuple[float, ...], verdict: str) -> None:
    assert comq.order(errors("comq", *greedy) + errors("cyclic", 2, 2, 2, 2))["verdict"] == verdict


@pytest.mark.parametrize(
    ("split", "tensor", "verdict"),
    [(0.999, 0.98, HOLDS), (0.999, 0.999, MIXED), (0.99, 0.98, MIXED), (0.99, 0.99, FAILS)],
)
def test_split_in_eight_bits(split: float, tensor: float, verdict: str) -> None:
    rows = [
        outcome(kind + llm_int8.INPUTS, 8, 100, relative, 0.1)
        for kind, relative in ((llm_int8.SPLIT, split), (llm_int8.TENSOR, tensor))
    ]
    assert llm_int8.kept(rows)["verdict"] == verdict


@pytest.mark.parametrize(("apart", "size", "share", "halved"), [(5, 54, HOLDS, HOLDS), (10, 56, FAILS, FAILS)])
def test_share_and_bytes_in_eight_bits(apart: int, size: int, share: str, halved: str) -> None:
    rows = [outcome(llm_int8.SPLIT, 8, size, 1, 0.1, apart={"a": apart}, linear=1000, half_bytes=100)]
    assert llm_int8.in_eight(rows)["verdict"] == share
    assert llm_int8.halved(rows)["verdict"] == halved


def test_rounded_inputs() -> None:
    inputs = torch.tensor([[1.27, -0.013, 100.0], [0.635, 0.0, -100.0]])
    apart = torch.tensor([2])
    assert torch.allclose(llm_int8.by_split(inputs, apart), torch.tensor([[1.27, -0.01, 100], [0.635, 0, -100]]))
    step = 100 / 127
    by_hand = torch.tensor([[2 * step, 0, 100], [1 * step, 0, -100]])
    assert torch.allclose(llm_int8.by_row(inputs, apart), by_hand)
    assert torch.allclose(llm_int8.by_tensor(inputs, apart), by_hand)
    smaller = torch.tensor([[1.27, 0.0], [0.0127, 0.0049]])
    assert torch.allclose(llm_int8.by_tensor(smaller, apart)[1], torch.tensor([0.01, 0.0]))
    assert torch.allclose(llm_int8.by_row(smaller, apart)[1], torch.tensor([0.0127, 0.0049]))


def test_inputs_are_rounded_while_it_is_measured_only() -> None:
    own = bench()
    before = own.likeness(own.network)
    with llm_int8.tensor_inputs(own.network, own.statistics):
        inside = own.likeness(own.network)
    assert 0 < np.abs(inside - before).max() < 0.1
    np.testing.assert_array_equal(own.likeness(own.network), before)


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, MIXED), (-0.01, FAILS)])
def test_levels_and_outliers(shift: float, verdict: str) -> None:
    rows = (
        curve(squeezellm.FISHER)
        + curve(squeezellm.PLAIN, -shift)
        + curve("rtn", -shift)
        + curve(squeezellm.SPARSE, shift)
    )
    assert squeezellm.weighted(rows)["verdict"] == verdict
    assert squeezellm.sparse(rows)["verdict"] == verdict


@pytest.mark.parametrize(("nats", "verdict"), [(0.01, HOLDS), (0.15, MIXED), (0.3, FAILS)])
def test_six_bits_against_four(nats: float, verdict: str) -> None:
    rows = [outcome(zeroquant_4plus2.FP6, 6, 100, 1, nats)]
    rows += [outcome(zeroquant_4plus2.NEAREST, 32, 80, 1, 0.2), outcome(zeroquant_4plus2.GPTQ, 32, 80, 1, 0.1)]
    assert zeroquant_4plus2.less_lost(rows)["verdict"] == verdict


@pytest.mark.parametrize(("exact", "packed", "verdict"), [(2, 75, HOLDS), (2, 76, MIXED), (1, 76, FAILS)])
def test_four_bits_and_two(exact: int, packed: int, verdict: str) -> None:
    rows = [outcome(zeroquant_4plus2.FP6, 6, 100, 1, 0.1, exact=exact, matrices=2, packed_4plus2=packed, weights=100)]
    assert zeroquant_4plus2.packing(rows)["verdict"] == verdict


@pytest.mark.parametrize(("values", "verdict"), [((1, 1, 1, 1), HOLDS), ((1, 3, 3, 3), MIXED), ((3, 3, 3, 3), FAILS)])
def test_codebooks_see_the_outputs(values: tuple[float, ...], verdict: str) -> None:
    assert vptq.outputs(errors("vptq", *values) + errors("codebook", 2, 2, 2, 2))["verdict"] == verdict


@pytest.mark.parametrize(("best", "verdict"), [((3, 4), HOLDS), ((3, 6), MIXED), ((6, 6), FAILS)])
def test_predicted_dimension(best: tuple[int, int], verdict: str) -> None:
    rows = []
    for rank in range(1, lr2vq.LENGTH + 1):
        lost = {name: 0.1 + abs(rank - own) for name, own in zip("ab", best, strict=True)}
        digests = {"a": f"a{rank}", "b": f"b{rank}", "c": f"c{rank}"}
        rows.append(outcome(lr2vq.SWEEP, rank, 100, 0.5, 1.0, lost={**lost, "c": 0.0}, digests=digests))
    rows.append(outcome(lr2vq.OURS, lr2vq.SWEPT, 100, 0.5, 1.0, lost={}, digests={"a": "a3", "b": "b4", "c": "c1"}))
    assert lr2vq.predictions(rows) == {"a": (3, best[0]), "b": (4, best[1])}
    assert lr2vq.predicted_dimension(rows)["verdict"] == verdict


@pytest.mark.parametrize(("found", "verdict"), [((0.1, 0.2), HOLDS), ((0.1, 0.4), MIXED), ((0.4, 0.4), FAILS)])
def test_errors_and_bounds(found: tuple[float, float], verdict: str) -> None:
    bounds = {name: [0.3, error, error] for name, error in zip("ab", found, strict=True)}
    assert alds.bounded([outcome(alds.ALDS, 0.5, 100, 1, 1, bounds=bounds)])["verdict"] == verdict


def falling(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    side = min(rows, columns)
    left, right = rng.normal(0, 1, (rows, side)), rng.normal(0, 1, (side, columns))
    return (left * np.geomspace(1, 0.02 * (1 + seed), side) @ right).astype(np.float32)


def test_ranks_by_energy_are_the_most_that_fit() -> None:
    weights = {"a": falling(40, 30, 0), "b": falling(30, 60, 1)}
    chosen = alds.by_energy(0.5, weights)
    budget = 0.5 * (1200 + 1800)

    def kept(name: str, rank: int) -> float:
        squares = np.linalg.svd(weights[name].astype(np.float64), compute_uv=False) ** 2
        return float(squares[:rank].sum() / squares.sum())

    ranks = {name: setting.rank for name, (_, setting) in chosen.items()}
    assert ranks["a"] * 70 + ranks["b"] * 90 <= budget
    # One energy for all: what each keeps without its last rank is less than what every other keeps.
    assert kept("a", ranks["a"] - 1) < kept("b", ranks["b"])
    assert kept("b", ranks["b"] - 1) < kept("a", ranks["a"])
    lowest = min(kept("a", ranks["a"]), kept("b", ranks["b"]))
    grown = {name: next(r for r in range(1, 31) if kept(name, r) > lowest * (1 + 1e-9)) for name in weights}
    assert grown["a"] * 70 + grown["b"] * 90 > budget


def test_bound_and_norm_against_numpy() -> None:
    weight = falling(24, 36, 2)
    assert alds.spectral_norm(weight) == pytest.approx(np.linalg.norm(weight.astype(np.float64), 2))
    choice = alds.choose({"w": weight}, 500)["w"]
    assert alds.bound(weight, choice.slices, choice.rank) == pytest.approx(choice.bound)


# The workbench.


@cache
def bench() -> Workbench:
    """Return a tiny network with made-up pairs of sentences."""
    text = small.sentences(260)
    rng = np.random.default_rng(0)
    pairs = text[180:220], text[220:260]
    held = HeldOut(left=tuple(pairs[0]), right=tuple(pairs[1]), scores=tuple(rng.uniform(size=40).tolist()))
    task = Task("sts", "made up", tuple(text[:180]), held, "spearman", "f" * 64)
    network = networks.worded("bert")
    network.model.encoder.layer = network.model.encoder.layer[:1]
    network.model.config.num_hidden_layers = 1
    return Workbench(network, task, say=lambda _: None)


def arm(levels: tuple[float, ...] = (15.0, 7.0)) -> Arm:
    return coding.nearest_arm(levels)


def test_point_against_file_and_metric(tmp_path: Path) -> None:
    own = bench()
    found = own.measure(arm(), Point("rtn", 7.0, 0))
    codes = own.codes(arm(), 7.0, 0)
    assert all(isinstance(code, Uniform) and np.abs(code.integers).max() == 3 for code in codes.values())
    student = with_codes(own.network, codes)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in own.network.model.state_dict().items()}, file)
    write_coded(file, student.codes)
    assert found["bytes"] == file.stat().st_size
    assert found["packed"] == {name: len(data) for name, data in student.codes.items()}
    assert found["bits"] == pytest.approx(8 * sum(found["packed"].values()) / sum(w.size for w in own.weights.values()))
    theirs, ours = measure_quality([own.network, student], own.task)
    assert found["relative"] == pytest.approx(ours.value / theirs.value)
    assert own.original["score"] == pytest.approx(theirs.value)
    means = [measure_network(probe, student) for probe in own.probes]
    counts = [len(probe.examples[0]) for probe in own.probes]
    assert len(counts) > 1
    assert found["nats"] == pytest.approx(np.dot(means, counts) / sum(counts))


def test_statistics_are_of_other_texts_than_nats() -> None:
    own = bench()
    measured = {text for probe in own.probes for group in probe.examples for text in group}
    assert measured < set(own.task.train)
    assert not measured & set(own.task.held_out.passages)
    assert {name: known.moments is None for name, known in own.statistics.items()} == {
        name: "embeddings" in name for name in own.names
    }


def test_reconstruction_is_the_error_of_outputs() -> None:
    own = bench()
    codes = own.codes(arm(), 7.0, 0)
    name, relative = next(iter(own.reconstruction(codes).items()))
    values, directions = np.linalg.eigh(own.statistics[name].moments.astype(np.float64))  # type: ignore[union-attr]
    inputs = directions * np.sqrt(np.maximum(values, 0))  # any inputs of these moments
    weight = own.weights[name].astype(np.float64)
    expected = np.sum(((weight - decode(codes[name])) @ inputs) ** 2) / np.sum((weight @ inputs) ** 2)
    assert relative == pytest.approx(expected, rel=1e-4)


def test_resamples_are_paired_and_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    truth, original = rng.normal(size=30), rng.normal(size=30)
    original += truth
    assert equal_bytes.resampled(original, original, truth, 5) == [1.0] * 5
    drawn = np.random.default_rng(0).integers(30, size=30)
    other = original + rng.normal(size=30)
    expected = spearmanr(other[drawn], truth[drawn])[0] / spearmanr(original[drawn], truth[drawn])[0]
    assert equal_bytes.resampled(other, original, truth, 2)[0] == pytest.approx(expected, abs=1e-6)


def test_statistics_are_collected_once(tmp_path: Path) -> None:
    own = bench()
    file = tmp_path / "deep" / "kept.safetensors"
    first = coding.kept_statistics(file, own.names, lambda: own.statistics)

    def never() -> coding.Statistics:
        raise AssertionError

    again = coding.kept_statistics(file, own.names, never)
    for name in own.names:
        np.testing.assert_array_equal(first[name].sensitivity.rows, again[name].sensitivity.rows)
        np.testing.assert_array_equal(first[name].sensitivity.columns, again[name].sensitivity.columns)
        assert (first[name].moments is None) == (again[name].moments is None)
        if first[name].moments is not None:
            np.testing.assert_array_equal(first[name].moments, again[name].moments)  # type: ignore[arg-type]


def test_points_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, said, asked = tmp_path / "claim.json", list[str](), list[Point]()
    claim = Claim("slug", "A claim.", "An experiment.", (arm(),), lambda rows: [equal_bytes.part_of("p", "r", HOLDS)])
    measure = Workbench.measure

    def stopped(self: Workbench, arm: Arm, point: Point, observe: Any = None) -> Any:
        if asked:
            raise KeyboardInterrupt
        asked.append(point)
        return measure(self, arm, point, observe)

    monkeypatch.setattr(Workbench, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(claim, bench(), out, say=said.append)
    assert json.loads(out.read_text())["verdict"] == "unfinished"
    monkeypatch.setattr(Workbench, "measure", measure)
    assert run(claim, bench(), out, say=said.append) == HOLDS
    assert "1 points to measure, 1 there already" in " ".join(said)
    first = out.read_text()
    assert run(claim, bench(), out, say=said.append) == HOLDS
    assert out.read_text() == first
    changed = replace(claim, arms=(replace(arm(), make=lambda level: (FineQuant(0.5), coding.grid(level))),))
    with pytest.raises(BadInput, match="coded otherwise"):
        run(changed, bench(), out, say=said.append)


@every_claim
def test_quick_run(slug: str, tmp_path: Path) -> None:
    out, said = tmp_path / f"{slug}.json", list[str]()
    assert run(CLAIMS[slug], bench(), out, seeds=(0,), quick=True, say=said.append) == "unfinished"
    result = json.loads(out.read_text())
    assert {one["arm"] for one in result["points"]} == {one.label for one in CLAIMS[slug].arms}
    assert len({part["name"] for part in result["parts"]}) == len(result["parts"])
    page = render([result])
    assert f"## {slug}: unfinished" in page
    assert all(part["rule"].replace("|", "\\|") in page for part in result["parts"])
    row = result["points"][0]
    assert f"| `{row['arm']}` | {row['setting']} | {row['bytes'] / 1e6:.2f} |" in page


def test_curve_table() -> None:
    rows = [outcome("one", 2, 5e6, 0.5, 0.25), outcome("one", 2, 7e6, 0.7, 0.75), outcome("one", 3, 9e6, 0.9, 0.1)]
    rows[1]["seed"] = 1
    table = curve_table(rows, {"bytes": 60e6})
    assert table.splitlines()[2:] == [
        "| `one` | 3 bits | 9.00 | 15.0% | 3.00 | 0.1 | 90.0 |",
        "| `one` | 2 bits | 6.00 | 10.0% | 2.00 | 0.5 | 60.0 ± 14.1 |",
    ]


def test_missing_data_and_joining_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ISTHMUS_DATA", "/nowhere")
    assert main(["comq", "--quick"]) == 2
    assert capsys.readouterr().err.startswith("comq: skipped, no folder of data: set ISTHMUS_DATA")
    assert main(["comq", "--join", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_only_pairs_are_scored() -> None:
    task = replace(bench().task, kind="text")
    with pytest.raises(BadInput, match="give sts"):
        Workbench(bench().network, task, say=lambda _: None)
