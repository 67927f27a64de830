"""Mutual information: what holds for every estimator, and what the one function says of good and bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from isthmus.errors import BadInput
from isthmus.information import ESTIMATORS, Auto, Information, get, mutual_information
from isthmus.information.bounds import CriticBound
from isthmus.information.canonical import departs
from isthmus.information.critic import Recipe
from isthmus.information.gaussian import Gaussian
from isthmus.information.ksg import Ksg
from isthmus.information.measuring import COMPARED
from isthmus.information.noisy import Noisy
from isthmus.information.registry import Estimator
from isthmus.information.result import CC, CD, DD

QUICK = Recipe(width=32, features=8, steps=80, batch=128)
NAMES = tuple(ESTIMATORS)
SHANNON = tuple(name for name in NAMES if name not in (*COMPARED, "noisy"))


def quick(name: str) -> Estimator:
    """Return an estimator; critics with little training."""
    found = get(name)
    return dataclasses.replace(found, recipe=QUICK) if isinstance(found, Auto | CriticBound) else found


def pair(rho: float, dims: int = 1, samples: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, dims))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)


def given(name: str, rho: float, samples: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return sides of a kind that the estimator takes, as dependent as a Gaussian pair of ``rho``."""
    x, y = pair(rho, samples=samples, seed=seed)
    kinds = get(name).kinds
    if CC in kinds:
        return x, y
    return (x, (y[:, 0] > 0).astype(int)) if CD in kinds else ((x[:, 0] > 0).astype(int), (y[:, 0] > 0).astype(int))


def ask(name: str, x: np.ndarray, y: np.ndarray, **options: int) -> Information:
    if name == "noisy":
        return mutual_information(x, y, estimator=Noisy(0.5), **options)
    return mutual_information(x, y, estimator=quick(name), **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_says_what_it_is(name: str) -> None:
    found = get(name)
    assert found.name == name
    assert found.kinds
    assert set(found.kinds) <= {CC, CD, DD}
    assert 10 < len(found.about) < 120
    assert any(part.isdigit() for part in found.paper.replace(",", " ").replace(";", " ").split())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", SHANNON)
def test_independent_sides_share_nothing(name: str) -> None:
    found = ask(name, *given(name, 0.0))
    assert found.nats is not None
    assert found.interval is not None
    assert found.null is not None
    assert found.interval[0] <= 0.02
    assert found.nats < 0.08
    assert found.null.p > 0.02


@pytest.mark.parametrize("name", SHANNON)
def test_more_dependence_gives_more_nats(name: str) -> None:
    weak, strong = (ask(name, *given(name, rho)) for rho in (0.3, 0.9))
    assert weak.nats is not None
    assert strong.nats is not None
    assert strong.null is not None
    assert strong.nats > weak.nats + 0.1
    assert strong.null.p <= 0.05
    assert strong.nats > strong.null.upper


@pytest.mark.parametrize("name", COMPARED)
def test_other_divergences_tell_dependence_too(name: str) -> None:
    none, some = (ask(name, *given(name, rho, 200)) for rho in (0.0, 0.9))
    assert none.nats is not None
    assert some.nats is not None
    assert none.null is not None
    assert some.null is not None
    assert some.nats > none.nats
    assert some.null.p <= 0.05 < none.null.p


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_answer(name: str) -> None:
    x, y = given(name, 0.6, samples=120)
    first, second = (ask(name, x, y, seed=3, permutations=5) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_tensors_and_other_floats_are_read_alike(name: str) -> None:
    x, y = given(name, 0.6, samples=120)
    x, y = (side.astype(np.float32) if side.dtype.kind == "f" else side for side in (x, y))
    plain = ask(name, x, y, permutations=0)
    assert ask(name, torch.from_numpy(x), torch.from_numpy(y), permutations=0) == plain
    assert ask(name, x.reshape(120, -1), y.reshape(120, -1), permutations=0) == plain


@pytest.mark.parametrize("name", ["auto", "gaussian", "ksg", "infonce"])
def test_increasing_maps_of_coordinates_change_nothing(name: str) -> None:
    x, y = pair(0.7, dims=2, samples=300)
    plain = ask(name, x, y, permutations=0)
    assert plain.nats is not None
    bent = ask(name, np.exp(2 * x), y**3 + y, permutations=0)
    assert bent.nats == pytest.approx(plain.nats, abs=1e-9)


@pytest.mark.parametrize(("rho", "dims"), [(0.0, 1), (0.5, 1), (0.95, 1), (0.5, 4), (0.3, 16)])
def test_the_default_holds_the_closed_form_of_a_gaussian(rho: float, dims: int) -> None:
    x, y = pair(rho, dims, samples=2000, seed=4)
    found = mutual_information(x, y, estimator=Auto(recipe=QUICK))
    truth = -0.5 * dims * np.log(1 - rho**2)
    assert found.interval is not None
    assert found.nats is not None
    assert found.interval[0] <= truth <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.25
    assert found.dimensions == (dims, dims)
    assert found.samples == 2000


def test_the_default_finds_dependence_without_correlation() -> None:
    x, y = pair(0.9, samples=2000)
    crossed = y * np.random.default_rng(1).choice([-1, 1], y.shape)
    found = mutual_information(x, crossed, estimator=Auto(recipe=QUICK))
    # By quadrature over the density; see benchmarks/known_mi_cases.py.
    assert found.interval is not None
    assert found.interval[0] <= 0.4084 <= found.interval[1]
    assert closed_form_of(x, crossed) < 0.01


def closed_form_of(x: np.ndarray, y: np.ndarray) -> float:
    found = mutual_information(x, y, estimator="gaussian", permutations=0).nats
    assert found is not None
    return found


def test_the_default_takes_labels_on_either_side() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 1500)
    x = rng.normal(size=(1500, 2)) + 6 * np.eye(3)[label][:, :2]
    found = mutual_information(x, label, estimator=Auto(recipe=QUICK))
    turned = mutual_information(label, x, estimator=Auto(recipe=QUICK))
    assert found.nats is not None
    assert found.interval is not None
    assert turned.nats == found.nats
    # The classes hardly overlap: nearly the entropy of the label.
    assert found.interval[0] <= np.log(3) <= found.interval[1] + 0.05
    assert 0.9 < found.nats <= np.log(3) + 0.01
    assert turned.dimensions == (1, 2)


def test_two_labels_are_counted() -> None:
    x = np.repeat([0, 1], 100)
    y = np.repeat([0, 1, 0, 1], [80, 20, 20, 80])
    table = np.array([[0.4, 0.1], [0.1, 0.4]])
    expected = (table * np.log(table / 0.25)).sum() - 1 / 400
    assert mutual_information(x, y).nats == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_a_function_is_not_estimable(turned: bool) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 1))
    sides = (x, np.sin(x))[:: -1 if turned else 1]
    found = mutual_information(*sides)
    assert found.nats is None
    assert found.interval is None
    assert found.null is None
    assert "smooth function" in (found.not_estimable or "")
    assert "noise=" in (found.not_estimable or "")


