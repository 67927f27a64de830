"""Estimators of information, each against an independent computation or another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.spatial.distance import cdist
from scipy.special import digamma
from scipy.stats import multivariate_normal, norm, rankdata
from scipy.stats import t as student
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from sklearn.metrics import mutual_info_score

from isthmus.information import objectives
from isthmus.information.binning import AdaptiveBins
from isthmus.information.bounds import influence
from isthmus.information.canonical import canonical_ratio
from isthmus.information.compression import Compressed, principal_components
from isthmus.information.critic import Critic, Recipe, radii
from isthmus.information.determinism import determined
from isthmus.information.discrete import plug_in_parts
from isthmus.information.gaussian import gaussian_information
from isthmus.information.infonce import InfoNce
from isthmus.information.kernels import silverman
from isthmus.information.ksg import ksg_parts
from isthmus.information.marginals import gaussianised, spread_ties, standardised
from isthmus.information.neighbours import counts_within, kth_distances
from isthmus.information.noisy import mixture_logs
from isthmus.information.nwj import Nwj
from isthmus.information.result import Side
from isthmus.information.ross import ross_parts
from isthmus.information.scores import scored
from isthmus.information.smile import Smile
from isthmus.information.spectra import gram_entropy
from isthmus.information.training.cauchy_schwarz import gram_information


def pair(rho: float, dims: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, dims))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)


def test_ranks_become_normal_scores() -> None:
    x = np.random.default_rng(0).exponential(size=(50, 2))
    expected = norm.ppf((rankdata(x[:, 1]) - 0.5) / 50)
    np.testing.assert_allclose(gaussianised(x)[:, 1], expected)
    np.testing.assert_allclose(standardised(np.column_stack([x[:, 0], np.ones(50)]))[:, 1], 0)


def test_ties_are_broken_by_less_than_any_gap() -> None:
    x = np.array([[0.0], [1.0], [1.0], [1.5], [1.5]])
    found = spread_ties(x, np.random.default_rng(0))
    assert len(np.unique(found)) == 5
    assert np.abs(found - x).max() < 0.001
    free = np.arange(5.0)[:, None]
    np.testing.assert_array_equal(spread_ties(free, np.random.default_rng(0)), free)


@pytest.mark.parametrize("dims", [1, 3, 14])
def test_neighbours_are_those_of_brute_force(dims: int) -> None:
    points = np.random.default_rng(0).normal(size=(120, dims))
    every = cdist(points, points, "chebyshev")
    radii_of = np.sort(every, 1)[:, 4]
    np.testing.assert_allclose(kth_distances(points, 4), radii_of)
    np.testing.assert_array_equal(counts_within(points, radii_of), (every < radii_of[:, None]).sum(1) - 1)


@pytest.mark.parametrize("dims", [1, 2, 7])
def test_ksg_is_its_formula(dims: int) -> None:
    x, y = pair(0.7, dims, 150)
    apart = [cdist(side, side, "chebyshev") for side in (x, y)]
    joint = np.maximum(*apart)
    radius = np.sort(joint, 1)[:, 3]
    counts = [(side < radius[:, None]).sum(1) - 1 for side in apart]
    expected = digamma(3) + digamma(150) - digamma(counts[0] + 1) - digamma(counts[1] + 1)
    np.testing.assert_allclose(ksg_parts(x, y, 3), expected)


def test_ksg_and_ross_are_those_of_scikit_learn() -> None:
    x, y = pair(0.7, 1, 500)
    label = (y[:, 0] > 0.3).astype(int) + (y[:, 0] > 1)
    ours = ksg_parts(x / x.std(), y / y.std(), 3).mean()
    assert ours == pytest.approx(mutual_info_regression(x, y[:, 0], n_neighbors=3, random_state=0)[0], abs=1e-6)
    theirs = mutual_info_classif(x, label, n_neighbors=3, random_state=0)[0]
    assert ross_parts(x / x.std(), label, 3).mean() == pytest.approx(theirs, abs=1e-6)


def test_labels_that_occur_once_are_left_out() -> None:
    x = np.random.default_rng(0).normal(size=(41, 1))
    label = np.r_[np.repeat([0, 1], 20), 2]
    np.testing.assert_allclose(ross_parts(x, label, 3), ross_parts(x[:-1], label[:-1], 3))


@pytest.mark.parametrize("dims", [1, 3, 20])
def test_the_closed_form_has_no_bias_left(dims: int) -> None:
    found = [gaussian_information(*pair(0.5, dims, 100, seed))[0] for seed in range(300)]
    truth = -0.5 * dims * np.log(0.75)
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(300)
    x, y = pair(0.5, dims, 100)
    both = np.hstack([x, y])
    plain = 0.5 * sum(
        np.linalg.slogdet(np.cov(side.T).reshape(side.shape[1], -1))[1] * sign
        for side, sign in ((x, 1), (y, 1), (both, -1))
    )
    assert gaussian_information(x, y)[0] < plain


def test_the_closed_forms_parts_are_log_density_ratios() -> None:
    x, y = pair(0.6, 2, 400)
    nats, parts = gaussian_information(x, y)
    both = np.hstack([x, y])
    logs = [multivariate_normal(side.mean(0), np.cov(side.T)).logpdf(side) for side in (both, x, y)]
    ratio = logs[0] - logs[1] - logs[2]
    np.testing.assert_allclose(parts - nats, ratio - ratio.mean(), atol=0.02)


def test_counts_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 300)
    y = (x + rng.integers(0, 3, 300)) % 5
    parts, bias = plug_in_parts(x, y)
    assert parts.mean() == pytest.approx(mutual_info_score(x, y))
    cells = len({*zip(x.tolist(), y.tolist(), strict=True)})
    assert bias == pytest.approx((cells - 5 - 5 + 1) / 600)


def test_bins_hold_equally_many_distinct_values() -> None:
    values = np.r_[np.zeros(500), np.arange(1.0, 101.0)][:, None]
    symbols = AdaptiveBins(bins=4).symbols(values)
    sizes = [len(np.unique(values[symbols == symbol])) for symbol in np.unique(symbols)]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == 4


def test_codes_that_fill_fewer_dimensions_than_they_have_are_compared_right() -> None:
    """Points on a circle and its overtones: four components, one dimension; two of them share log(1 / 0.2) nats."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 2 * np.pi, 2000)
    second = first + rng.uniform(0, 0.2 * 2 * np.pi, 2000)

    def curve(angle: np.ndarray) -> np.ndarray:
        parts = [np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
        return np.stack(parts, 1) @ np.random.default_rng(1).normal(size=(4, 30))

    x, y = (Side(curve(angle), "continuous") for angle in (first, second))
    assert Compressed().estimate(x, y, rng).nats == pytest.approx(np.log(5), abs=0.1)
    # A fifth of the circle each: the label is known from the angle.
    labels = Side((first // (0.4 * np.pi)).astype(np.int64)[:, None].astype(float), "discrete")
    assert Compressed().estimate(x, labels, rng).nats == pytest.approx(np.log(5), abs=0.05)


def test_principal_components_keep_the_most_variance() -> None:
    values = np.random.default_rng(0).normal(size=(200, 5)) * [5, 1, 3, 0.1, 0.2]
    code, kept = principal_components(values, 2)
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    assert kept == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    np.testing.assert_allclose(np.sort(np.square(code).sum(0)), np.sort(singular[:2] ** 2))


def test_mixtures_of_gaussians_are_summed_right() -> None:
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(2, 30, 3))
    kernel = np.exp(-0.5 * cdist(points, centres) ** 2)
    whole, less = mixture_logs(points, centres)
    np.testing.assert_allclose(whole, np.log(kernel.mean(1)))
    np.fill_diagonal(kernel, 0)
    np.testing.assert_allclose(less, np.log(kernel.sum(1) / 29))


def test_cauchy_schwarz_of_gaussians_is_the_closed_form() -> None:
    """With kernels of width s, the densities are Gaussians with ``s**2`` more variance: all three terms are known."""
    rho, width = 0.8, 0.7
    found = []
    for seed in range(8):
        sides = pair(rho, 1, 800, seed)
        grams = (np.exp(-0.25 * cdist(side, side, "sqeuclidean") / width**2) for side in sides)
        found.append(float(gram_information(*(torch.from_numpy(gram) for gram in grams))))
    joint = np.array([[1, rho], [rho, 1]]) + width**2 * np.eye(2)
    product = (1 + width**2) * np.eye(2)

    def overlap(first: np.ndarray, second: np.ndarray) -> float:
        return float(multivariate_normal(np.zeros(2), first + second).pdf(np.zeros(2)))

    expected = np.log(overlap(joint, joint) * overlap(product, product) / overlap(joint, product) ** 2)
    assert np.mean(found) == pytest.approx(expected, rel=0.05)
    assert float(gram_information(torch.ones(5, 5), torch.ones(5, 5))) == pytest.approx(0)


def test_matrix_entropy_of_known_matrices() -> None:
    assert gram_entropy(np.eye(8), order=1.01) == pytest.approx(np.log(8))
    assert gram_entropy(np.ones((8, 8)), order=2.0) == pytest.approx(0, abs=1e-9)
    blocks = np.kron(np.eye(4), np.ones((2, 2)))
    assert gram_entropy(blocks, order=3.0) == pytest.approx(np.log(4))
    assert silverman(1000, 1) == pytest.approx((4 / 3000) ** 0.2)


def test_the_canonical_ratio_is_that_of_a_gaussian() -> None:
    x, y = (standardised(side) for side in pair(0.8, 1, 20000))
    rho = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    found = canonical_ratio(x, y)(torch.tensor([[0.5], [-1.0]]), torch.tensor([[2.0], [0.3]])).numpy()
    cov = [[1, rho], [rho, 1]]
    for row, left in enumerate((0.5, -1.0)):
        for column, right in enumerate((2.0, 0.3)):
            truth = multivariate_normal([0, 0], cov).logpdf([left, right]) - norm.logpdf(left) - norm.logpdf(right)
            assert found[row, column] == pytest.approx(truth, abs=0.02)
    none = canonical_ratio(*pair(0.0, 8, 500))(torch.zeros(1, 8), torch.zeros(1, 8))
    assert float(none) == 0


def test_a_critic_starts_from_its_base() -> None:
    x, y = pair(0.8, 2, 300)
    base = canonical_ratio(x, y)
    sides = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    critic = Critic(2, 2, Recipe(), base)
    np.testing.assert_allclose(critic(*sides).detach().numpy(), base(*sides).numpy(), atol=1e-5)


def test_scores_are_kept_right() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(700, 700))).float()
    places = torch.arange(700)[:, None].float()
    table = lambda x, y: scores[x[:, 0].long()][:, y[:, 0].long()]  # noqa: E731
    kept = scored(table, places, places, permutations=3)
    plain = np.exp(scores.double().numpy())
    np.testing.assert_allclose(kept.rows, np.log(plain.mean(1)), atol=1e-4)
    np.testing.assert_allclose(kept.columns, np.log(plain.mean(0)), atol=1e-4)
    np.testing.assert_allclose(kept.together, np.diag(scores))
    apart = (plain.sum() - np.trace(plain)) / (700 * 699)
    weights, whole = influence(kept)
    assert whole == pytest.approx(np.log(apart), abs=1e-4)
    assert weights.mean() == pytest.approx(1, abs=1e-6)
    assert np.abs(kept.shuffled).max() < 5 / np.sqrt(700)
    nwj = 1 + np.diag(scores - 1).mean() - np.exp(-1) * apart
    assert Nwj().read(kept).mean() == pytest.approx(nwj, abs=1e-3)
    assert InfoNce().read(kept).mean() == pytest.approx(-float(objectives.contrastive(scores)), abs=1e-4)
    clipped = scored(table, places, places, clip=0.5)
    held = np.exp(np.clip(scores.double().numpy(), -0.5, 0.5))
    off = (held.sum() - np.trace(held)) / (700 * 699)
    assert Smile(tau=0.5).read(clipped).mean() == pytest.approx(float(scores.diagonal().mean()) - np.log(off), abs=1e-4)


