"""Couplings and encoders of bounded entropy, against all there are where these can be counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from isthmus.errors import BadInput
from isthmus.information.coupling import (
    bottleneck_coupling,
    bounded_encoder,
    entropy,
    joint_information,
    minimum_entropy_coupling,
)


def distribution(size: int, seed: int, sharpness: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(size, sharpness))


def least_entropy(first: np.ndarray, second: np.ndarray) -> float:
    """Return the least entropy of all couplings: of the corners, each built by exhausting one side at a time."""

    @cache
    def least(left: tuple[float, ...], right: tuple[float, ...]) -> float:
        if not left or not right:
            return 0.0
        found = []
        for i, one in enumerate(left):
            for j, other in enumerate(right):
                mass = min(one, other)
                rest = [round(one - mass, 12)] if one - mass > 1e-11 else []
                beside = [round(other - mass, 12)] if other - mass > 1e-11 else []
                ways = sorted([*left[:i], *left[i + 1 :], *rest]), sorted([*right[:j], *right[j + 1 :], *beside])
                found.append(-mass * math.log(mass) + least(tuple(ways[0]), tuple(ways[1])))
        return min(found)

    return least(tuple(sorted(np.round(first, 12))), tuple(sorted(np.round(second, 12))))


def partitions(places: list[int]) -> Iterator[list[list[int]]]:
    if not places:
        yield []
        return
    first, rest = places[0], places[1:]
    for parts in partitions(rest):
        for index, part in enumerate(parts):
            yield [*parts[:index], [first, *part], *parts[index + 1 :]]
        yield [[first], *parts]


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 3), (4, 4), (5, 4), (1, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_a_coupling_is_exact_and_near_the_best(rows: int, columns: int, seed: int) -> None:
    first, second = distribution(rows, seed), distribution(columns, seed + 10)
    joint = minimum_entropy_coupling(first, second)
    assert joint.min() >= 0
    np.testing.assert_allclose(joint.sum(1), first, atol=1e-15)
    np.testing.assert_allclose(joint.sum(0), second, atol=1e-15)
    assert (joint > 0).sum() <= rows + columns
    best = least_entropy(first, second)
    assert best - 1e-9 <= entropy(joint) <= best + 1 / math.e
    assert entropy(joint) >= max(entropy(first), entropy(second)) - 1e-12


def test_a_coupling_of_like_sides_is_the_identity() -> None:
    given = distribution(50, 0)
    np.testing.assert_allclose(minimum_entropy_coupling(given, given[::-1]), np.diag(given)[:, ::-1])


def test_marginals_are_exact_where_masses_are_many_and_tiny() -> None:
    first, second = distribution(3000, 0, 0.05), distribution(2000, 1, 0.05)
    joint = minimum_entropy_coupling(first, second)
    assert np.abs(joint.sum(1) - first).max() < 1e-14
    assert np.abs(joint.sum(0) - second).max() < 1e-14


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [2, 4, 6])
def test_an_encoder_keeps_the_rate_and_is_near_the_best_mapping(size: int, seed: int) -> None:
    given = distribution(size, seed)
    second = np.sort(given)[-2]
    slack = entropy([second, 1 - second])
    every = sorted(entropy([given[part].sum() for part in parts]) for parts in partitions(list(range(size))))
    for rate in np.linspace(0, entropy(given) * 1.1, 12):
        encoder = bounded_encoder(given, rate)
        np.testing.assert_allclose(encoder.sum(1), given)
        assert ((encoder > 0).sum(1) == 1).all(), "each input has one symbol"
        kept = entropy(encoder.sum(0))
        assert joint_information(encoder) == pytest.approx(kept)
        best = max(value for value in every if value <= rate + 1e-12)
        assert kept <= min(rate, best) + 1e-9
        assert kept >= min(rate, entropy(given)) - slack - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_entropy_left_over_is_spent(seed: int) -> None:
    given = distribution(6, seed)
    for share in (0.3, 0.6, 0.9):
        rate = share * entropy(given)
        mapping, mixed = bounded_encoder(given, rate), bounded_encoder(given, rate, whole=False)
        np.testing.assert_allclose(mixed.sum(1), given)
        assert entropy(mapping.sum(0)) <= entropy(mixed.sum(0)) <= rate + 1e-12
        assert joint_information(mapping) <= joint_information(mixed) + 1e-12
        assert joint_information(mixed) <= rate
    whole = bounded_encoder(given, rate, whole=False)
    assert joint_information(whole) > joint_information(bounded_encoder(given, rate)) + 1e-4


def test_what_reaches_the_output_is_at_least_what_the_steps_promise() -> None:
    inputs, outputs = distribution(6, 0), distribution(5, 1)
    last = -1.0
    for rate in (0.0, 0.5, 1.0, 1.5, 2.0):
        found = bottleneck_coupling(inputs, outputs, rate)
        np.testing.assert_allclose(found.decoder.sum(0), outputs, atol=1e-15)
        np.testing.assert_allclose(found.decoder.sum(1), found.encoder.sum(0), atol=1e-15)
        assert found.rate <= rate + 1e-12
        assert found.least - 1e-12 <= found.information <= min(found.rate, entropy(outputs)) + 1e-12
        last = max(last, found.information)
    direct = joint_information(minimum_entropy_coupling(inputs, outputs))
    assert found.information == pytest.approx(direct), "beyond H(X) nothing is bounded"
    assert last > 0.5


def test_information_of_a_table_is_that_of_its_samples() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 1000)
    second = (first + rng.integers(0, 2, 1000)) % 4
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1 / 1000)
    assert joint_information(table) == pytest.approx(mutual_info_score(first, second))


def test_bad_input() -> None:
    for call, words in (
        (lambda: minimum_entropy_coupling([0.5, 0.4], [1.0]), "sum to 0.9"),
        (lambda: minimum_entropy_coupling([1.5, -0.5], [1.0]), "none below 0"),
        (lambda: minimum_entropy_coupling([1.0], []), "second: of shape"),
        (lambda: bounded_encoder([0.5, math.nan], 1.0), "inputs: of shape"),
        (lambda: bounded_encoder([0.5, 0.5], -1.0), "rate -1"),
        (lambda: bounded_encoder([0.5, 0.5], math.nan), "rate nan"),
        (lambda: bottleneck_coupling([0.5, 0.5], [0.5, 0.6], 1.0), "outputs: probabilities sum"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