def test_a_linear_layer_is_not_estimable_in_many_dimensions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 40))
    found = mutual_information(x, np.tanh(x[:, :3]) * 0 + x @ rng.normal(size=(40, 3)))
    assert "linear function" in (found.not_estimable or "")


def test_a_side_and_itself_are_not_estimable_however_few_the_samples() -> None:
    x = np.random.default_rng(0).normal(size=(60, 64))
    found = mutual_information(x, x[:, ::-1])
    assert "column 63 of y is column 0 of x" in (found.not_estimable or "")


def test_two_distinct_integers_are_labels_however_few_the_samples() -> None:
    found = mutual_information(np.arange(8) % 2, np.arange(8) % 2)
    assert found.nats is not None
    assert found.nats <= np.log(2)


def test_noise_makes_a_layer_estimable() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 1))
    found = mutual_information(x, 2 * x, noise=1.0)
    assert found.estimator == "noisy"
    assert found.nats is not None
    assert found.interval is not None
    # I(X; 2X + N) = 1/2 log(1 + 4).
    assert found.interval[0] <= 0.5 * np.log(5) <= found.interval[1]
    assert found.nats == pytest.approx(0.5 * np.log(5), abs=0.05)


def test_noise_is_added_where_the_layer_is_noisy_already() -> None:
    x, y = pair(0.8, samples=3000)
    found = mutual_information(x, y, noise=0.5, estimator="gaussian")
    assert found.nats == pytest.approx(-0.5 * np.log(1 - 0.64 / 1.25), abs=0.05)


def test_too_much_to_be_seen_is_not_estimable() -> None:
    x = np.random.default_rng(0).normal(size=(400, 12))
    y = np.abs(x) ** 1.5 + 1e-3 * np.random.default_rng(1).normal(size=x.shape)
    found = mutual_information(x, y, estimator="adaptive-bins")
    assert found.nats is None
    assert "nats, near the" in (found.not_estimable or "")


