"""Coders of bits: what holds for all of them, then the formula of each against brute force or another library."""

from __future__ import annotations

import itertools
import statistics as plain
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from isthmus.bottlenecks.bits.bitnet import BitNet, median_ternary
from isthmus.bottlenecks.bits.comq import Comq, rescaled, sweep, visits
from isthmus.bottlenecks.bits.fake_quantize import TERNARY, fake_quantize, paretoq_quantizer
from isthmus.bottlenecks.bits.finequant import FineQuant, group_size
from isthmus.bottlenecks.bits.floating import Fp6, fp6_codes, fp6_values, nearest_fp6, pack_4plus2, unpack_4plus2
from isthmus.bottlenecks.bits.gptq import Gptq, round_with_feedback
from isthmus.bottlenecks.bits.grid import clipping, covering, fitted, peaks, rounded, top_of
from isthmus.bottlenecks.bits.kmeans import kmeans, spread_centres
from isthmus.bottlenecks.bits.llm_int8 import OutlierSplit
from isthmus.bottlenecks.bits.paretoq import WIDTHS, ParetoQ, first_exponents
from isthmus.bottlenecks.bits.squeezellm import SqueezeLlm
from isthmus.bottlenecks.coder import Coder, MatrixStatistics, Setting
from isthmus.bottlenecks.feedback import damped, feedback_factor
from isthmus.errors import BadInput
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import decode, exponents_of, scale_of

CODERS: list[Coder] = [
    FineQuant(),
    Gptq(),
    Gptq(fit=False),
    Comq(),
    Comq(order="cyclic"),
    OutlierSplit(),
    SqueezeLlm(),
    SqueezeLlm(rows=1, outliers=0.02, sensitive=0.01),
    Fp6(),
    ParetoQ(),
    ParetoQ(fit=True),
    BitNet(),
    BitNet(mean=True),
]
GROUPED = [FineQuant(), Gptq(), OutlierSplit(), Fp6(), ParetoQ()]
every = pytest.mark.parametrize("coder", CODERS, ids=str)


def about(rows: int, columns: int, *, linear: bool = True, seed: int = 0) -> MatrixStatistics:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (4 * columns + 8, columns)) @ rng.normal(0, 1, (columns, columns))
    moments = (inputs.T @ inputs / len(inputs)).astype(np.float32) if linear else None
    return MatrixStatistics(Sensitivity(rng.gamma(2, 1, rows), rng.gamma(2, 1, columns)), moments)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)


def output_error(error: np.ndarray, moments: np.ndarray) -> float:
    return float(np.einsum("ij,jk,ik->", error.astype(np.float64), moments.astype(np.float64), error))


def cost(coder: Coder, error: np.ndarray, known: MatrixStatistics) -> float:
    """What the coder itself sets out to keep low."""
    if "sensitivity" in coder.needs:
        return float(known.sensitivity.rows @ error.astype(np.float64) ** 2 @ known.sensitivity.columns)
    if isinstance(coder, Gptq | Comq):
        return output_error(error, known.moments)
    return float(np.square(error).sum())


@every
def test_it_is_a_coder_of_bits(coder: Coder) -> None:
    assert coder.family == "bits"
    assert coder.needs <= {"moments", "sensitivity"}
    bits = [setting.bits for setting in coder.settings((8, 8))]
    assert bits == sorted(bits, reverse=True)


@pytest.mark.parametrize("coder", [one for one in CODERS if len(one.settings((48, 64))) > 1], ids=str)
def test_errors_fall_as_bits_rise(coder: Coder) -> None:
    weight, known = normal(48, 64), about(48, 64)
    errors = [
        cost(coder, decode(coder.code(weight, known, setting)) - weight, known) for setting in coder.settings((48, 64))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.25 * errors[-1]


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "embedding"])
@every
def test_packed_and_unpacked_it_decodes_alike_and_again(coder: Coder, linear: bool) -> None:
    weight, known = normal(33, 50), about(33, 50, linear=linear)
    for setting in coder.settings(weight.shape):
        coded = coder.code(weight, known, setting, seed=1)
        data = pack(coded)
        np.testing.assert_array_equal(decode(unpack(data, weight.shape)), decode(coded))
        assert pack(coder.code(weight, known, setting, seed=1)) == data
    np.testing.assert_array_equal(weight, normal(33, 50))


