"""Coders by rank: truncation against closed forms, error bounds against true errors, training against SVD and PCA."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.rank import alds, products
from isthmus.bottlenecks.rank.alds import Alds, choose, sliced
from isthmus.bottlenecks.rank.factors import LowRank, factors
from isthmus.bottlenecks.rank.maestro import RankPrefix, train
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import decode

CODERS = [LowRank(), Alds()]
every_coder = pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)


def matrix(rows: int = 64, columns: int = 48, seed: int = 0) -> np.ndarray:
    """Return a matrix whose singular values fall."""
    rng = np.random.default_rng(seed)
    side = min(rows, columns)
    left, right = rng.normal(0, 1, (rows, side)), rng.normal(0, 1, (side, columns))
    return (left * np.geomspace(1, 0.05, side) @ right / 10).astype(np.float32)


def statistics(rows: int = 64, columns: int = 48, seed: int = 1) -> MatrixStatistics:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (4 * columns, columns)) @ rng.normal(0, 1, (columns, columns)) / np.sqrt(columns)
    sensitivity = Sensitivity(rng.gamma(2, 1, rows), rng.gamma(2, 1, columns))
    return MatrixStatistics(sensitivity, (inputs.T @ inputs / len(inputs)).astype(np.float32))


def cost(coder: object, error: np.ndarray, known: MatrixStatistics) -> float:
    """Return what the coder promises to keep small."""
    if isinstance(coder, LowRank):
        return float(known.sensitivity.rows @ np.sum((error @ known.moments) * error, axis=1))
    return float((error**2).sum())


@every_coder
def test_higher_ranks_lose_less(coder):
    weight, known = matrix(), statistics()
    settings = coder.settings(weight.shape)
    assert len(settings) >= 5
    for _, own in itertools.groupby(sorted(settings, key=lambda one: (one.group, -one.rank)), lambda one: one.group):
        codes = [coder.code(weight, known, setting) for setting in own]
        losses = [cost(coder, decode(coded) - weight, known) for coded in codes]
        assert losses == sorted(losses)
        sizes = [len(pack(coded)) for coded in codes]
        assert sizes == sorted(sizes, reverse=True)


@every_coder
def test_settings_hold_fewer_numbers_than_the_matrix(coder):
    for rows, columns in ((64, 48), (48, 64), (300, 20)):
        sizes = []
        for setting in coder.settings((rows, columns)):
            slices = columns // setting.group if setting.group else 1
            sizes.append(setting.rank * rows + setting.rank // slices * columns)
        assert max(sizes) < rows * columns
        assert sizes == sorted(sizes, reverse=True)
    assert coder.settings((1, 40)) == coder.settings((40, 1)) == ()


@every_coder
def test_same_code_and_packed_as_unpacked(coder):
    weight, known = matrix(), statistics()
    setting = coder.settings(weight.shape)[1]
    coded = coder.code(weight, known, setting, seed=3)
    blob = pack(coded)
    assert blob == pack(coder.code(weight, known, setting, seed=3))
    np.testing.assert_array_equal(decode(unpack(blob, weight.shape)), decode(coded))


@every_coder
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (64, 37)])
def test_odd_matrices(coder, shape):
    for weight in (matrix(*shape), np.zeros(shape, np.float32), np.full(shape, 1e-12, np.float32)):
        coded = coder.code(weight, statistics(*shape), Setting(8, shape[1], 1))
        np.testing.assert_array_equal(decode(unpack(pack(coded), shape)), decode(coded))
    # Of rank 1, so that nothing is lost but what eight bits lose.
    np.testing.assert_allclose(decode(coded), weight, rtol=0.02)
    zeros = np.zeros(shape, np.float32)
    np.testing.assert_array_equal(decode(coder.code(zeros, statistics(*shape), Setting(8, shape[1], 1))), zeros)


@every_coder
def test_what_cannot_be_coded_is_refused(coder):
    weight, known = matrix(), statistics()
    weight[3, 5] = np.inf
    with pytest.raises(BadInput, match="row 3, column 5"):
        coder.code(weight, known, Setting(8, 48, 2))
    for rank in (0, 49):
        with pytest.raises(BadInput, match=f"rank {rank}"):
            coder.code(matrix(), known, Setting(8, 48, rank))
    with pytest.raises(BadInput, match="whole number from 2 to 12"):
        coder.code(matrix(), known, Setting(2.5, 48, 3))


def test_factors_are_rounded_to_half_a_step_at_most():
    rng = np.random.default_rng(0)
    left, right = rng.normal(0, 1, (30, 4)) * [1, 10, 0.01, 0], rng.normal(0, 1, (4, 20))
    coded = products.product(left, right, 8)
    for factor, exact, axis in ((coded.left, left, 0), (coded.right, right, 1)):
        step = np.abs(exact).max(axis, keepdims=True) / 127 * 2 ** (1 / 16)
        assert (np.abs(decode(factor) - exact) <= step / 2 + 1e-6).all()
        assert np.abs(factor.integers).max() <= 127


@pytest.mark.parametrize("shape", [(20, 14), (14, 20)])
def test_low_rank_loses_the_tail_of_the_weighted_spectrum(shape):
    """Eckart and Young: no matrix of this rank loses less; any root of the moments has the same spectrum."""
    weight, known = matrix(*shape), statistics(*shape)
    root = np.linalg.cholesky(known.moments.astype(np.float64))
    spectrum = np.linalg.svd(np.sqrt(known.sensitivity.rows)[:, None] * (weight @ root), compute_uv=False)
    for rank in (1, 5, 12):
        left, right = factors(weight, known.sensitivity.rows, known.moments, rank)
        assert cost(LowRank(), left @ right - weight, known) == pytest.approx((spectrum[rank:] ** 2).sum(), rel=1e-4)


def test_low_rank_of_white_inputs_is_that_of_the_matrix_and_of_an_embedding_by_frequency():
    weight = matrix(30, 12)
    plain = MatrixStatistics(Sensitivity(np.ones(30), np.ones(12)), np.eye(12, dtype=np.float32))
    left, spectrum, right = np.linalg.svd(weight)
    truncated = left[:, :4] * spectrum[:4] @ right[:4]
    found = decode(LowRank(bits=12).code(weight, plain, Setting(12, rank=4)))
    np.testing.assert_allclose(found, truncated, atol=2e-3 * np.abs(truncated).max())
    known = Sensitivity(np.where(np.arange(30) < 10, 100.0, 1.0), np.geomspace(1, 9, 12))
    spectrum = np.linalg.svd(np.sqrt(np.outer(known.rows, known.columns)) * weight, compute_uv=False)
    found = decode(LowRank(damping=0.0).code(weight, MatrixStatistics(known), Setting(12, rank=4)))
    # A little more than the least: the factors are rounded.
    lost = known.rows @ (found - weight).astype(np.float64) ** 2 @ known.columns
    assert 1 <= lost / (spectrum[4:] ** 2).sum() < 1.001
    assert lost < 0.9 * known.rows @ (truncated - weight).astype(np.float64) ** 2 @ known.columns


def test_directions_without_inputs_cost_nothing():
    weight, known = matrix(20, 12), statistics(20, 12)
    moments = known.moments.copy()
    moments[:, 5] = moments[5] = 0
    coded = LowRank().code(weight, MatrixStatistics(known.sensitivity, moments), Setting(8, rank=3))
    assert np.isfinite(decode(coded)).all()
    with pytest.raises(BadInput, match="moments of shape"):
        LowRank().code(weight, MatrixStatistics(known.sensitivity, moments[:3, :3]), Setting(8, rank=3))


def test_slices_are_truncated_one_by_one():
    weight = matrix(20, 12)
    left, right = sliced(weight, 3, 2)
    for part in range(3):
        own = slice(4 * part, 4 * part + 4)
        first, spectrum, second = np.linalg.svd(weight[:, own])
        np.testing.assert_allclose((left @ right)[:, own], first[:, :2] * spectrum[:2] @ second[:2], atol=1e-5)
        assert not right[2 * part : 2 * part + 2, np.r_[: 4 * part, 4 * part + 4 : 12]].any()
    coded = Alds().code(weight, statistics(20, 12), Setting(8, 4, 6))
    # Two factors, each rounded to half of 2^(1/16) / 127 of its largest number.
    np.testing.assert_allclose(decode(coded), left @ right, atol=0.02 * np.abs(weight).max())
    for bad in (Setting(8, 5, 6), Setting(8, 4, 7), Setting(8, 4, 15), Setting(8, 0, 3)):
        with pytest.raises(BadInput, match="do not fit a matrix of shape"):
            Alds().code(weight, statistics(20, 12), bad)


def test_the_true_error_never_exceeds_the_bound():
    checked = 0
    for seed in range(3):
        weight = matrix(18, 12, seed)
        for one in alds._options(weight):
            if one.slices:
                left, right = sliced(weight, one.slices, one.rank)
                true = np.linalg.norm(left @ right - weight, 2) / np.linalg.norm(weight, 2)
                assert true <= one.bound * (1 + 1e-6)
                assert one.size == left.size + np.count_nonzero(right)
                checked += one.slices > 1
                if one.slices == 1:
                    assert true == pytest.approx(one.bound, rel=1e-5)
    assert checked > 10


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5, 0.7, 0.9])
def test_choice_is_the_best_of_all(share):
    matrices = {"a": matrix(10, 8, 0), "b": 5 * matrix(6, 12, 1), "c": matrix(12, 4, 2)}
    budget = int(share * sum(one.size for one in matrices.values()))
    found = choose(matrices, budget)
    assert sum(one.size for one in found.values()) <= budget
    ways = itertools.product(*(alds._options(one) for one in matrices.values()))
    best = min(max(one.bound for one in way) for way in ways if sum(one.size for one in way) <= budget)
    assert max(one.bound for one in found.values()) == best
    for name, one in found.items():
        if one.slices:
            setting = one.setting(matrices[name].shape[1])
            coded = Alds().code(matrices[name], statistics(*matrices[name].shape), setting)
            assert coded.left.integers.size + np.count_nonzero(coded.right.integers) <= one.size
        else:
            with pytest.raises(BadInput, match="stays whole"):
                one.setting(8)


def test_choice_keeps_all_that_fits_and_refuses_what_cannot():
    matrices = {"a": matrix(10, 8), "b": np.zeros((6, 6), np.float32)}
    assert choose(matrices, 116)["a"] == alds.Choice(0, 0, 80, 0.0)
    with pytest.raises(UnreachableBudget, match="budget is 20"):
        choose(matrices, 20)
    # Nothing is lost of zeros at the least size.
    assert choose(matrices, 92)["b"].size == 12


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the sines of the principal angles between the spans of the columns."""
    cosines = np.linalg.svd(np.linalg.qr(first)[0].T @ np.linalg.qr(second)[0], compute_uv=False)
    return np.sqrt(np.maximum(1 - cosines**2, 0))


