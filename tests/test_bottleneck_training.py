"""Objectives that train a bottleneck: each formula against an independent computation, and a small training of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import qmc
from sklearn.metrics import mutual_info_score
from sklearn.metrics.pairwise import rbf_kernel

from isthmus.errors import BadInput
from isthmus.information.training import cauchy_schwarz as cs
from isthmus.information.training.bottleneck import VariationalBottleneck, closed_units, gaussian_rate
from isthmus.information.training.infomax_codes import (
    CodeHead,
    InfomaxLoss,
    agreement,
    codes_of,
    label_information,
    place_information,
)


def normal(samples: int, width: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + deviation * torch.randn(samples, width, generator=generator, dtype=torch.float64)


def test_the_rate_of_a_gaussian_is_its_divergence_from_the_prior() -> None:
    mean, deviation = torch.tensor([0.0, 1.5, -2.0]), torch.tensor([1.0, 0.3, 2.0])
    own, prior = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(gaussian_rate(mean, deviation), torch.distributions.kl_divergence(own, prior))


def test_a_bottleneck_samples_in_training_only_and_its_shapes_hold() -> None:
    torch.manual_seed(0)
    layer = VariationalBottleneck(5, 3)
    states = torch.randn(4, 7, 5)
    found = layer(states)
    assert found.sample.shape == found.by_unit.shape == (4, 7, 3)
    torch.testing.assert_close(found.rate, found.by_unit.sum(-1))
    assert not torch.equal(layer(states).sample, found.sample)
    layer.eval()
    assert torch.equal(layer(states).sample, layer(states).sample)
    with pytest.raises(BadInput, match="0 units"):
        VariationalBottleneck(5, 0)


def test_what_a_task_does_not_need_is_closed() -> None:
    """Of four inputs one decides; the code ends with units that are dead, and carries less than the inputs hold."""
    torch.manual_seed(0)
    layer, head = VariationalBottleneck(4, 4), torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    inputs = torch.randn(512, 4)
    labels = (inputs[:, 0] > 0).long()
    for _ in range(400):
        passed = layer(inputs)
        loss = torch.nn.functional.cross_entropy(head(passed.sample), labels) + 0.1 * passed.rate.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.eval()
    passed = layer(inputs)
    assert (head(passed.sample).argmax(1) == labels).float().mean() > 0.95
    assert 0.2 < passed.rate.mean() < 2
    assert closed_units(passed.by_unit).sum() >= 2


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.0), (2.0, 0.5)])
@pytest.mark.parametrize("width", [1, 3])
def test_the_divergence_of_two_gaussians_is_the_closed_form(mean: float, deviation: float, width: int) -> None:
    """Of Gaussians that the kernel smooths, whose products integrate to Gaussians; samples spread evenly (Sobol's)."""
    kernel, count = 1.0, 1024
    spread = [qmc.MultivariateNormalQMC(np.zeros(width), seed=seed).random(count) for seed in range(2)]
    first, second = torch.from_numpy(spread[0]), mean + deviation * torch.from_numpy(spread[1])

    def overlap(means: float, variance: float) -> float:
        total = variance + kernel**2
        return (kernel**2 / total) ** (width / 2) * math.exp(-width * means**2 / (2 * total))

    own, other, cross = overlap(0, 2), overlap(0, 2 * deviation**2), overlap(mean, 1 + deviation**2)
    expected = math.log(own * other / cross**2)
    found = float(cs.divergence(first, second, width=kernel))
    assert found == pytest.approx(expected, rel=0.02, abs=0.002)
    assert float(cs.divergence(first, first)) == pytest.approx(0, abs=1e-12)
    assert float(cs.divergence(second, first, width=kernel)) == pytest.approx(found)


def test_what_samples_share_is_the_formula_written_out() -> None:
    one = normal(40, 2, 0)
    other = torch.cat([one[:, :1] ** 2, normal(40, 1, 3)], dim=1)
    first, second = rbf_kernel(one, gamma=1 / (2 * 0.7**2)), rbf_kernel(other, gamma=1 / (2 * 1.3**2))
    joint = np.einsum("ij,ij->", first, second) / 40**2
    apart = np.einsum("ij,kl->", first, second) / 40**4
    cross = np.einsum("ij,ik->", first, second) / 40**3
    expected = math.log(joint) + math.log(apart) - 2 * math.log(cross)
    assert float(cs.mutual_information(one, other, widths=(0.7, 1.3))) == pytest.approx(expected, rel=1e-9)
    many = normal(400, 2, 4)
    shared, nothing = cs.mutual_information(many, many[:, :1] ** 2), cs.mutual_information(many, normal(400, 1, 9))
    assert float(shared) > 5 * float(nothing) > 0


def test_the_conditional_divergence_is_the_formula_written_out() -> None:
    inputs, targets, predictions = normal(30, 2, 0), normal(30, 1, 1), normal(30, 1, 2)
    near = rbf_kernel(inputs, gamma=1 / (2 * 0.9**2))

    def term(one: torch.Tensor, other: torch.Tensor) -> float:
        kernel = rbf_kernel(one, other, gamma=1 / (2 * 0.6**2))
        return math.log(sum((near[j] @ kernel[j]) / near[j].sum() ** 2 for j in range(30)))

    expected = term(targets, targets) + term(predictions, predictions) - 2 * term(predictions, targets)
    found = cs.conditional_divergence(inputs, targets, predictions, widths=(0.9, 0.6))
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert float(cs.conditional_divergence(inputs, targets, targets)) == pytest.approx(0, abs=1e-12)


def test_a_regression_is_learnt_by_the_conditional_divergence() -> None:
    torch.manual_seed(0)
    inputs = normal(200, 3, 0).float()
    targets = (inputs[:, :1] - 0.5 * inputs[:, 1:2]).detach()
    encode, predict = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam([*encode.parameters(), *predict.parameters()], lr=0.02)
    objective = cs.CauchySchwarzBottleneck(beta=1e-3)
    errors = []
    for _ in range(200):
        codes = encode(inputs)
        predictions = predict(codes)
        loss = objective(inputs, codes, targets, predictions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float((predictions - targets).square().mean()))
    assert errors[-1] < 0.05 * errors[0]


def test_what_codes_say_is_their_mutual_information() -> None:
    """With certain symbols, against scikit-learn's plug-in estimate."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 500)
    symbols = np.stack([labels, generator.integers(0, 4, 500), (labels + generator.integers(0, 2, 500)) % 4], axis=1)
    certain = torch.nn.functional.one_hot(torch.from_numpy(symbols), 4).double()
    found = label_information(certain, torch.from_numpy(labels) * 7 + 2)
    expected = [mutual_info_score(labels, symbols[:, place]) for place in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    between = place_information(certain)
    expected = [[mutual_info_score(symbols[:, a], symbols[:, b]) for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(between, expected, atol=1e-9)
    loss = InfomaxLoss(weight=0.5)(certain, torch.from_numpy(labels))
    pairs = between.sum() - between.trace()
    assert float(loss) == pytest.approx(float((-found.sum() + 0.5 * pairs) / 3))


def test_training_codes_tells_labels_apart_by_places_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    features = torch.randn(8, 16, generator=generator)[labels] + 0.3 * torch.randn(400, 16, generator=generator)

    def trained(weight: float) -> torch.Tensor:
        torch.manual_seed(1)
        head = CodeHead(16, places=3, symbols=2)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            loss = InfomaxLoss(weight)(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return head(features).detach()

    apart, alike = trained(1.0), trained(0.0)
    off = ~torch.eye(3, dtype=torch.bool)
    assert place_information(apart)[off].mean() < 0.05
    assert place_information(apart)[off].mean() < place_information(alike)[off].mean() + 1e-6
    assert len(torch.unique(codes_of(apart), dim=0)) == 8, "three bits for eight labels"
    ranks = agreement(apart, codes_of(apart)).argsort(1, descending=True)
    assert (labels[ranks[:, :20]] == labels[:, None]).float().mean() > 0.95


def test_agreement_is_a_sum_of_logarithms() -> None:
    probabilities = torch.rand(5, 3, 4, dtype=torch.float64).softmax(-1)
    codes = torch.randint(0, 4, (6, 3))
    for query, code in np.ndindex(5, 6):
        expected = sum(math.log(probabilities[query, place, codes[code, place]]) for place in range(3))
        assert float(agreement(probabilities, codes)[query, code]) == pytest.approx(expected)


def test_bad_input() -> None:
    some = normal(9, 2, 0)
    for call, words in (
        (lambda: cs.divergence(some[:1], some), "two or more"),
        (lambda: cs.divergence(some, some[:, :1]), "give one width"),
        (lambda: cs.divergence(some, some, width=0), "width 0"),
        (lambda: cs.divergence(torch.ones(5, 2), torch.ones(5, 2)), "all samples are alike"),
        (lambda: cs.mutual_information(some, some[:4]), "as many of both"),
        (lambda: cs.conditional_divergence(some, some[:4], some), "one of each"),
        (lambda: CodeHead(3, 0, 4), "0 places"),
        (lambda: CodeHead(3, 2, 1), "of 1 symbols"),
        (lambda: label_information(torch.ones(4, 2, 3) / 3, torch.zeros(3, dtype=torch.long)), "one integer each"),
        (lambda: label_information(torch.ones(4, 2, 3) / 3, torch.zeros(4)), "one integer each"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