@every
def test_a_weight_that_is_no_number_is_refused_by_its_place(coder: Coder) -> None:
    weight = normal(5, 6)
    weight[2, 3] = np.nan
    with pytest.raises(BadInput, match="row 2, column 3"):
        coder.code(weight, about(5, 6), coder.settings((5, 6))[0])


@every
def test_bits_that_it_does_not_have_are_refused(coder: Coder) -> None:
    with pytest.raises(BadInput, match="bits"):
        coder.code(normal(4, 4), about(4, 4), Setting(0.5))


ODD = {
    "zero": np.zeros((6, 8), dtype=np.float32),
    "constant rows": np.repeat(np.array([[0.3], [-2e-3], [0], [7]], dtype=np.float32), 9, axis=1),
    "one column": normal(7, 1),
    "one row": normal(1, 9),
    "one weight": np.array([[-0.7]], dtype=np.float32),
    "one large": np.eye(5, 70, dtype=np.float32),
}


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "embedding"])
@pytest.mark.parametrize("name", ODD)
@every
def test_odd_matrices_are_coded(coder: Coder, name: str, linear: bool) -> None:
    weight = ODD[name]
    known = about(*weight.shape, linear=linear)
    for setting in coder.settings(weight.shape):
        coded = coder.code(weight, known, setting)
        decoded = decode(unpack(pack(coded), weight.shape))
        np.testing.assert_array_equal(decoded, decode(coded))
        assert np.isfinite(decoded).all()
        if name == "zero":
            assert np.abs(decoded).max() < 1e-12
    finest = decode(coder.code(weight, known, coder.settings(weight.shape)[0]))
    if name == "constant rows" and not isinstance(coder, BitNet):  # it has one scale for all rows
        assert (np.abs(finest - weight) <= 0.025 * np.abs(weight) + 1e-12).all()


@pytest.mark.parametrize("coder", GROUPED, ids=str)
def test_groups_need_not_fill_the_columns(coder: Coder) -> None:
    weight, known = normal(6, 13), about(6, 13, linear=False)  # no feedback from the large group to the next
    weight[:, 5:10] *= 100
    setting = replace(coder.settings(weight.shape)[0], group=5)
    coded = coder.code(weight, known, setting)
    assert coded.scales[0].shape == (6, 3)
    decoded = decode(unpack(pack(coded), weight.shape))
    # Each group has its own scale, so the large one does no harm to the others.
    small = np.r_[0:5, 10:13]
    assert np.abs(decoded - weight)[:, small].max() < np.abs(weight[:, small]).max() / 7


@pytest.mark.parametrize("coder", [Comq(), SqueezeLlm(), BitNet()], ids=str)
def test_groups_are_refused_by_those_without(coder: Coder) -> None:
    with pytest.raises(BadInput, match="group"):
        coder.code(normal(4, 8), about(4, 8), replace(coder.settings((4, 8))[0], group=4))


@pytest.mark.parametrize("coder", [Gptq(), Comq(), OutlierSplit()], ids=str)
def test_moments_of_another_matrix_are_refused(coder: Coder) -> None:
    with pytest.raises(BadInput, match=r"moments of shape \[9, 9\] for 8 columns"):
        coder.code(normal(4, 8), about(4, 9), Setting(4))
    known = about(4, 8)
    known.moments[1, 1] = np.inf
    with pytest.raises(BadInput, match="finite"):
        coder.code(normal(4, 8), known, Setting(4))


def test_moments_that_are_none_are_refused() -> None:
    known = replace(about(4, 3), moments=np.diag([1.0, -1, 1]).astype(np.float32))
    with pytest.raises(BadInput, match="not positive definite"):
        Gptq().code(normal(4, 3), known, Setting(4))


def test_moments_of_zero_are_taken() -> None:
    weight, known = normal(4, 3), replace(about(4, 3), moments=np.zeros((3, 3), dtype=np.float32))
    for coder in (Gptq(), Comq(), OutlierSplit()):  # nothing to feed back: rounding to the nearest is left
        assert np.abs(decode(coder.code(weight, known, Setting(8))) - weight).max() < 0.01 * np.abs(weight).max()


# Grids


@pytest.mark.parametrize(("bits", "top"), [(1.58, 1), (2, 1), (3, 3), (4, 7), (5, 15), (8, 127)])
def test_the_largest_integer(bits: float, top: int) -> None:
    assert top_of(Setting(bits)) == top