X, Y = pair(0.5, samples=100)
WRONG = {
    "nan": (np.where(np.arange(100) == 7, np.nan, X[:, 0]), Y, {}, "x: sample 7, column 0 is not a finite number"),
    "infinite": (X, np.where(np.arange(100) == 3, np.inf, Y[:, 0]), {}, "y: sample 3"),
    "length": (X, Y[:50], {}, "x has 100 samples and y has 50"),
    "few": (X[:4], Y[:4], {}, "4 samples; give at least 8"),
    "shape": (X.reshape(10, 5, 2), Y, {}, "x has shape"),
    "empty": (np.zeros((100, 0)), Y, {}, "x has shape"),
    "text": (np.array(["a"] * 100), Y, {}, "x holds"),
    "name": (X, Y, {"estimator": "ksgg"}, "unknown estimator 'ksgg'; did you mean ksg"),
    "kinds": (X, Y, {"estimator": "ross"}, "ross takes continuous/discrete, not continuous/continuous"),
    "noise": (X, Y, {"noise": -1.0}, "give a positive standard deviation"),
    "noise on labels": (X, (Y[:, 0] > 0).astype(int), {"noise": 1.0}, "y is discrete"),
    "permutations": (X, Y, {"permutations": -1}, "-1 permutations"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gives_one_clear_line(case: str) -> None:
    x, y, options, told = WRONG[case]
    with pytest.raises(BadInput, match=r"^[^\n]*$") as caught:
        mutual_information(x, y, **options)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_what_can_be_mended_is_mended_and_said() -> None:
    x, y = pair(0.6, samples=400)
    plain = mutual_information(x, y, estimator="gaussian", permutations=0)
    odd = np.hstack([x, np.ones_like(x), x])
    found = mutual_information(odd, y, estimator="gaussian", permutations=0)
    assert found.nats == pytest.approx(plain.nats)
    assert found.dimensions == (1, 1)
    assert found.warnings == ("x: 1 constant columns left out", "x: 1 columns are copies of others, left out")
    assert plain.warnings == ()


def test_a_constant_side_says_nothing() -> None:
    found = mutual_information(np.full(100, 3.0), Y)
    assert (found.nats, found.interval) == (0.0, (0.0, 0.0))
    assert "a side is constant: it says nothing" in found.warnings


def test_duplicates_and_ties_are_said() -> None:
    x, y = pair(0.6, samples=200)
    twice = mutual_information(np.vstack([x, x]), np.vstack([y, y]), estimator="ksg", permutations=0)
    assert any("200 samples are duplicates" in note for note in twice.warnings)
    rounded = mutual_information(np.round(x, 1), y, estimator="ksg", permutations=0)
    assert any("ties, broken at random" in note for note in rounded.warnings)
    assert rounded.nats == pytest.approx(-0.5 * np.log(1 - 0.36), abs=0.15)


def test_many_integers_are_numbers_and_few_are_symbols() -> None:
    x, y = pair(0.8, samples=500)
    counts = mutual_information(np.round(100 * x).astype(int), y, estimator="ksg", permutations=0)
    assert any("taken as numbers" in note for note in counts.warnings)
    with pytest.raises(BadInput, match="not continuous/discrete"):
        mutual_information(x, np.round(y).astype(int), estimator="ksg")


def test_few_samples_get_a_wide_interval_and_a_word() -> None:
    x, y = pair(0.5, samples=30)
    found = mutual_information(x, y)
    assert found.interval is not None
    assert found.interval[1] - found.interval[0] > 0.2
    assert any("only 30 samples" in note for note in found.warnings)
    many = np.random.default_rng(0).normal(size=(30, 5))
    assert mutual_information(many, many + np.random.default_rng(1).normal(size=many.shape)).interval is not None


def test_parameters_are_checked() -> None:
    for make in (lambda: Ksg(neighbours=0), lambda: Noisy(0.0), lambda: Noisy(float("nan"))):
        with pytest.raises(BadInput):
            make()
    with pytest.raises(BadInput, match="needs more samples"):
        mutual_information(
            np.random.default_rng(0).normal(size=(40, 30)),
            np.random.default_rng(1).normal(size=(40, 30)),
            estimator=Gaussian(),
        )


def test_moments_tell_a_gaussian_from_what_is_not() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(4000, 12)) @ np.linalg.cholesky(0.5 * np.eye(12) + 0.5).T
    assert not departs(plain)
    assert departs(np.column_stack([plain[:, 0], plain[:, 1] * rng.choice([-1, 1], 4000)]))
    assert departs(plain[:, :3] * np.sqrt(3 / rng.chisquare(3, (4000, 1))))
