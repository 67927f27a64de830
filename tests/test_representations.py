"""Measures of representations: each against an independent computation, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.decomposition import PCA

from isthmus.errors import BadInput
from isthmus.information.geometry import curvature, intrinsic_dimension
from isthmus.information.invariance import dime, info_nce, lidar
from isthmus.information.spectra import anisotropy, coding_rate, effective_rank, matrix_entropy, spectrum

ONE: dict[str, Callable[..., Any]] = {
    "spectrum": spectrum,
    "matrix entropy": matrix_entropy,
    "effective rank": effective_rank,
    "anisotropy": anisotropy,
    "coding rate": coding_rate,
    "curvature": curvature,
    "intrinsic dimension": intrinsic_dimension,
}
TWO: dict[str, Callable[..., Any]] = {"info_nce": info_nce, "dime": dime}


def sample(samples: int = 60, width: int = 20, seed: int = 0) -> np.ndarray:
    """Return representations of uneven spread around a mean that is not zero."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(samples, width)) * np.linspace(3, 0.1, width) + generator.normal(size=width)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (1, 5)])
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_matrix_entropy_is_that_of_the_gram_matrix(shape: tuple[int, int], order: float) -> None:
    values = sample(*shape)
    shares = np.linalg.eigvalsh(values @ values.T / np.trace(values @ values.T)).clip(min=0)
    expected = {
        0.5: 2 * math.log(np.sqrt(shares).sum()),
        1.0: scipy.stats.entropy(shares),
        2.0: -math.log((shares**2).sum()),
        math.inf: -math.log(shares.max()),
    }[order]
    assert matrix_entropy(values, order=order) == pytest.approx(expected, abs=2e-6)


def test_entropy_at_its_ends() -> None:
    assert matrix_entropy(np.outer(np.arange(1, 9), np.ones(5))) == pytest.approx(0, abs=1e-9)
    assert matrix_entropy(np.eye(8, 20)) == pytest.approx(math.log(8))
    assert matrix_entropy(np.zeros((4, 3))) == 0
    assert effective_rank(np.zeros((4, 3))) == 0
    assert effective_rank(np.eye(8, 20)) == pytest.approx(8)


def test_effective_rank_is_of_singular_values() -> None:
    values = sample()
    singular = scipy.linalg.svdvals(values)
    assert effective_rank(values) == pytest.approx(math.exp(scipy.stats.entropy(singular / singular.sum())), rel=1e-9)


def test_anisotropy_is_the_variance_that_the_first_component_explains() -> None:
    values = sample()
    assert anisotropy(values) == pytest.approx(PCA().fit(values).explained_variance_ratio_[0], rel=1e-9)
    assert anisotropy(values + 100) == pytest.approx(anisotropy(values), rel=1e-6), "the mean does not count"


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_coding_rate_is_the_logarithm_of_a_determinant(shape: tuple[int, int]) -> None:
    values = sample(*shape)
    samples, width = shape
    moments = np.eye(samples) + width / (samples * 0.3**2) * values @ values.T
    expected = np.log(np.linalg.eigvalsh(moments)).sum() / 2
    assert coding_rate(values, precision=0.3) == pytest.approx(expected, rel=1e-9)
    assert coding_rate(values, precision=0.1) > coding_rate(values, precision=0.3)