@pytest.mark.parametrize("top", [1, 3, 7, 127])
def test_nothing_clips_and_scales_are_the_nearest(top: int) -> None:
    weight = normal(200, 11)
    exponents = covering(peaks(weight, 1), top)
    scales = scale_of(exponents)
    np.testing.assert_array_equal(rounded(weight, exponents, 10**6), rounded(weight, exponents, top))
    ratio = scales[:, 0] * top / np.abs(weight).max(1)
    assert ratio.max() < 2 ** (1 / 16)
    assert ratio.min() > 2 ** (-1 / 32) - 1e-6


def test_weights_beyond_all_scales_are_refused() -> None:
    with pytest.raises(BadInput, match="too large for a scale"):
        FineQuant().code(np.full((2, 2), 1e30, dtype=np.float32), about(2, 2), Setting(4))


def test_fitted_scales_have_the_least_error_of_those_tried() -> None:
    weight = np.random.default_rng(0).standard_t(3, (4, 10)).astype(np.float32)
    first = covering(peaks(weight, 2), 3)
    found = fitted(weight, first, clipping(3), offsets=range(0, -9, -1))
    for row, group in itertools.product(range(4), range(2)):
        own = weight[row, 5 * group : 5 * group + 5]
        errors = [
            np.square(own - np.clip(np.rint(own / s), -3, 3) * s).sum()
            for s in scale_of(first[row, group] - np.arange(9))
        ]
        assert first[row, group] - found[row, group] == np.argmin(errors)


# FineQuant


def test_groups_are_halved_while_ranges_shrink() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(-1, 1, (50, 256)).astype(np.float32)
    assert group_size(even) == 256
    spiked = even.copy()
    spiked[:, 17] = 100  # half of the groups are rid of it at each halving
    assert group_size(spiked) == 32
    assert group_size(spiked, least=100) == 128
    uneven = even * np.repeat([1, 10], 128)  # one halving helps, the next does not
    assert group_size(uneven.astype(np.float32)) == 128


def test_finequant_rounds_each_group_to_the_nearest() -> None:
    weight = normal(3, 10)
    decoded = decode(FineQuant().code(weight, about(3, 10), Setting(4, group=4)))
    for row, part in itertools.product(range(3), (slice(0, 4), slice(4, 8), slice(8, 10))):
        own = weight[row, part].astype(np.float64)
        scale = 2 ** (round(16 * np.log2(np.abs(own).max() / 7)) / 16)
        expected = [scale * min(range(-7, 8), key=lambda level, w=w, s=scale: abs(w - s * level)) for w in own]
        np.testing.assert_allclose(decoded[row, part], expected, rtol=1e-6)


# GPTQ


def brain_quantizer(
    weight: np.ndarray, moments: np.ndarray, damping: float, scales: np.ndarray, top: int
) -> np.ndarray:
    """Optimal brain quantization in a fixed order: the Hessian of the columns left is inverted at every step."""
    hessian = moments.astype(np.float64) + damping * np.diag(moments).mean() * np.eye(len(moments))
    integers = np.zeros(weight.shape, dtype=int)
    for row, own in enumerate(weight.astype(np.float64)):
        for column in range(len(own)):
            inverse = np.linalg.inv(hessian[column:, column:])
            level = np.clip(np.rint(own[column] / scales[row]), -top, top)
            own[column:] -= (own[column] - level * scales[row]) / inverse[0, 0] * inverse[0]
            integers[row, column] = level
    return integers


@pytest.mark.parametrize("width", [1, 2, 64])
def test_gptq_is_optimal_brain_quantization_in_order(width: int) -> None:
    weight, moments = normal(4, 6, seed=3), about(4, 6, seed=2).moments
    exponents = covering(peaks(weight, 1), 3)
    expected = brain_quantizer(weight, moments, 0.01, scale_of(exponents)[:, 0].astype(np.float64), 3)
    factor = feedback_factor(damped(moments.astype(np.float64), 0.01))
    found, _ = round_with_feedback(weight, factor.astype(np.float32), exponents, 3, width=width)
    np.testing.assert_array_equal(found, expected)
    assert (found != rounded(weight, exponents, 3)).any()
    np.testing.assert_array_equal(
        Gptq(fit=False).code(weight, MatrixStatistics(about(4, 6).sensitivity, moments), Setting(3)).integers, expected
    )


