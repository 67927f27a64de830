"""Claims that measure more than codes: their rules on made-up results, their methods by brute force, and tiny runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partialmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from claims import ere_delta, maestro, q_vlm, rd_layer_pruning, sparsities
from claims.__main__ import CODING, OWN, main
from claims.coding import Claim
from claims.equal_bytes import of_arm
from claims.tables import render
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED
from scipy.stats import spearmanr

from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.rank.factors import LowRank
from isthmus.bottlenecks.rank.maestro import Maestro
from isthmus.errors import BadInput
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import decode
from isthmus.storage.delta import delta_bytes, matrices_of
from isthmus.storage.holders import with_codes
from test_coding_claims import bench, curve, outcome

CLAIMS: dict[str, Claim] = {slug: import_module(f"claims.{module}").CLAIM for slug, module in OWN.items()}
every_claim = pytest.mark.parametrize("slug", CLAIMS)


@every_claim
def test_nothing_is_decided_without_points(slug: str) -> None:
    claim = CLAIMS[slug]
    assert claim.slug == slug
    assert slug not in CODING
    parts = claim.parts([])
    assert [part["verdict"] for part in parts] == [UNTESTED] * len(parts)
    assert all(part["rule"] and part["name"] for part in parts)
    points = claim.points((0, 1, 2))
    assert len(set(points)) == len(points)


def test_missing_data_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ISTHMUS_DATA", "/nowhere")
    for slug in OWN:
        assert main([slug, "--quick"]) == 2
        assert capsys.readouterr().err.startswith(f"{slug}: skipped, no folder of data: set ISTHMUS_DATA")


# Sparsities.


def curves(sizes: dict[str, int], seed: int) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    return {
        name: {0: 0.0, **dict(zip((4, 8, 12, 14), np.cumsum(rng.exponential(1, 4)).tolist(), strict=True))}
        for name in sizes
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_dynamic_program_finds_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {name: int(size) for name, size in zip("abcd", rng.integers(40, 600, 4), strict=True)}
    alone, share = curves(sizes, seed), float(rng.uniform(0.1, 0.85))

    def lost(counts: dict[str, int]) -> float:
        return sum(
            next(nats for part, nats in alone[name].items() if sparsities.sixteenths(sizes[name], part) == count)
            for name, count in counts.items()
        )

    ways = (
        dict(zip(sizes, (sparsities.sixteenths(size, part) for size, part in zip(sizes.values(), way, strict=True)),
                 strict=True))
        for way in itertools.product((0, 4, 8, 12, 14), repeat=4)
    )  # fmt: skip
    target = int(share * sum(sizes.values()))
    best = min(lost(way) for way in ways if sum(way.values()) >= target)
    found, near = sparsities.exact(share, sizes, alone), sparsities.priced(share, sizes, alone)
    assert sum(found.values()) >= target
    assert lost(found) == pytest.approx(best)
    assert sum(near.values()) >= target
    assert lost(near) >= best - 1e-12
    assert sparsities.nats_alone(found, sizes, alone) == pytest.approx(best, rel=0.1)


def test_more_than_the_curves_reach_is_refused() -> None:
    with pytest.raises(BadInput, match="95%"):
        sparsities.exact(0.95, {"a": 160}, {"a": {0: 0.0, 8: 1.0}})


def test_lamp_and_magnitude_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(0, 1, (6, 5)).astype("f4"), "b": rng.normal(0, 3, (4, 10)).astype("f4")}
    scores = []
    for name, weight in weights.items():
        squares = weight.astype(np.float64).ravel() ** 2
        scores += [(one / squares[squares >= one].sum(), name) for one in squares]
    sizes = [(abs(float(one)), name) for name, weight in weights.items() for one in weight.ravel()]
    for share in (0.1, 0.5, 0.8):
        for found, ranked in (
            (sparsities.lamp(share, weights), scores),
            (sparsities.global_magnitude(share, weights), sizes),
        ):
            lowest = [name for _, name in sorted(ranked)[: int(share * 70)]]
            assert found == {name: lowest.count(name) for name in weights}
    assert sparsities.uniform(0.5, weights) == {"a": 15, "b": 20}


def test_pruned_weights_are_the_smallest_and_no_other_is_zero() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (40, 30)).astype(np.float32)
    weight[0] = 100  # a row whose grid is coarse, so that small weights of it would round to nothing
    weight[0, 1:] = 1e-3
    plain = MatrixStatistics(Sensitivity(np.ones(40), np.ones(30)))
    coded = rd_layer_pruning.Pruned(100).code(weight, plain, Setting(12))
    gone = np.sort(np.argsort(np.abs(weight), axis=None, kind="stable")[:100])
    np.testing.assert_array_equal(np.flatnonzero(coded.integers.ravel() == 0), gone)
    kept = np.delete(np.arange(weight.size), np.r_[gone, :30])
    np.testing.assert_allclose(decode(coded).ravel()[kept], weight.ravel()[kept], atol=0.002)
    np.testing.assert_array_equal(decode(unpack(pack(coded), (40, 30))), decode(coded))
    with pytest.raises(BadInput, match="1201 of 1200"):
        rd_layer_pruning.Pruned(1201).code(weight, plain, Setting(12))


def pruned(arm: str, shift: float, factor: float = 1.0) -> list[dict[str, Any]]:
    """Return made-up outcomes at three sparsities."""
    rows = curve(arm, shift, factor, levels=(0.25, 0.5, 0.75))
    return [{**row, "sparsity": row["level"], "together": 1.1, "alone": 1.0, "solver_seconds": 2.0} for row in rows]


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, MIXED), (-0.01, FAILS)])
def test_allocation_at_equal_sparsity(shift: float, verdict: str) -> None:
    others = [row for arm in ("uniform", "global magnitude", "lamp") for row in pruned(arm, 0.0)]
    assert rd_layer_pruning.better(pruned("dynamic program", shift) + others)["verdict"] == verdict
    uneven = pruned("dynamic program", shift)
    uneven[0]["sparsity"] += 0.01
    assert rd_layer_pruning.better(uneven + others)["verdict"] == UNTESTED


@pytest.mark.parametrize(("ratios", "verdict"), [((1.1, 0.9), HOLDS), ((1.1, 1.3), MIXED), ((0.7, 1.3), FAILS)])
def test_distortions_add_up(ratios: tuple[float, float], verdict: str) -> None:
    rows = pruned("dynamic program", 0.0)
    for row, ratio in zip(rows, (*ratios, 9.0), strict=True):  # what is beyond half does not count
        row["together"] = ratio
    assert rd_layer_pruning.additive(rows)["verdict"] == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [((1, 2, 3), HOLDS), ((1, 2, 30), MIXED), ((20, 20, 30), FAILS)])
def test_the_solver_takes_seconds(seconds: tuple[float, ...], verdict: str) -> None:
    rows = pruned("dynamic program", 0.0)
    for row, own in zip(rows, seconds, strict=True):
        row["solver_seconds"] = own
    assert rd_layer_pruning.fast(rows)["verdict"] == verdict


def test_curves_are_kept_and_points_have_their_sparsity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = bench()
    before = own.likeness(own.network)
    out, cache, said = tmp_path / "rd.json", tmp_path / "kept", list[str]()
    assert rd_layer_pruning.run(own, out, quick=True, cache=cache, say=said.append) == "unfinished"
    np.testing.assert_array_equal(own.likeness(own.network), before)
    result = json.loads(out.read_text())
    for row in result["points"]:
        assert row["level"] - 0.001 <= row["sparsity"] <= row["level"] + 0.05
        weights = {name: own.weights[name].size for name in row["sparsities"]}
        share = sum(row["sparsities"][name] * size for name, size in weights.items()) / sum(weights.values())
        assert share == pytest.approx(row["sparsity"])
    monkeypatch.setattr(rd_layer_pruning.Bench, "_curve", lambda *_: pytest.fail("measured again"))
    again = rd_layer_pruning.Bench(own, cache, said.append)
    one = next(iter(again.alone))
    assert list(again.alone[one]) == [0, *rd_layer_pruning.MEASURED]
    assert "## rd-layer-pruning: unfinished" in render([result])


# Blocks.


def test_entropy_of_known_distributions() -> None:
    assert q_vlm.entropy(np.arange(1600.0)) == pytest.approx(4.0)
    assert q_vlm.entropy(np.array([0.0] * 50 + [1.0] * 50)) == pytest.approx(1.0)
    assert q_vlm.entropy(np.zeros(10)) == 0.0


def test_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 6, (20, 2)).astype(float)
    rows[:, 1] += rows[:, 0]
    found, p = q_vlm.correlation(rows.tolist())
    theirs = spearmanr(rows[:, 0], rows[:, 1], alternative="greater")
    assert found == pytest.approx(theirs.statistic)
    assert p == pytest.approx(theirs.pvalue, abs=0.01)


def test_blocks_are_neighbours_of_high_entropy() -> None:
    names = list("abcdefgh")
    high = dict(zip(names, (1, 5, 5, 5, 5, 1, 1, 1), strict=True))
    assert q_vlm.partition(names, high) == [["a", "b", "c", "d"], ["e"], ["f"], ["g"], ["h"]]
    assert q_vlm.even(names, 3) == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]


def test_search_in_a_block_finds_what_single_matrices_cannot() -> None:
    # Choices cost least alone at 0, and together at (1, 1): only a search that lets both move gets there.
    table = {(0, 0): 3.0, (0, 1): 4.0, (1, 0): 2.0, (1, 1): 1.0}
    asked: list[tuple[str, ...]] = []

    def lost(last: str, held: dict[str, int]) -> float:
        asked.append(tuple(held))
        return table[held["a"], held.get("b", 0)]

    start = {"a": 0, "b": 0}
    assert q_vlm.search([["a", "b"]], start, 2, lost) == {"a": 1, "b": 1}
    asked.clear()
    assert q_vlm.search([["a"], ["b"]], start, 2, lost) == {"a": 1, "b": 1}
    assert asked[0] == ("a",)  # the block after is exact while the first is searched
    assert q_vlm.search([["a", "b"]], start, 1, lost) == start


def test_errors_of_layers_and_choices_of_single_matrices() -> None:
    own = q_vlm.Bench(bench())
    assert len(own.linear) == 6
    assert set(own.layers.values()) == {"encoder.layer.0"}
    assert own.error("encoder.layer.0") == 0
    name = own.linear[0]
    with own.holding({name: 2 * own.weights[name]}):
        found = own.error("encoder.layer.0")
        inputs = own.probe.inputs
        hidden = [own.network.model(**x).last_hidden_state[x["attention_mask"].bool()] for x in inputs]
    exact = [own.network.model(**x).last_hidden_state[x["attention_mask"].bool()] for x in inputs]
    lost = sum(float(((a - b) ** 2).sum()) for a, b in zip(hidden, exact, strict=True))
    assert found == pytest.approx(lost / sum(float((b**2).sum()) for b in exact), rel=1e-4)
    tried = {name: q_vlm.choices(own.weights[name], 7.0)}
    errors = [own.reconstruction({name: one})[name] for one in tried[name]]
    assert own.alone(tried) == {name: int(np.argmin(errors))}
    assert len({code.scales[0].tobytes() for code in tried[name]}) == len(q_vlm.OFFSETS)
    assert all(np.abs(code.integers).max() == 3 for code in tried[name])


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([(one, one) for one in range(12)], HOLDS),
        ([(1, 1), (2, 3), (3, 2)], MIXED),
        ([(one, -one) for one in range(12)], FAILS),
        ([(1, 1)], UNTESTED),
    ],
)
def test_entropy_as_a_proxy(rows: list[tuple[float, float]], verdict: str) -> None:
    named = {str(place): list(row) for place, row in enumerate(rows)}
    assert q_vlm.proxy([outcome("matrix by matrix", 15, 100, 1, 1, dependencies=named)])["verdict"] == verdict


@pytest.mark.parametrize(("ours", "verdict"), [((1, 2), HOLDS), ((1, 9), MIXED), ((9, 9), FAILS)])
def test_search_time(ours: tuple[float, float], verdict: str) -> None:
    rows = [
        outcome(q_vlm.BLOCKS, level, 100, 1, 1, search_seconds=own) for level, own in zip((15, 7), ours, strict=True)
    ]
    rows += [outcome(q_vlm.WHOLE, level, 100, 1, 1, search_seconds=5.0) for level in (15, 7)]
    assert q_vlm.quicker(rows)["verdict"] == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, MIXED), (-0.01, FAILS)])
def test_blocks_against_single_matrices(shift: float, verdict: str) -> None:
    assert q_vlm.better(curve(q_vlm.BLOCKS, shift) + curve(q_vlm.ONE))["verdict"] == verdict


def test_run_of_searches(tmp_path: Path) -> None:
    own, out, said = bench(), tmp_path / "q.json", list[str]()
    before = own.likeness(own.network)
    assert q_vlm.run(own, out, say=said.append) in (HOLDS, MIXED, FAILS)
    np.testing.assert_array_equal(own.likeness(own.network), before)
    result = json.loads(out.read_text())
    assert {one["arm"] for one in result["points"]} == {arm.label for arm in q_vlm.CLAIM.arms}
    first = out.read_text()
    assert q_vlm.run(own, out, say=said.append) == result["verdict"]
    assert out.read_text() == first
    dependent = of_arm(result["points"], q_vlm.ONE)[15.0][0]["dependencies"]
    assert len(dependent) == 5


# Deltas.


def pairs() -> list[tuple[str, str, float]]:
    texts, rng = bench().task.train, np.random.default_rng(0)
    return [(texts[place], texts[place + 1], float(rng.uniform())) for place in range(0, 160, 2)]


QUICK = ere_delta.Tuning(steps=6, batch=8, rate=1e-3)


def test_fine_tuning_learns_the_pairs_and_repeats_itself() -> None:
    own, some = bench().network, pairs()
    before = {name: one.clone() for name, one in own.model.state_dict().items()}
    first, second = (ere_delta.fine_tune(own, some, QUICK, 0) for _ in range(2))
    other = ere_delta.fine_tune(own, some, QUICK, 1)
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(first.model.state_dict()[name], second.model.state_dict()[name])
    assert not torch.equal(
        first.model.encoder.layer[0].output.dense.weight, other.model.encoder.layer[0].output.dense.weight
    )

    def ordered(network: Any) -> float:
        from isthmus.network import embed
        from isthmus.tasks.metrics import spearman

        left, right = (embed(network, [pair[side] for pair in some]) for side in (0, 1))
        return spearman((left * right).sum(1).astype(np.float64), np.array([pair[2] for pair in some]))

    trained = ere_delta.fine_tune(own, some, replace(QUICK, steps=60, batch=40), 0)
    assert ordered(trained) > ordered(own) + 0.1


def test_one_rank_is_the_highest_that_fits() -> None:
    own = bench().network
    tuned = ere_delta.fine_tune(own, pairs(), QUICK, 0)
    old, new = matrices_of(own), matrices_of(tuned)
    spectra = {name: ere_delta.spectrum_of(new[name] - old[name]) for name in old}
    spectra = {name: one for name, one in spectra.items() if len(one.values)}

    def at(rank: int, bits: int) -> dict[str, Any]:
        return {name: ere_delta.factored(one, min(rank, len(one.values)), bits) for name, one in spectra.items()}

    budget = len(delta_bytes(own, tuned, at(22, 4))) + 50
    highest = {
        bits: next(rank for rank in range(32, 0, -1) if len(delta_bytes(own, tuned, at(rank, bits))) <= budget)
        for bits in (4, 8)
    }
    assert highest[8] < highest[4] < 32

    def lost(codes: dict[str, Any]) -> float:
        return sum(float(((new[name] - old[name] - decode(code)) ** 2).sum()) for name, code in codes.items())

    codes = ere_delta.one_rank(own, tuned, budget)
    assert len(delta_bytes(own, tuned, codes)) <= budget
    best = min((at(rank, bits) for bits, rank in highest.items()), key=lost)
    for name, code in codes.items():
        np.testing.assert_array_equal(decode(code), decode(best[name]))
    with pytest.raises(BadInput, match="larger share"):
        ere_delta.one_rank(own, tuned, 100)


def test_ranks_for_nine_tenths() -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(0, 1, (side, 10)))[0] for side in (30, 10))
    matrix = (left * np.sqrt([80, 9.5, 5.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]) @ right.T).astype(np.float32)
    assert ere_delta.kept_energy(matrix) == pytest.approx(0.3)
    assert ere_delta.kept_energy(matrix.T.copy()) == pytest.approx(0.3)
    assert ere_delta.kept_energy(np.zeros((4, 5), np.float32)) == 0


@pytest.mark.parametrize(
    ("share", "scores", "verdict"),
    [(0.045, (0.9, 0.895), HOLDS), (0.045, (0.9, 0.88), MIXED), (0.051, (0.9, 0.9), FAILS)],
)
def test_score_under_a_twentieth(share: float, scores: tuple[float, float], verdict: str) -> None:
    rows = [
        {**outcome(ere_delta.OURS, ere_delta.SHARES[0], 100, 1, 1), "seed": seed, "share": share, "score": score,
         "tuned_score": 0.9, "base_score": 0.8}
        for seed, score in enumerate(scores)
    ]  # fmt: skip
    assert ere_delta.kept(rows)["verdict"] == verdict


@pytest.mark.parametrize(
    ("decay", "verdict"), [((0.1, 0.1, 0.2), HOLDS), ((0.1, 0.1, 0.9), MIXED), ((0.9, 0.9, 0.1), FAILS)]
)
def test_spectra_of_residuals(decay: tuple[float, ...], verdict: str) -> None:
    rows = [outcome(ere_delta.OURS, 0.02, 100, 1, 1, decay={str(place): [own, 0.5] for place, own in enumerate(decay)})]
    assert ere_delta.decaying(rows)["verdict"] == verdict


def test_deltas_are_measured_once_and_tuned_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = tuple(replace(arm, levels=(0.3,)) for arm in ere_delta.CLAIM.arms)
    monkeypatch.setattr(ere_delta, "CLAIM", replace(ere_delta.CLAIM, arms=arms))
    own, out, said = bench(), tmp_path / "ere.json", list[str]()

    def once() -> str:
        return ere_delta.run(
            own, out, seeds=(0, 1), cache=tmp_path / "kept", pairs=pairs(), tuning=QUICK, say=said.append
        )

    once()
    result = json.loads(out.read_text())
    assert {(row["arm"], row["seed"]) for row in result["points"]} == set(
        itertools.product((ere_delta.OURS, ere_delta.ONE), (0, 1))
    )
    assert all(row["bytes"] <= 0.3 * own.original["bytes"] for row in result["points"])
    assert all(row["nats"] >= 0 and row["share"] <= 0.3 for row in result["points"])
    first = out.read_text()
    once()
    assert out.read_text() == first
    assert "0 points to measure, 4 there already" in " ".join(said)
    monkeypatch.setattr(ere_delta, "cosent_loss", lambda *_: pytest.fail("trained again"))
    tuned = ere_delta.Bench(own, pairs(), QUICK, tmp_path / "kept").tuned(1)
    assert tuned.score == pytest.approx(result["points"][-1]["tuned_score"])
    assert "ere-delta" in render([result])


# Maestro.


def statistics(rows: int, columns: int) -> MatrixStatistics:
    rng = np.random.default_rng(1)
    inputs = rng.normal(0, 1, (4 * columns, columns)) @ rng.normal(0, 1, (columns, columns)) / np.sqrt(columns)
    sensitivity = Sensitivity(rng.gamma(2, 1, rows), rng.gamma(2, 1, columns))
    return MatrixStatistics(sensitivity, (inputs.T @ inputs / len(inputs)).astype(np.float32))


def falling(rows: int, columns: int) -> np.ndarray:
    rng, side = np.random.default_rng(0), min(rows, columns)
    left, right = rng.normal(0, 1, (rows, side)), rng.normal(0, 1, (side, columns))
    return (left * np.geomspace(1, 0.05, side) @ right / 10).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 48), (40, 64)])
def test_maestro_as_a_coder_reaches_the_weighted_decomposition(shape: tuple[int, int]) -> None:
    """Eckart and Young: the decomposition that the coder low-rank truncates is the least that any factors lose."""
    weight, known = falling(*shape), statistics(*shape)
    coder = Maestro(bits=12)
    assert coder.settings(shape) == LowRank(bits=12).settings(shape)
    for rank in (2, 8):
        setting = Setting(12, rank=rank)
        errors = [decode(one.code(weight, known, setting)) - weight for one in (coder, LowRank(bits=12))]
        ours, least = (float(known.sensitivity.rows @ ((error @ known.moments) * error).sum(1)) for error in errors)
        assert least * 0.999 <= ours <= 1.02 * least
    setting = coder.settings(shape)[-1]
    blob = pack(coder.code(weight, known, setting, seed=3))
    again = coder.code(weight, known, setting, seed=3)
    assert blob == pack(again)
    np.testing.assert_array_equal(decode(unpack(blob, shape)), decode(again))


def test_maestro_codes_embeddings_zeros_and_refuses_the_rest() -> None:
    weight, known = falling(40, 20), MatrixStatistics(statistics(40, 20).sensitivity)
    quick = Maestro(steps=40)
    assert decode(quick.code(weight, known, Setting(8, rank=4))).shape == (40, 20)
    assert not decode(quick.code(np.zeros((40, 20), np.float32), known, Setting(8, rank=2))).any()
    with pytest.raises(BadInput, match="rank 21"):
        quick.code(weight, known, Setting(8, rank=21))
    with pytest.raises(BadInput, match="moments of shape"):
        quick.code(weight, statistics(40, 19), Setting(8, rank=2))
    weight[3, 5] = np.nan
    with pytest.raises(BadInput, match="row 3, column 5"):
        quick.code(weight, known, Setting(8, rank=2))


def test_prefixes_are_held_against_the_best_of_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((20, 12), (12, 20)):
        weight, moments = falling(*shape), statistics(*shape).moments
        left, spectrum, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
        exact = maestro.Factors((left * spectrum).astype(np.float32), right.astype(np.float32))
        monkeypatch.setattr(maestro, "train", lambda *_, exact=exact: exact)
        np.testing.assert_allclose(maestro.above_best(weight, None), 0, atol=1e-3)
        exactly = weight.astype(np.float64)
        values = np.linalg.eigvalsh(exactly @ moments @ exactly.T)[::-1]
        for rank, above in enumerate(maestro.above_best(weight, moments), 1):
            error = weight - (left * spectrum)[:, :rank] @ right[:rank]
            assert above == pytest.approx(np.trace(error @ moments @ error.T) / values[rank:].sum() - 1, rel=2e-3)


@pytest.mark.parametrize(("worst", "verdict"), [((0.005, 0.009), HOLDS), ((0.005, 0.02), FAILS), ((0.02, 0.02), FAILS)])
def test_prefixes(worst: tuple[float, float], verdict: str) -> None:
    held = {"svd": {"a": [0.0, worst[0]]}, "pca": {"a": [worst[1], 0.0]}}
    assert maestro.prefixes([outcome(maestro.ALONE, 0.5, 100, 1, 1, prefixes=held)])["verdict"] == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, MIXED), (-0.01, FAILS)])
def test_truncation_after_training(shift: float, verdict: str) -> None:
    rows = curve(maestro.ORDERED, shift) + curve(maestro.WEIGHTED) + curve(maestro.PLAIN)
    assert maestro.truncation(rows)["verdict"] == verdict


def test_training_through_the_network_leaves_it_and_lowers_the_divergence() -> None:
    shared = bench()
    own = maestro.Bench(shared)
    before = shared.likeness(shared.network)
    arm = next(arm for arm in maestro.CLAIM.arms if arm.label == maestro.ORDERED)
    probe = make_probe(shared.network, own.texts[:32], batch=32)
    lost = []
    for passes in (0, 80):
        coder = maestro.Through(ordered=False, passes=passes, rate=0.03)
        codes = own.codes(replace(arm, make=lambda _, coder=coder: (coder, Setting(8))), 0.3, 0)
        lost.append(measure_network(probe, with_codes(shared.network, codes)))
        own.trained.clear()
    assert lost[1] < 0.8 * lost[0]
    trained = replace(arm, make=lambda _: (maestro.Through(passes=3), Setting(8)))
    own.codes(trained, 0.3, 0)
    factors = own.trained[0, 0.0]
    shorter = own.codes(trained, 0.2, 0)
    for name, code in shorter.items():
        rank = code.left.shape[1]
        assert rank < factors[name].left.shape[1]
        np.testing.assert_allclose(
            decode(code.left), factors[name].left[:, :rank], atol=0.03 * np.abs(factors[name].left).max()
        )
    np.testing.assert_array_equal(shared.likeness(shared.network), before)
    assert all(parameter.grad is None for parameter in shared.network.model.parameters())


def shortened(own: Maestro, code: Any, *given: Any, **named: Any) -> Any:
    """Code after a few steps of training."""
    return code(replace(own, steps=20), *given, **named)


def quick(made: tuple[Any, Setting]) -> tuple[Any, Setting]:
    """Return a coder that trains for a few steps only."""
    coder, setting = made
    return (replace(coder, passes=3) if isinstance(coder, maestro.Through) else coder), setting


def test_quick_run_of_maestro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maestro, "PREFIX_STEPS", 20)
    monkeypatch.setattr(Maestro, "code", partialmethod(shortened, Maestro.code))
    arms = tuple(replace(arm, make=lambda level, make=arm.make: quick(make(level))) for arm in maestro.CLAIM.arms)
    monkeypatch.setattr(maestro, "CLAIM", replace(maestro.CLAIM, arms=arms))
    out, said = tmp_path / "m.json", list[str]()
    assert maestro.run(bench(), out, seeds=(0,), quick=True, say=said.append) == "unfinished"
    result = json.loads(out.read_text())
    assert {one["arm"] for one in result["points"]} == {arm.label for arm in maestro.CLAIM.arms}
    assert sum("prefixes" in one for one in result["points"]) == 1