@pytest.mark.parametrize("name", [name for name in ONE if name != "spectrum"])
def test_a_rotation_changes_nothing(name: str) -> None:
    values = sample()
    turn = scipy.stats.ortho_group.rvs(values.shape[1], random_state=0)
    assert ONE[name](values @ turn) == pytest.approx(ONE[name](values), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("name", ["matrix entropy", "effective rank", "anisotropy"])
def test_neither_do_units(name: str, scale: float) -> None:
    assert ONE[name](sample() * scale) == pytest.approx(ONE[name](sample()), rel=1e-9)


def test_curvature_is_the_angle_between_steps() -> None:
    angles = np.arange(12) * 2 * math.pi / 12
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert curvature(circle) == pytest.approx(2 * math.pi / 12)
    assert curvature(np.outer(np.arange(9), [1.0, 2.0])) == pytest.approx(0, abs=1e-6)
    independent = np.random.default_rng(0).normal(size=(3000, 200))
    assert curvature(independent) == pytest.approx(2 * math.pi / 3, abs=0.01)
    assert curvature(circle[:2]) is None, "one step has no angle"
    assert curvature(np.ones((9, 2))) is None, "nothing moves"


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_dimension_of_a_flat_piece_is_found(dimension: int) -> None:
    """Uniform samples of known dimension in a space of fifty, bent where there is room."""
    generator = np.random.default_rng(dimension)
    flat = generator.uniform(size=(3000, dimension))
    if dimension < 5:
        flat = np.concatenate([flat, np.sin(3 * flat)], axis=1)
    turn = scipy.stats.ortho_group.rvs(50, random_state=1)[: flat.shape[1]]
    values = flat @ turn
    found = intrinsic_dimension(values)
    assert found == pytest.approx(dimension, rel=0.1)
    assert intrinsic_dimension(np.concatenate([values, values[:500]])) == pytest.approx(found), "copies do not count"
    assert intrinsic_dimension(values[:9]) is None
    assert intrinsic_dimension(np.ones((50, 4))) is None


def test_info_nce_is_a_cross_entropy_of_cosines() -> None:
    one, other = sample(seed=1), sample(seed=1) + np.random.default_rng(2).normal(size=(60, 20))
    scores = torch.cosine_similarity(torch.from_numpy(one)[:, None], torch.from_numpy(other)[None], dim=-1) / 0.1
    expected = math.log(60) - torch.nn.functional.cross_entropy(scores, torch.arange(60)).item()
    assert info_nce(one, other) == pytest.approx(expected, rel=1e-9)
    assert info_nce(np.eye(60), np.eye(60)) == pytest.approx(math.log(60), abs=0.01)
    assert info_nce(one, sample(seed=5)) < 0.5 * info_nce(one, other)


def test_dime_is_above_zero_where_views_share_something() -> None:
    one = sample(seed=1)
    noisy = one + 0.5 * np.random.default_rng(2).normal(size=one.shape)
    assert dime(one, one) > dime(one, noisy) > 0.02
    assert abs(dime(one, sample(seed=7))) < 0.02
    assert dime(one, noisy) == dime(one, noisy)
    assert dime(one, noisy, seed=1) != dime(one, noisy, seed=2)


def test_dime_is_the_formula_written_out() -> None:
    """With two samples the only other order swaps them, and every draw is one of the two."""
    one, other = np.array([[0.0], [1.0]]), np.array([[0.0], [3.0]])
    # Both Gram matrices have exp(-1) off the diagonal, whichever the order: nothing is learnt.
    assert dime(one, other, draws=3) == pytest.approx(0, abs=1e-12)
    values = np.array([[0.0], [1.0], [5.0]])
    distances = (values - values.T) ** 2
    gram = np.exp(-distances / np.median(distances[~np.eye(3, dtype=bool)]))

    def entropy(order: list[int]) -> float:
        both = np.linalg.eigvalsh(gram * gram[np.ix_(order, order)] / 3)
        return float(scipy.stats.entropy(both))

    generator = np.random.default_rng(4)
    orders = [list(generator.permutation(3)) for _ in range(5)]
    expected = np.mean([entropy(order) for order in orders]) - entropy([0, 1, 2])
    assert dime(values, values, draws=5, seed=4) == pytest.approx(expected, abs=1e-9)


def test_lidar_is_a_generalized_eigenvalue_problem() -> None:
    generator = np.random.default_rng(0)
    stack = sample(40, 6)[:, None] + generator.normal(size=(40, 5, 6)) * np.linspace(0.1, 2, 6)
    means = stack.mean(1)
    within = np.mean([np.cov(views.T, bias=True) for views in stack], axis=0)
    within += 1e-4 * np.trace(within) / 6 * np.eye(6)
    found = scipy.linalg.eigh(np.cov(means.T), within, eigvals_only=True)
    assert lidar(stack) == pytest.approx(math.exp(scipy.stats.entropy(found)), rel=1e-9)


def test_lidar_counts_the_directions_that_tell_samples_apart() -> None:
    generator = np.random.default_rng(0)
    centres = np.zeros((400, 1, 10))
    centres[..., :4] = generator.normal(size=(400, 1, 4))
    assert lidar(centres + 0.01 * generator.normal(size=(400, 6, 10))) == pytest.approx(4, abs=0.1)
    assert lidar(np.repeat(np.ones((1, 1, 3)), 5, axis=0) + generator.normal(size=(1, 4, 3))) == 0


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones(5), r"of shape \(5,\)"),
        (np.ones((4, 0)), r"of shape \(4, 0\)"),
        ([["a", "b"]], "not numbers"),
        (np.array([[1.0, 2.0], [np.nan, 0.0], [1.0, 1.0]]), "nan at sample 1, column 0"),
        (np.array([[1.0, np.inf], [1.0, 1.0]]), "inf at sample 0, column 1"),
        (np.ones((0, 3)), "0 samples"),
    ],
)
def test_bad_input(name: str, values: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        ONE[name](values)


@pytest.mark.parametrize("name", TWO)
def test_bad_views(name: str) -> None:
    with pytest.raises(BadInput, match="same order"):
        TWO[name](np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(BadInput, match="second view: nan"):
        TWO[name](np.ones((4, 3)), np.full((4, 3), np.nan))


def test_bad_settings() -> None:
    for call, words in (
        (lambda: matrix_entropy(sample(), order=0), "order 0"),
        (lambda: coding_rate(sample(), precision=0), "precision 0"),
        (lambda: info_nce(sample(), sample(), temperature=0), "temperature 0"),
        (lambda: dime(sample(), sample(), draws=0), "draws 0"),
        (lambda: lidar(np.ones((4, 1, 3))), "two or more of both"),
        (lambda: lidar(np.full((4, 2, 3), np.nan)), "not a finite number"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