def test_the_factor_is_that_of_the_inverse() -> None:
    moments = about(1, 7).moments.astype(np.float64)
    factor = feedback_factor(damped(moments, 0.1))
    hessian = moments + 0.1 * np.diag(moments).mean() * np.eye(7)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(hessian), rtol=1e-8)
    np.testing.assert_array_equal(factor, np.triu(factor))


def test_groups_of_gptq_take_their_scales_after_feedback() -> None:
    weight, known = normal(5, 8, seed=4), about(5, 8, seed=5)
    coded = Gptq(fit=False).code(weight, known, Setting(3, group=4))
    first, moments = coded.scales[0][:, 0], known.moments.astype(np.float64)
    integers = brain_quantizer(weight, moments, 0.01, scale_of(first).astype(np.float64), 3)[:, :4]
    np.testing.assert_array_equal(coded.integers[:, :4], integers)
    # The best that the columns left can do for an error of those done, in closed form.
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(8)
    error = weight[:, :4] - scale_of(first)[:, None] * integers
    moved = weight[:, 4:] + np.linalg.solve(damped[4:, 4:], damped[4:, :4] @ error.T).T
    np.testing.assert_array_equal(coded.scales[0][:, 1:], covering(peaks(moved.astype(np.float32), 1), 3))


# COMQ


@pytest.mark.parametrize("order", ["greedy", "cyclic"])
def test_each_update_of_comq_is_the_best_of_all_integers(order: str) -> None:
    weight, moments = normal(5, 9), about(5, 9).moments
    exponents = covering(peaks(weight, 1), 3)[:, 0]
    scales = scale_of(exponents).astype(np.float64)
    start = (weight / scale_of(exponents)[:, None]).astype(np.float32)
    levels = start.astype(np.float64)
    for row in range(5):
        turn = np.argsort(-np.abs(weight[row]) * np.sqrt(np.diag(moments))) if order == "greedy" else range(9)
        for column in turn:
            trials = np.repeat(levels[row][None], 7, axis=0)
            trials[:, column] = np.arange(-3, 4)
            errors = [output_error((weight[row] - scales[row] * one)[None], moments) for one in trials]
            levels[row] = trials[np.argmin(errors)]
    for width in (0, 4):
        found = sweep(weight, moments, exponents, start, visits(weight, moments, order), 3, width)
        np.testing.assert_array_equal(found, levels)


@pytest.mark.parametrize("fields", [{"order": "random"}, {"sweeps": 0}], ids=str)
def test_orders_that_are_none_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="choose greedy or cyclic"):
        Comq(**fields)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("order", ["greedy", "cyclic"])
def test_the_error_never_rises_from_sweep_to_sweep(order: str, bits: int) -> None:
    weight, known = normal(40, 60), about(40, 60)
    errors = []
    for sweeps in range(1, 7):
        error = decode(Comq(order=order, sweeps=sweeps).code(weight, known, Setting(bits))) - weight
        errors.append([output_error(row[None], known.moments) for row in error])
    steps = np.diff(np.array(errors), axis=0)
    assert steps.max() <= 1e-6 * np.max(errors)  # what float32 adds where nothing moves
    assert steps[0].min() < 0


def test_scales_follow_the_least_squares() -> None:
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(30, 8)), rng.normal(size=8)
    levels = np.rint(2 * weight)
    (best,), *_ = np.linalg.lstsq((inputs @ levels)[:, None], inputs @ weight, rcond=None)
    felt = levels @ (inputs.T @ inputs)
    (found,) = rescaled(np.array([50]), np.array([felt @ weight]), np.array([felt @ levels]))
    assert found == round(16 * np.log2(best))
    assert rescaled(np.array([50]), np.array([0.0]), np.array([0.0])) == [50]


@pytest.mark.parametrize("bits", [3, 2])
def test_moments_make_for_better_outputs_than_rounding(bits: int) -> None:
    weight, known = normal(60, 80), about(60, 80)
    blind = replace(known, moments=None)
    for coder in (Gptq(), Comq()):
        errors = [
            output_error(decode(coder.code(weight, one, Setting(bits))) - weight, known.moments)
            for one in (known, blind)
        ]
        assert errors[0] < errors[1]


# LLM.int8