def test_maestro_finds_singular_vectors_for_white_inputs():
    weight = (np.linalg.qr(np.random.default_rng(0).normal(0, 1, (14, 10)))[0] * np.geomspace(2, 0.1, 10)).astype("f4")
    weight = (weight @ np.linalg.qr(np.random.default_rng(1).normal(0, 1, (10, 10)))[0]).astype(np.float32)
    found = train(weight, None, RankPrefix(4, steps=1500))
    left, spectrum, right = np.linalg.svd(weight)
    for rank in range(1, 5):
        assert angles(found.left[:, :rank], left[:, :rank]).max() < 0.02
        assert angles(found.right[:rank].T, right[:rank].T).max() < 0.02
        error = float(((found.left[:, :rank] @ found.right[:rank] - weight) ** 2).sum())
        assert error == pytest.approx((spectrum[rank:] ** 2).sum(), rel=0.01)


def test_maestro_finds_the_principal_components_of_outputs():
    rng = np.random.default_rng(3)
    weight = matrix(12, 10, 5)
    mix = rng.normal(0, 1, (10, 10)) * np.geomspace(3, 0.3, 10)
    moments = (mix @ mix.T).astype(np.float32)
    found = train(weight, moments, RankPrefix(3, steps=1500))
    values, directions = np.linalg.eigh(weight @ moments @ weight.T)
    plain = np.linalg.svd(weight)[0]
    for rank in (1, 2, 3):
        components = directions[:, ::-1][:, :rank]
        assert angles(found.left[:, :rank], components).max() < 0.02
        assert angles(plain[:, :rank], components).max() > 0.2
        error = found.left[:, :rank] @ found.right[:rank] - weight
        assert np.trace(error @ moments @ error.T) == pytest.approx(values[::-1][rank:].sum(), rel=0.01)