def test_objectives_are_their_formulas() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 6)))
    plain, mask = scores.numpy(), ~np.eye(6, dtype=bool)
    together = np.diag(plain).mean()
    assert float(objectives.donsker_varadhan(scores)) == pytest.approx(np.log(np.exp(plain[mask]).mean()) - together)
    assert float(objectives.nguyen(scores)) == pytest.approx(np.exp(plain[mask] - 1).mean() - together)
    logistic = np.log1p(np.exp(-np.diag(plain))).mean() + np.log1p(np.exp(plain[mask])).mean()
    assert float(objectives.jensen_shannon(scores)) == pytest.approx(logistic)


def test_radii_have_heavy_tails() -> None:
    scores = np.array([[0.3], [-2.0], [4.0]])
    expected = student.ppf(norm.cdf(scores[:, 0]), 2) ** 2
    np.testing.assert_allclose(radii(scores)[:, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(radii(scores)[:, 0], scores[:, 0] ** 2)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_a_noisy_function_is_not_taken_for_one_without(noise: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 1))
    y = np.sin(2 * x)
    sides = [Side(side, "continuous") for side in (x, y, y + noise * rng.normal(size=x.shape))]
    assert determined(sides[0], sides[1]) is not None
    assert determined(sides[0], sides[2]) is None
    plane = Side(rng.normal(size=(3000, 2)), "continuous")
    layer = Side(np.tanh(plane.values @ rng.normal(size=(2, 3))), "continuous")
    assert determined(plane, layer) == "column 0 of y is a smooth function of x"
    high = [Side(side, "continuous") for side in pair(0.99, 3, 3000)]
    assert determined(*high) is None


def test_truths_of_the_benchmark_hold() -> None:
    from benchmarks.known_mi_cases import cases, half

    known = {case.name: case for case in cases()}
    assert {half(name) for name in known} == {"tuning", "reported"}
    mixed = lambda v: 0.5 * (norm.pdf(v, 1) + norm.pdf(v, -1))  # noqa: E731
    entropy = quad(lambda v: -mixed(v) * np.log(mixed(v)), -12, 12)[0]
    assert known["classes-2-1"].nats == pytest.approx(entropy - 0.5 * np.log(2 * np.pi * np.e), abs=1e-6)
    assert known["classes-2-16"].nats == known["classes-2-1"].nats
    for name in ("ring-noise0.3", "scales-1", "cross-1-rho0.9"):
        x, y = known[name].samples(4000, 0)
        assert ksg_parts(gaussianised(x), gaussianised(y), 3).mean() == pytest.approx(known[name].nats, abs=0.08)
    x, label = known["radii-2"].samples(4000, 0)
    assert ross_parts(x, label, 3).mean() == pytest.approx(known["radii-2"].nats, abs=0.05)