def test_columns_of_outliers_are_kept_in_halves() -> None:
    weight, known = normal(20, 300), about(20, 300)
    size = np.sqrt(np.median(np.diag(known.moments)))
    for column, times in ((3, 50), (70, 30), (200, 20), (299, 10)):
        known.moments[column, column] = (times * size) ** 2
    weight[:, 70] *= 40  # must not widen the scales of the rest
    coded = OutlierSplit().code(weight, known, Setting(8))
    decoded = decode(unpack(pack(coded), weight.shape))
    kept = [3, 70, 200]  # one in a hundred at most, the strongest
    np.testing.assert_array_equal(decoded[:, kept], weight[:, kept].astype(np.float16).astype(np.float32))
    assert len(coded.outliers.places) == 3 * 20
    rest = np.delete(np.arange(300), kept)
    steps = np.abs(weight[:, rest]).max(1) / 127
    assert (np.abs(decoded - weight)[:, rest].max(1) <= 0.5 * steps * 2 ** (1 / 16)).all()
    assert (np.abs(decoded - weight)[:, rest].max(1) > 0.4 * steps).all()


# SqueezeLLM


def test_kmeans_is_that_of_another_library() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(6, 40)).astype(np.float32), rng.gamma(1, 1, (6, 40)).astype(np.float32)
    start = spread_centres(values, weights, 5)
    found = kmeans(values, weights, start, 100)
    for own, weight, first, centres in zip(values, weights, start, found, strict=True):
        theirs = KMeans(5, init=first[:, None], n_init=1, max_iter=100, tol=0, algorithm="lloyd")
        theirs.fit(own[:, None].astype(np.float64), sample_weight=weight)
        np.testing.assert_allclose(centres, theirs.cluster_centers_[:, 0], rtol=1e-6)


def test_levels_of_a_row_do_not_depend_on_the_factor_of_rows() -> None:
    weight, known = normal(7, 40), about(7, 40)
    coder = SqueezeLlm(rows=1, sensitive=0)
    other = replace(known, sensitivity=Sensitivity(np.arange(1.0, 8), known.sensitivity.columns))
    flat = replace(known, sensitivity=Sensitivity(known.sensitivity.rows, np.ones(40)))
    codes = [coder.code(weight, one, Setting(3)) for one in (known, other, flat)]
    np.testing.assert_array_equal(codes[0].tables, codes[1].tables)
    assert (codes[0].tables != codes[2].tables).any()


def test_levels_are_the_weighted_means_of_their_weights() -> None:
    weight, known = normal(6, 60), about(6, 60)
    coded = SqueezeLlm(rows=3, outliers=0.02, sensitive=0.01).code(weight, known, Setting(3))
    assert coded.tables.shape == (2, 1, 8, 1)
    importance = np.outer(known.sensitivity.rows, known.sensitivity.columns)
    apart = np.zeros(weight.shape, dtype=bool)
    apart.flat[coded.outliers.places] = True
    scales = scale_of(coded.scales[0])
    for block, entry in itertools.product(range(2), range(8)):
        own = (coded.indices == entry) & ~apart
        own[3 * (1 - block) : 3 * (1 - block) + 3] = False
        share = (importance * scales**2)[own]
        mean = (share * (weight / scales)[own]).sum() / share.sum()
        assert coded.tables[block, 0, entry, 0] == pytest.approx(mean, rel=1e-3)


def test_the_largest_and_the_most_sensitive_are_kept_in_halves() -> None:
    weight, known = normal(50, 40), about(50, 40)
    coded = SqueezeLlm().code(weight, known, Setting(3))
    largest = np.argsort(np.abs(weight).ravel())[-8:]  # 0.4 % of 2,000
    importance = np.outer(known.sensitivity.rows, known.sensitivity.columns).ravel()
    np.testing.assert_array_equal(coded.outliers.places, np.union1d(largest, [importance.argmax()]))
    np.testing.assert_array_equal(
        decode(coded).flat[coded.outliers.places], weight.flat[coded.outliers.places].astype(np.float16)
    )


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_tables_take_a_small_share_of_the_bytes(bits: int) -> None:
    weight = normal(120, 96)
    coded = SqueezeLlm().code(weight, about(120, 96), Setting(bits))
    assert 0.025 < coded.tables.nbytes / (weight.size * bits / 8) < 0.06


# Six-bit floating point


def test_six_bit_values_are_those_of_another_library() -> None:
    theirs = np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e3m2fn).astype(np.float32)
    np.testing.assert_array_equal(fp6_values(), theirs)
    numbers = np.concatenate([np.linspace(-29, 29, 9281), np.linspace(-1, 1, 2049)]).astype(np.float32)
    expected = numbers.astype(ml_dtypes.float6_e3m2fn)
    np.testing.assert_array_equal(nearest_fp6(numbers), expected.astype(np.float32))
    np.testing.assert_array_equal(fp6_codes(nearest_fp6(numbers)) & 31, expected.view(np.uint8) & 31)