def test_group_lasso_lets_ranks_vanish_that_are_not_needed():
    rng = np.random.default_rng(0)
    weight = (rng.normal(0, 1, (12, 2)) @ rng.normal(0, 1, (2, 9))).astype(np.float32)
    noisy = weight + rng.normal(0, 0.05, weight.shape).astype(np.float32)
    assert train(noisy, None, RankPrefix(6, steps=800)).used(0.02) > 2
    shrunk = train(noisy, None, RankPrefix(6, steps=800, penalty=1e-3))
    assert shrunk.used(0.02) == 2
    assert float(((shrunk.left @ shrunk.right - weight) ** 2).sum() / (weight**2).sum()) < 0.01
    sizes = np.linalg.norm(shrunk.left, axis=0) * np.linalg.norm(shrunk.right, axis=1)
    assert sizes[0] >= sizes[1] > 50 * sizes[2:].max()


def test_maestro_repeats_itself_and_refuses_bad_input():
    weight = matrix(8, 6)
    first, second = (train(weight, None, RankPrefix(2, steps=20, seed=1)) for _ in range(2))
    np.testing.assert_array_equal(first.left, second.left)
    assert not np.array_equal(first.left, train(weight, None, RankPrefix(2, steps=20, seed=2)).left)
    assert train(np.zeros((4, 3), np.float32), None, RankPrefix(2, steps=20)).used() == 0
    with pytest.raises(BadInput, match="rank 7"):
        train(weight, None, RankPrefix(7))
    with pytest.raises(BadInput, match="moments of shape"):
        train(weight, np.eye(5, dtype=np.float32), RankPrefix(2))
    weight[0, 0] = np.nan
    with pytest.raises(BadInput, match="row 0, column 0"):
        train(weight, None, RankPrefix(2))
