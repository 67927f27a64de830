"""Coders by codebook: k-means, lookup with feedback, low-dimensional tables and tuning, each against brute force."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from isthmus.bottlenecks.codebook import dimension, lr2vq, moves, residual, vptq
from isthmus.bottlenecks.codebook.kmeans import kmeans, nearest
from isthmus.bottlenecks.codebook.lr2vq import LowDimensionalCodebook
from isthmus.bottlenecks.codebook.plain import PlainCodebook
from isthmus.bottlenecks.codebook.pv_tuning import PVRecipe, tune
from isthmus.bottlenecks.codebook.residual import ResidualCodebook
from isthmus.bottlenecks.codebook.vectors import entries_of
from isthmus.bottlenecks.codebook.vptq import Vptq
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import feedback_factor
from isthmus.errors import BadArtifact, BadInput
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Codebook, Outliers, Product, Sum, Uniform, decode, exponents_of
from isthmus.storage.entropy import varint

CODERS = [PlainCodebook(), Vptq(), ResidualCodebook(), LowDimensionalCodebook()]
every_coder = pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)


def matrix(rows: int = 128, columns: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (rows, columns)).astype(np.float32)


def statistics(rows: int = 128, columns: int = 96, seed: int = 1) -> MatrixStatistics:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (4 * columns, columns)) @ rng.normal(0, 1, (columns, columns)) / np.sqrt(columns)
    sensitivity = Sensitivity(rng.gamma(2, 1, rows), rng.gamma(2, 1, columns))
    return MatrixStatistics(sensitivity, (inputs.T @ inputs / len(inputs)).astype(np.float32))


def cost(coder: object, error: np.ndarray, known: MatrixStatistics) -> float:
    """Return what the coder promises to keep small."""
    if isinstance(coder, Vptq | ResidualCodebook):
        return float(np.sum((error @ known.moments) * error))
    if isinstance(coder, LowDimensionalCodebook):
        return float(known.sensitivity.rows @ error.astype(np.float64) ** 2 @ known.sensitivity.columns)
    return float((error**2).sum())


@every_coder
def test_finer_settings_lose_less(coder):
    weight, known = matrix(), statistics()
    settings = coder.settings(weight.shape)
    assert len(settings) >= 4
    losses = [cost(coder, decode(coder.code(weight, known, setting)) - weight, known) for setting in settings]
    assert losses == sorted(losses)
    sizes = [len(pack(coder.code(weight, known, setting))) for setting in settings]
    assert sizes == sorted(sizes, reverse=True)


@every_coder
def test_same_seed_same_code_and_packed_as_unpacked(coder):
    weight, known = matrix(), statistics()
    setting = coder.settings(weight.shape)[2]
    blob = pack(coder.code(weight, known, setting, seed=3))
    assert blob == pack(coder.code(weight, known, setting, seed=3))
    assert blob != pack(coder.code(weight, known, setting, seed=4))
    coded = coder.code(weight, known, setting, seed=3)
    np.testing.assert_array_equal(decode(unpack(blob, weight.shape)), decode(coded))


@every_coder
def test_what_cannot_be_coded_is_refused(coder):
    weight, known = matrix(), statistics()
    weight[3, 5] = np.nan
    with pytest.raises(BadInput, match="row 3, column 5"):
        coder.code(weight, known, Setting(2, 4))
    with pytest.raises(BadInput, match="do not fill 96 columns"):
        coder.code(matrix(), known, Setting(1, 7))
    for setting in (Setting(2), Setting(8, 8), Setting(0.01, 4)):
        with pytest.raises(BadInput, match="choose bits and group"):
            coder.code(matrix(), known, setting)


@every_coder
@pytest.mark.parametrize("shape", [(1, 40), (64, 37), (40, 1), (1, 1), (128, 96)])
def test_odd_matrices(coder, shape):
    known = statistics(*shape)
    for setting in coder.settings(shape):
        assert shape[1] % setting.group == 0
    setting = Setting(2 if isinstance(coder, ResidualCodebook) else 1, 1)
    for weight in (matrix(*shape), np.zeros(shape, np.float32), np.full(shape, 1e-12, np.float32)):
        coded = coder.code(weight, known, setting)
        assert coded.shape == shape
        np.testing.assert_array_equal(decode(unpack(pack(coded), shape)), decode(coded))
    # Rounded to float16 times a power of two.
    np.testing.assert_allclose(decode(coder.code(np.full(shape, 1e-12, np.float32), known, setting)), 1e-12, rtol=1e-3)
    assert not decode(coder.code(np.zeros(shape, np.float32), known, setting)).any()


@every_coder
def test_a_small_matrix_has_no_settings(coder):
    assert coder.settings((1, 40)) == ()
    assert {setting.group for setting in coder.settings((640, 37))} == {1}


def test_entries_follow_from_bits_and_length():
    assert [entries_of(Setting(bits, group)) for bits, group in ((2, 4), (0.75, 8), (np.log2(48) / 4, 4))] == [
        256,
        64,
        48,
    ]


def test_kmeans_finds_the_best_of_all_partitions():
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 1, (9, 2)).astype(np.float32)
    weights = rng.gamma(1, 1, (9, 2)).astype(np.float32)

    def lost(labels: np.ndarray) -> float:
        total = 0.0
        for entry in range(2):
            own, mass = vectors[labels == entry], weights[labels == entry]
            if len(own):
                total += float((mass * (own - (mass * own).sum(0) / mass.sum(0)) ** 2).sum())
        return total

    best = min(lost(np.array(labels)) for labels in itertools.product((0, 1), repeat=9))
    found = []
    for seed in range(20):
        table, labels = kmeans(vectors, 2, weights=weights, seed=seed)
        found.append(lost(labels))
        assert float((weights * (vectors - table[labels]) ** 2).sum()) == pytest.approx(found[-1], rel=1e-5)
    assert min(found) == pytest.approx(best, rel=1e-6)


def test_nearest_is_nearest_under_weights():
    rng = np.random.default_rng(1)
    vectors, table = rng.normal(0, 1, (500, 3)).astype(np.float32), rng.normal(0, 1, (17, 3)).astype(np.float32)
    weights = rng.gamma(1, 1, (500, 3)).astype(np.float32)
    exact = (weights[:, None] * (vectors[:, None].astype(np.float64) - table) ** 2).sum(2)
    labels, distances = nearest(vectors, table, weights)
    np.testing.assert_array_equal(labels, exact.argmin(1))
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-4)


def test_a_sample_serves_where_there_are_many_vectors(monkeypatch):
    vectors = np.random.default_rng(2).normal(0, 1, (8000, 2)).astype(np.float32)
    weights = np.random.default_rng(3).gamma(2, 1, 8000).astype(np.float32)

    def lost() -> float:
        table, labels = kmeans(vectors, 16, weights=weights)
        np.testing.assert_array_equal(labels, nearest(vectors, table)[0])
        return float(weights @ ((vectors - table[labels]) ** 2).sum(1))

    full = lost()
    monkeypatch.setattr("isthmus.bottlenecks.codebook.kmeans.MOST", 2000)
    assert lost() != full
    assert lost() == pytest.approx(full, rel=0.03)


def test_no_entry_is_wasted():
    vectors = np.repeat(np.arange(6, dtype=np.float32), [1000, 1, 1, 1, 1, 1])[:, None]
    table, labels = kmeans(vectors, 6, seed=0)
    np.testing.assert_array_equal(np.sort(table.ravel()), np.arange(6))
    np.testing.assert_array_equal(table[labels], vectors)
    assert len(kmeans(vectors[-3:], 8)[0]) == 3


def test_scalar_codebook_is_lloyd_and_max():
    """The least distortion of a Gaussian at 2 and 4 levels is known (Max 1960, table I)."""
    weight = matrix(400, 300)
    for bits, known in ((1, 0.3634), (2, 0.1175)):
        coded = PlainCodebook(rounds=200).code(weight, statistics(400, 300), Setting(bits, 1))
        error = float(((decode(coded) - weight) ** 2).mean() / (weight**2).mean())
        assert error == pytest.approx(known, rel=0.02)


def test_feedback_is_that_of_removing_blocks_one_at_a_time():
    """Against the inverse of what is left of the Hessian, taken anew at each step."""
    rng = np.random.default_rng(2)
    hessian = vptq.damped(statistics(4, 12).moments, 12, 0.01)
    weight, table = rng.normal(0, 1, (5, 12)).astype(np.float32), rng.normal(0, 1, (7, 3)).astype(np.float32)
    indices, lost = vptq.look_up(weight, table, feedback_factor(hessian))
    left, expected = weight.astype(np.float64), np.empty((5, 4), int)
    for block in range(4):
        inverse = np.linalg.inv(hessian[3 * block :, 3 * block :])
        metric = np.linalg.inv(inverse[:3, :3])
        for row in range(5):
            gaps = left[row, 3 * block : 3 * block + 3] - table
            expected[row, block] = int(np.argmin(np.einsum("ki,ij,kj->k", gaps, metric, gaps)))
            left[row, 3 * block :] -= gaps[expected[row, block]] @ metric @ inverse[:3]
    np.testing.assert_array_equal(indices, expected)
    error = table[indices].reshape(5, 12) - weight
    assert lost == pytest.approx(np.trace(error @ hessian @ error.T), rel=1e-6)


def test_feedback_loses_less_than_nearest_entries_and_nothing_without_correlation():
    weight, known = matrix(), statistics()
    setting = Setting(2, 4)
    with_feedback = Vptq().code(weight, known, setting)
    table = with_feedback.tables[0, 0].astype(np.float32)
    scaled, exponents = vptq.cut(weight, 4, by_row=True)
    without = replace(with_feedback, indices=nearest(scaled, table)[0].reshape(128, -1))
    assert cost(Vptq(), decode(with_feedback) - weight, known) < 0.7 * cost(Vptq(), decode(without) - weight, known)
    white = MatrixStatistics(known.sensitivity, np.eye(96, dtype=np.float32))
    coded = Vptq().code(weight, white, setting)
    rows = nearest(scaled, coded.tables[0, 0].astype(np.float32))[0].reshape(128, -1)
    np.testing.assert_array_equal(coded.indices, rows)
    np.testing.assert_array_equal(coded.scales[0], exponents)
    embedding = MatrixStatistics(known.sensitivity)
    np.testing.assert_array_equal(Vptq().code(weight, embedding, setting).indices, coded.indices)


def test_moments_that_do_not_fit_are_refused():
    known = statistics(128, 64)
    with pytest.raises(BadInput, match="moments of shape"):
        Vptq().code(matrix(), known, Setting(2, 4))


@pytest.mark.parametrize("weighted", [False, True])
def test_pairs_are_the_nearest_of_all_and_a_narrow_beam_is_close(weighted):
    rng = np.random.default_rng(3)
    vectors = rng.normal(0, 1, (300, 3)).astype(np.float32)
    tables = rng.normal(0, 1, (7, 3)).astype(np.float32), rng.normal(0, 0.4, (11, 3)).astype(np.float32)
    weights = rng.gamma(1, 1, (300, 3)).astype(np.float32) if weighted else None
    mass = np.ones((300, 3)) if weights is None else weights.astype(np.float64)
    sums = (tables[0].astype(np.float64)[:, None] + tables[1]).reshape(-1, 3)
    exact = (mass[:, None] * (vectors[:, None] - sums) ** 2).sum(2)
    labels, others = residual.nearest_pairs(vectors, tables, 7, weights)
    np.testing.assert_array_equal(labels * 11 + others, exact.argmin(1))
    labels, others = residual.nearest_pairs(vectors, tables, 2, weights)
    alone = (mass[:, None] * (vectors[:, None] - tables[0]) ** 2).sum(2)
    assert (np.sort(alone, 1)[:, 1] >= alone[np.arange(300), labels] - 1e-6).all()
    left = (mass[:, None] * (vectors[:, None] - tables[0][labels][:, None] - tables[1]) ** 2).sum(2)
    np.testing.assert_array_equal(others, left.argmin(1))


def test_pairs_with_feedback_are_those_of_one_table_of_all_sums():
    hessian = vptq.damped(statistics(4, 12).moments, 12, 0.01)
    rng = np.random.default_rng(2)
    weight = rng.normal(0, 1, (9, 12)).astype(np.float32)
    first, second = (rng.normal(0, spread, (5, 3)).astype(np.float32) for spread in (1, 0.3))
    factor = feedback_factor(hessian)
    (labels, others), lost = residual.look_up(weight, (first, second), factor, 5)
    expected, least = vptq.look_up(weight, (first[:, None] + second).reshape(-1, 3), factor)
    np.testing.assert_array_equal(labels * 5 + others, expected)
    assert lost == pytest.approx(least, rel=1e-6)


def test_a_second_table_halves_the_error_and_turns_never_raise_it():
    """With no pair left out of the search each half of a turn is the best that it can be."""
    vectors = matrix(128, 64).reshape(-1, 8)
    weights = np.random.default_rng(1).gamma(2, 1, vectors.shape).astype(np.float32)
    table, labels = kmeans(vectors, 16, weights=weights)
    losses = [float((weights * (vectors - table[labels]) ** 2).sum())]
    for turns in (0, 1, 2, 4, 8):
        tables = ResidualCodebook(turns=turns, beam=16)._fit(vectors, weights, 16, 0)
        labels, others = residual.nearest_pairs(vectors, tables, 16, weights)
        losses.append(float((weights * (vectors - tables[0][labels] - tables[1][others]) ** 2).sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.8 * losses[0]
    assert losses[-1] < 0.97 * losses[1]


def test_long_vectors_in_two_tables_lose_less_than_short_ones_in_one():
    """At as many bits of indices; one table of the longer vectors would have 4096 entries."""
    weight, known = matrix(512, 128), statistics(512, 128)
    two, one = (coder.code(weight, known, Setting(1.5, size)) for coder, size in ((ResidualCodebook(), 8), (Vptq(), 4)))
    assert [part.tables.shape for part in two.parts] == [(1, 1, 64, 8)] * 2
    assert cost(Vptq(), decode(two) - weight, known) < 0.96 * cost(Vptq(), decode(one) - weight, known)


def test_an_embedding_has_two_tables_too_and_many_vectors_are_drawn_from(monkeypatch):
    weight = matrix(512, 64)
    known = MatrixStatistics(Sensitivity(np.ones(512), np.ones(64)))

    def lost() -> float:
        return float(((decode(ResidualCodebook().code(weight, known, Setting(1.5, 4))) - weight) ** 2).sum())

    full = lost()
    single = float(((decode(Vptq().code(weight, known, Setting(0.75, 4))) - weight) ** 2).sum())
    assert full < 0.6 * single
    monkeypatch.setattr(residual, "_FITTED", 2000)
    assert lost() != full
    assert lost() == pytest.approx(full, rel=0.05)


def test_a_sum_is_its_parts_times_scales_and_what_no_file_may_hold_is_not_written():
    rng = np.random.default_rng(0)

    def part(size: int, columns: int = 12) -> Codebook:
        table = rng.normal(0, 1, (1, 1, 5, size)).astype(np.float16)
        return Codebook(table, rng.integers(0, 5, (6, columns // size)).astype(np.int32))

    grid = rng.integers(-20, 20, (6, 1)).astype(np.int32)
    outliers = Outliers(np.array([1, 30]), np.array([5.0, -5.0], np.float16))
    coded = Sum((part(4), part(2), part(4)), (grid,), outliers)
    expected = sum(one.tables[0, 0].astype(np.float64)[one.indices].reshape(6, 12) for one in coded.parts)
    expected = expected * 2.0 ** (grid / 16)
    expected.flat[[1, 30]] = 5, -5
    np.testing.assert_allclose(decode(coded), expected, rtol=1e-6, atol=1e-6)
    again = unpack(pack(coded), (6, 12))
    assert isinstance(again, Sum)
    np.testing.assert_array_equal(decode(again), decode(coded))
    integers = Uniform(np.ones((6, 12), np.int32), (np.zeros((1, 1), np.int32),))
    for parts in ((part(4),), (part(4),) * 5, (part(4), part(4, 8)), (integers, integers, part(4))):
        with pytest.raises(ValueError, match="cannot be coded as a sum"):
            pack(Sum(parts))


def test_sums_in_sums_and_more_integers_than_weights_are_refused():
    table = np.zeros((1, 1, 2, 2), np.float16)
    part = Codebook(table, np.zeros((4, 3), np.int32))
    integers = Uniform(np.ones((4, 6), np.int32), (np.zeros((1, 1), np.int32),))

    def sealed(body: bytes) -> bytes:
        return body + struct.pack("<I", zlib.crc32(body))

    def sum_of(*blobs: bytes) -> bytes:
        return sealed(bytes([1, 3, len(blobs)]) + b"".join(varint(len(blob)) + blob for blob in blobs) + b"\0\0")

    own, inner = pack(part), pack(Sum((part, part)))
    assert sum_of(own, own) == inner
    assert isinstance(unpack(sum_of(own, own), (4, 6)), Sum)
    for blobs in (
        (own, inner),
        (own,),
        (own,) * 5,
        (pack(integers), pack(integers), own),
        (own, pack(Product(part, part))),
    ):
        with pytest.raises(BadArtifact, match="truncated or damaged"):
            unpack(sum_of(*blobs), (4, 6))


@pytest.mark.parametrize("entries", [8, 16, 23, 32, 256])
def test_indices_take_what_their_entropy_says(entries):
    """Also where the last entry is as frequent as any: it is no number beyond a bound."""
    indices = np.random.default_rng(0).integers(0, entries, (256, 96)).astype(np.int32)
    shares = np.bincount(indices.ravel()) / indices.size
    bound = -(shares * np.log2(shares)).sum() * indices.size / 8
    held = len(pack(Codebook(np.zeros((1, 1, entries, 1), np.float16), indices)))
    assert bound < held - 2 * entries < 1.01 * bound + 1.5 * entries


def test_predicted_error_of_gaussians():
    """In one dimension the constant is that of Panter and Dite (1951); in four it meets what k-means reaches."""
    assert dimension.predicted_error(np.ones(1), 1, 16) == pytest.approx(np.sqrt(3) * np.pi / 2 / 16**2)
    vectors = np.random.default_rng(0).normal(0, 1, (20000, 4)).astype(np.float32)
    table, _ = kmeans(vectors, 256)
    # On vectors that the table has not seen: those it was made from are nearer to it than any others will be.
    reached = float(nearest(np.random.default_rng(1).normal(0, 1, (20000, 4)).astype(np.float32), table)[1].mean())
    assert dimension.predicted_error(np.ones(4), 4, 256) == pytest.approx(reached, rel=0.05)
    # Directions below the water get no bits: only what they hold is lost.
    spectrum = np.array([1.0, 1e-6, 1e-6])
    assert dimension.predicted_error(spectrum, 3, 4) == pytest.approx(dimension.predicted_error(spectrum, 1, 4))


def low_dimensional(rows: int, columns: int, size: int, true: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    spread = np.where(np.arange(size) < true, 1.0, 0.12)
    basis = np.linalg.qr(rng.normal(0, 1, (size, size)))[0]
    vectors = rng.normal(0, 1, (rows * columns // size, size)) * spread @ basis
    return vectors.reshape(rows, columns).astype(np.float32)


def test_predicted_dimension_is_within_one_of_the_best():
    weight = low_dimensional(256, 128, 8, 3)
    ones = MatrixStatistics(Sensitivity(np.ones(256), np.ones(128)))
    losses, sizes = [], []
    for own in range(1, 9):
        coded = LowDimensionalCodebook().code(weight, ones, Setting(1, 8, own))
        losses.append(float(((decode(coded) - weight) ** 2).sum()))
        sizes.append(len(pack(coded)))
    best = 1 + int(np.argmin(losses))
    values = lr2vq.spectrum(vptq.cut(weight, 8)[0], np.ones(4096, np.float32))[0]
    predicted = dimension.predicted_dimensions((256, 128), values, 256)
    assert abs(predicted - best) <= 1
    assert best < 8
    chosen = LowDimensionalCodebook().code(weight, ones, Setting(1, 8))
    assert len(pack(chosen)) == sizes[predicted - 1]
    # What the table saves goes into entries, and the bytes do not grow by more than the tables of the entropy coder.
    assert isinstance(chosen, Product)
    assert chosen.left.tables.shape[2] > 256
    assert sizes[predicted - 1] < 1.05 * sizes[-1]


def test_the_two_forms_stand_for_the_same_matrix():
    rng = np.random.default_rng(0)
    projection = rng.normal(0, 1, (2, 4)).astype(np.float16).astype(np.float32)
    block = decode(lr2vq.repeated(projection, 3))
    np.testing.assert_array_equal(block, np.kron(np.eye(3), projection))
    table = rng.normal(0, 1, (5, 2)).astype(np.float16).astype(np.float32)
    labels = rng.integers(0, 5, 30).astype(np.int32)
    exponents = np.full((1, 1), -7, np.int32)
    product = Product(lr2vq.codebook(table, labels, exponents, 10), lr2vq.repeated(projection, 3))
    whole = lr2vq.codebook(table @ projection, labels, exponents, 10)
    np.testing.assert_allclose(decode(product), decode(whole), rtol=2e-3, atol=1e-3)


def test_turns_of_clustering_and_projection_never_lose_more():
    weight = low_dimensional(128, 64, 8, 4)
    vectors = weight.reshape(-1, 8)
    weights = np.random.default_rng(1).gamma(2, 1, len(vectors)).astype(np.float32)
    directions = lr2vq.spectrum(vectors, weights)[1][:, :3]
    losses = []
    for rounds in (1, 2, 4, 8):
        table, projection, labels = lr2vq.fit(vectors, weights, directions, 32, rounds=rounds, seed=0)
        np.testing.assert_allclose(projection @ projection.T, np.eye(3), atol=1e-5)
        losses.append(float((weights * ((vectors - table[labels] @ projection) ** 2).sum(1)).sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def squared(target: np.ndarray):
    """Return the loss ``||W - target||^2`` and its derivative."""
    return lambda held: (float(((held["w"] - target) ** 2).sum()), {"w": 2 * (held["w"] - target)})


def regression(target: np.ndarray, seed: int = 0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (300, target.shape[1])) * np.geomspace(0.3, 3, target.shape[1])
    inputs += rng.normal(0, 1, (300, 1))
    hessian = inputs.T @ inputs / len(inputs)

    def oracle(held):
        error = held["w"].astype(np.float64) - target
        return float(np.sum((error @ hessian) * error)), {"w": 2 * error @ hessian}

    return oracle, hessian


def test_the_continuous_step_goes_to_the_centroids():
    """Of a plain square, half the derivative is the error: one step takes each entry to the mean of its vectors."""
    target = matrix(16, 8)
    rng = np.random.default_rng(0)
    coded = Codebook(rng.normal(0, 0.1, (2, 1, 4, 2)).astype(np.float16), rng.integers(0, 4, (16, 4)).astype(np.int32))
    moved = moves.shifted(coded, squared(target)({"w": decode(coded)})[1]["w"], np.ones((16, 8), np.float32), 0.5)
    np.testing.assert_array_equal(moved.indices, coded.indices)
    for block in range(2):
        vectors, labels = target[8 * block : 8 * block + 8].reshape(-1, 2), coded.indices[8 * block : 8 * block + 8]
        for entry in range(4):
            mean = vectors[labels.ravel() == entry].mean(0)
            np.testing.assert_allclose(moved.tables[block, 0, entry], mean, rtol=2e-3, atol=1e-4)


def test_the_discrete_step_takes_what_gains_most():
    target = matrix(16, 8)
    rng = np.random.default_rng(0)
    coded = Codebook(
        rng.normal(0, 0.1, (1, 2, 5, 2)).astype(np.float16),
        rng.integers(0, 5, (16, 4)).astype(np.int32),
        (rng.integers(-8, 8, (16, 1)).astype(np.int32),),
    )
    weight = decode(coded)
    slope = 2 * (weight - target)
    found = moves.likely_moves(coded, slope, np.ones((16, 8), np.float32), 0.5, 64)
    # With this length the model is the loss itself: each vector moves to the entry of its block that is nearest.
    scale = 2 ** (coded.scales[0] / 16)
    expected = coded.indices.copy()
    for row, column in np.ndindex(16, 4):
        entries = coded.tables[0, column // 2].astype(np.float64) * scale[row]
        expected[row, column] = ((entries - target[row, 2 * column : 2 * column + 2]) ** 2).sum(1).argmin()
    np.testing.assert_array_equal(moves.apply(coded, found).indices, expected)
    gains = [
        float(((weight - target) ** 2).sum() - ((decode(moves.apply(coded, one)) - target) ** 2).sum())
        for one in (moves.Move(found.places[at : at + 1], found.values[at : at + 1]) for at in range(found.count))
    ]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) > 0


def test_tuning_beats_the_best_table_for_the_codes_as_given():
    target = matrix(32, 16)
    oracle, hessian = regression(target)
    coded = PlainCodebook().code(target, statistics(32, 16), Setting(2, 2))
    tuned = tune({"w": coded}, oracle, PVRecipe(rounds=60, share=0.05))
    assert list(tuned.losses) == sorted(tuned.losses, reverse=True)
    assert tuned.losses[0] == pytest.approx(oracle({"w": decode(coded)})[0])
    assert tuned.losses[-1] == pytest.approx(oracle({"w": decode(tuned.codes["w"])})[0])
    # The best table for fixed indices, by least squares on the whitened problem.
    root = np.linalg.cholesky(hessian)
    places = coded.indices.ravel()
    columns = np.zeros((target.size, 16 * 2))
    for vector, entry in enumerate(places):
        columns[2 * vector, 2 * entry] = columns[2 * vector + 1, 2 * entry + 1] = 1
    whitened = np.einsum("rct,cd->rdt", columns.reshape(32, 16, -1), root).reshape(target.size, -1)
    wanted = (target @ root).ravel()
    best = wanted - whitened @ np.linalg.lstsq(whitened, wanted, rcond=None)[0]
    assert tuned.losses[-1] < float((best**2).sum()) < tuned.losses[0]


def test_codes_are_found_however_short_the_first_step_is():
    """A loss that is near zero where it starts promises a short step: too short for any code to be reached."""
    target = matrix(16, 8)
    coded = PlainCodebook(rounds=1).code(target + matrix(16, 8, seed=7), statistics(16, 8), Setting(2, 2))
    first = squared(target)({"w": decode(coded)})[0]

    def oracle(held):
        loss, slopes = squared(target)(held)
        return loss - 0.99 * first, slopes

    tuned = tune({"w": coded}, oracle, PVRecipe(rounds=1, share=0.1))
    changed = int((tuned.codes["w"].indices != coded.indices).sum())
    assert 0 < changed <= int(0.1 * coded.indices.size)
    tables_only = tune({"w": coded}, oracle, PVRecipe(rounds=1, share=0.0))
    np.testing.assert_array_equal(tables_only.codes["w"].indices, coded.indices)
    assert tuned.losses[-1] < tables_only.losses[-1] < tuned.losses[0]


def test_scales_and_integers_are_tuned_and_outliers_stay():
    rng = np.random.default_rng(0)
    integers = rng.integers(-3, 4, (12, 10)).astype(np.int32)
    exponents = rng.integers(-40, -20, (12, 1)).astype(np.int32)
    truth = Uniform(integers, (exponents, np.zeros((1, 1), np.int32)))
    target = decode(truth)
    start = replace(
        truth, scales=(exponents + rng.integers(-5, 6, (12, 1)).astype(np.int32), truth.scales[1]), outliers=None
    )
    start = replace(start, outliers=Outliers(np.array([5, 77]), np.array([9.0, -9.0], np.float16)))
    start.integers[3, 3] += 2 if start.integers[3, 3] <= 0 else -2
    target.flat[[5, 77]] = 0.0
    tuned = tune({"w": start}, squared(target), PVRecipe(rounds=60))
    held = decode(tuned.codes["w"])
    np.testing.assert_array_equal(held.flat[[5, 77]], [9.0, -9.0])
    gap = np.delete((held - target).ravel(), [5, 77])
    before = np.delete((decode(start) - target).ravel(), [5, 77])
    assert (gap**2).sum() < 0.05 * (before**2).sum()


def test_several_matrices_share_a_loss():
    first, second = matrix(16, 8), matrix(8, 12, seed=5)
    codes = {
        "a": PlainCodebook().code(first, statistics(16, 8), Setting(1, 2)),
        "b": Uniform(np.rint(second * 20).astype(np.int32), (np.full((1, 1), -60, np.int32),)),
    }

    def oracle(held):
        gaps = {"a": held["a"] - first, "b": held["b"] - second}
        return sum(float((gap**2).sum()) for gap in gaps.values()), {name: 2 * gap for name, gap in gaps.items()}

    tuned = tune(codes, oracle)
    assert tuned.losses[-1] < tuned.losses[0]
    integers = tuned.codes["b"].integers
    assert tuned.codes["b"].scales[0] == exponents_of((integers * second).sum() / (integers**2).sum())
    assert tune(codes, oracle).losses == tuned.losses
    for coded in tuned.codes.values():
        np.testing.assert_array_equal(decode(unpack(pack(coded), coded.shape)), decode(coded))


def test_what_cannot_be_tuned_is_refused():
    factor = Uniform(np.ones((4, 2), np.int32), (np.zeros((1, 1), np.int32),))
    other = Uniform(np.ones((2, 4), np.int32), (np.zeros((1, 1), np.int32),))
    with pytest.raises(BadInput, match="tune each factor"):
        tune({"w": Product(factor, other)}, squared(np.zeros((4, 4))))
    with pytest.raises(BadInput, match="tune each factor or part"):
        tune({"w": Sum((factor, factor))}, squared(np.zeros((4, 2))))
    with pytest.raises(BadInput, match="not finite"):
        tune({"w": factor}, lambda held: (float("nan"), {"w": held["w"]}))
    at_rest = tune({"w": factor}, squared(np.ones((4, 2), np.float32)))
    assert at_rest.losses == (0.0,)
    assert pack(at_rest.codes["w"]) == pack(factor)