def test_a_number_that_six_bits_cannot_say_has_no_code() -> None:
    with pytest.raises(BadInput, match="nearest_fp6"):
        fp6_codes(np.array([0.3], dtype=np.float32))


def test_fp6_is_the_nearest_value_times_the_scale_of_the_row() -> None:
    weight = normal(4, 30)
    coded = Fp6().code(weight, about(4, 30), Setting(6))
    for row, decoded in zip(weight, decode(coded), strict=True):
        scale = scale_of(exponents_of(np.abs(row).max() / 28))
        levels = fp6_values() * scale
        np.testing.assert_array_equal(decoded, levels[np.abs(row[:, None] - levels).argmin(1)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 61, 384])
def test_four_and_two_bits_hold_six(count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 64, count).astype(np.uint8)
    data = pack_4plus2(codes)
    np.testing.assert_array_equal(unpack_4plus2(data, count), codes)
    if count % 4 == 0:
        assert len(data) == 2 * count * 6 // 16
        fours = [code >> 2 for code in codes.tolist()]
        assert data[: count // 2] == bytes(low + 16 * high for low, high in zip(fours[::2], fours[1::2], strict=True))
    with pytest.raises(BadInput, match="six-bit codes"):
        unpack_4plus2(data + b"\0", count)


def test_codes_of_a_matrix_take_six_bits_each() -> None:
    weight = normal(16, 32)
    coded = Fp6().code(weight, about(16, 32), Setting(6))
    data = pack_4plus2(coded.indices)
    assert len(data) == weight.astype(np.float16).nbytes * 6 // 16
    again = replace(coded, indices=unpack_4plus2(data, weight.size).reshape(weight.shape).astype(np.int32))
    np.testing.assert_array_equal(decode(again), decode(coded))
    with pytest.raises(BadInput, match="code 64 does not fit"):
        pack_4plus2(np.array([64], dtype=np.uint8))


# ParetoQ


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_fake_quantization_is_what_the_code_decodes_to(bits: float, fit: bool) -> None:
    weight = normal(20, 33)
    weight[3] = 0
    weight[4, 5] = 0
    coded = ParetoQ(fit=fit).code(weight, about(20, 33), Setting(bits))
    quantizer = paretoq_quantizer(bits)
    found = fake_quantize(torch.from_numpy(weight), torch.from_numpy(scale_of(coded.scales[0])), quantizer)
    np.testing.assert_array_equal(found.numpy(), decode(coded))
    wide = fake_quantize(torch.linspace(-30, 30, 999)[None], torch.ones(1, 1), quantizer)
    assert len(wide.unique()) == {4: 16, 3: 8, 2: 4, 1.58: 3, 1: 2}[bits]


@pytest.mark.parametrize(("bits", "levels"), [(2, 4), (1.58, 3)])
def test_stretched_levels_are_those_of_the_paper(bits: float, levels: int) -> None:
    """The paper's scale takes in the largest magnitude; its levels are the middles of as many equal parts of that."""
    edge = 0.75
    weight = np.linspace(-edge, edge, 61, dtype=np.float32)[None] + np.float32(1e-4)
    step = torch.tensor([[2 * edge / levels / (2 if bits == 2 else 1)]])  # odd integers are two scales apart
    found = fake_quantize(torch.from_numpy(weight), step, paretoq_quantizer(bits)).numpy()
    middles = edge * (2 * np.arange(levels) + 1 - levels) / levels
    nearest = middles[np.abs(weight[0][:, None] - middles).argmin(1)]
    np.testing.assert_allclose(found[0], nearest, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_start_where_the_paper_starts(bits: float) -> None:
    weight = normal(8, 40)
    mean, largest = np.abs(weight).mean(1), np.abs(weight).max(1)
    expected = {4: largest / 7, 3: largest / 3, 2: largest / 2, 1.58: largest / 1.5, 1: mean}[bits]
    ratio = scale_of(first_exponents(weight, bits, 1))[:, 0] / expected
    assert ratio.max() < 2 ** (1 / 16)
    assert ratio.min() > 2 ** (-1 / 32) - 1e-6


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_are_straight_through_and_of_the_step_size(bits: float) -> None:
    """Against autograd through the quantizer with its rounding error held constant."""
    torch.manual_seed(0)
    weight = (torch.randn(5, 40, dtype=torch.float64) * 2).requires_grad_()
    scale = torch.tensor([[0.5], [1.0], [0.2], [3.0], [0.7]], dtype=torch.float64, requires_grad=True)
    slope = torch.randn(5, 40, dtype=torch.float64)
    low, high = {4: (-8, 7), 3: (-4, 3), 2: (-4, 4), 1.58: (-1.5, 1.5), 1: (-1, 1)}[bits]
    (fake_quantize(weight, scale, paretoq_quantizer(bits)) * slope).sum().backward()
    found = weight.grad.clone(), scale.grad.clone()
    weight.grad = scale.grad = None
    if bits == 1:
        by_scale = (torch.where(weight < 0, -1.0, 1.0) * slope).sum(1, keepdim=True).detach()
        by_weight = slope * (weight.abs() <= scale)
    else:
        scaled = (weight / scale).clamp(low, high)
        level = (fake_quantize(weight, scale, paretoq_quantizer(bits)) / scale).detach()
        ((scaled + (level - scaled).detach()) * scale * slope).sum().backward()
        by_weight, by_scale = weight.grad, scale.grad
    largest = {2: 3, 1.58: 1, 1: 1}.get(bits, high)
    torch.testing.assert_close(found[0], by_weight.detach())
    torch.testing.assert_close(found[1], by_scale / (40 * largest) ** 0.5)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_gradient_of_the_scale_is_a_difference_where_weights_are_clipped(bits: float) -> None:
    weight = torch.tensor([[30.0, -40.0, 25.0]], dtype=torch.float64)
    scale = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([[0.3, -1.1, 2.0]], dtype=torch.float64)
    quantizer = paretoq_quantizer(bits)
    (fake_quantize(weight, scale, quantizer) * slope).sum().backward()
    ends = [(fake_quantize(weight, scale.detach() + step, quantizer) * slope).sum() for step in (1e-3, -1e-3)]
    largest = {4: 7, 3: 3, 2: 3}.get(bits, 1)
    assert scale.grad.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-3 / (3 * largest) ** 0.5)


def test_weights_beyond_the_ends_move_where_they_are_free() -> None:
    weight = torch.tensor([[0.2, -1.4, 1.6, -9.0]], dtype=torch.float64, requires_grad=True)
    for quantizer, expected in ((TERNARY, [1.0] * 4), (paretoq_quantizer(1.58), [1.0, 1.0, 0.0, 0.0])):
        (gradient,) = torch.autograd.grad(fake_quantize(weight, torch.ones(1, 1), quantizer).sum(), weight)
        assert gradient[0].tolist() == expected


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"scales of shape \[4, 1\] for weights of \[3, 4\]"):
        fake_quantize(torch.ones(3, 4), torch.ones(4, 1), TERNARY)
    with pytest.raises(BadInput, match=r"scales of shape \[1\]"):
        fake_quantize(torch.ones(3, 4), torch.ones(1), TERNARY)
    with pytest.raises(BadInput, match="5 bits"):
        paretoq_quantizer(5)


# BitNet


@pytest.mark.parametrize("mean", [False, True])
def test_ternary_weights_are_scaled_by_the_median_or_the_mean(mean: bool) -> None:
    weight = normal(6, 7)
    magnitudes = np.abs(weight).ravel().tolist()
    usual = plain.fmean(magnitudes) if mean else plain.median(magnitudes)
    scale = 2 ** (round(16 * np.log2(usual)) / 16)
    expected = [[scale * max(-1, min(1, round(w / scale))) for w in row] for row in weight.tolist()]
    np.testing.assert_allclose(decode(median_ternary(weight, mean=mean)), expected, rtol=1e-6)


def test_a_median_of_zero_leaves_something() -> None:
    weight = np.zeros((4, 4), dtype=np.float32)
    weight[0] = [0.5, -0.5, 0.5, 0.5]
    assert np.abs(decode(median_ternary(weight))[0]).min() > 0.1


def test_ternary_weights_pack_into_less_than_two_bits() -> None:
    weight = normal(128, 128)
    coded = BitNet().code(weight, about(128, 128), Setting(1.58))
    assert 8 * len(pack(coded)) / weight.size < 1.7
