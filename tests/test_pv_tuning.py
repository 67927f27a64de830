"""Codes tuned on the divergence from the original: on a tiny network, and through products and sums."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from claims import pv_tuning as claim
from claims.coding import Point
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED

import networks
import small
from isthmus.bottlenecks.codebook.plain import PlainCodebook
from isthmus.bottlenecks.codebook.residual import ResidualCodebook
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.curves import coded_matrices
from isthmus.errors import BadInput
from isthmus.network import Network, embed
from isthmus.recovery import tuned_codes
from isthmus.recovery.tuned_codes import divergence_oracle, tune_codes
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Codebook, Coded, Outliers, Product, Sum, Uniform, decode, exponents_of
from isthmus.storage.holders import with_codes

TEXTS = small.sentences(48)
UNSEEN = "pooler.dense.weight"
"""The mean of the token states is taken before it: no derivative ever reaches it."""


@cache
def teacher() -> Network:
    network = networks.worded("bert")
    network.model.encoder.layer = network.model.encoder.layer[:1]
    network.model.config.num_hidden_layers = 1
    return network


def statistics(rows: int, columns: int) -> MatrixStatistics:
    return MatrixStatistics(Sensitivity(np.ones(rows), np.ones(columns)))


@cache
def codes() -> dict[str, Coded]:
    """Return a codebook for most matrices, and a sum, a product and integers for one each."""
    model, found = teacher().model, dict[str, Coded]()
    for name in coded_matrices(model):
        weight = model.get_parameter(name).detach().numpy()
        found[name] = PlainCodebook().code(weight, statistics(*weight.shape), Setting(1.5, 4))
    query, key, value = (name for name in found if "attention.self" in name)
    weight = model.get_parameter(query).detach().numpy()
    found[query] = ResidualCodebook().code(weight, statistics(*weight.shape), Setting(1.5, 4))
    weight = model.get_parameter(key).detach().numpy()
    left = PlainCodebook().code(weight[:, :8].copy(), statistics(32, 8), Setting(1.5, 2))
    found[key] = Product(left, PlainCodebook().code(np.eye(8, 32, dtype=np.float32), statistics(8, 32), Setting(1, 2)))
    weight = model.get_parameter(value).detach().numpy()
    found[value] = Uniform(np.rint(weight / 0.125).astype(np.int32), (exponents_of([[0.125]]),))
    return found


@cache
def tuned() -> tuned_codes.TunedCodes:
    return tune_codes(teacher(), codes(), teacher(), TEXTS, rounds=12, share=0.02, batches=2, batch=24, seed=1)


def size(held: dict[str, Coded]) -> int:
    return sum(len(pack(coded)) for coded in held.values())


def test_every_accepted_step_lowers_the_divergence() -> None:
    losses = tuned().losses
    assert len(losses) > 12
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.7 * losses[0]


def test_losses_are_those_of_the_networks_that_the_codes_make() -> None:
    """Measured by a probe of the same texts as one batch."""
    one = tune_codes(teacher(), codes(), teacher(), TEXTS[:24], rounds=3, batches=1, batch=24)
    probe = make_probe(teacher(), TEXTS[:24], batch=24)
    for held, loss in ((codes(), one.losses[0]), (one.codes, one.losses[-1])):
        assert measure_network(probe, with_codes(teacher(), held)) == pytest.approx(loss, rel=1e-4)


def test_codes_keep_their_kind_and_size() -> None:
    before, after = codes(), tuned().codes
    for name, coded in before.items():
        made = after[name]
        assert type(made) is type(coded)
        assert made.shape == coded.shape
        np.testing.assert_array_equal(decode(unpack(pack(made), made.shape)), decode(made))
        if isinstance(made, Uniform):
            assert pack(made) == pack(coded)
        elif name != UNSEEN:
            assert not np.array_equal(decode(made), decode(coded))
    assert size(after) == pytest.approx(size(before), rel=0.01)


def test_the_same_seed_gives_the_same_codes_and_the_networks_stay() -> None:
    weights = {name: tensor.clone() for name, tensor in teacher().model.state_dict().items()}
    again = tune_codes(teacher(), codes(), teacher(), TEXTS, rounds=12, share=0.02, batches=2, batch=24, seed=1)
    assert again.losses == tuned().losses
    assert {name: pack(coded) for name, coded in again.codes.items()} == {
        name: pack(coded) for name, coded in tuned().codes.items()
    }
    for name, tensor in teacher().model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    other = tune_codes(teacher(), codes(), teacher(), TEXTS, rounds=1, batches=1, batch=24, seed=2)
    assert other.losses[0] != again.losses[0]


def test_without_a_share_indices_stay() -> None:
    found = tune_codes(teacher(), codes(), teacher(), TEXTS, rounds=3, share=0.0, batches=1, batch=24)
    assert found.losses[-1] < found.losses[0]
    for name, coded in codes().items():
        if isinstance(coded, Codebook) and name != UNSEEN:
            made = found.codes[name]
            assert isinstance(made, Codebook)
            np.testing.assert_array_equal(made.indices, coded.indices)
            assert not np.array_equal(made.tables, coded.tables)


def test_it_stops_when_it_is_told_to() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    rounds: list[float] = []
    found = tune_codes(
        teacher(),
        codes(),
        teacher(),
        TEXTS,
        batches=1,
        batch=24,
        stop=stop,
        progress=lambda _, done, *__: rounds.append(done),
    )
    assert len(found.losses) <= 2
    assert rounds == [1]


def test_integers_alone_are_returned_as_they_are() -> None:
    only = {name: coded for name, coded in codes().items() if isinstance(coded, Uniform)}
    found = tune_codes(teacher(), only, teacher(), TEXTS)
    assert (found.codes, found.losses) == (only, ())


def test_derivatives_against_differences() -> None:
    """Along the derivative itself, in every part of a product and of a scaled sum with outliers."""
    rng = np.random.default_rng(0)
    grid = rng.integers(-12, 12, (6, 1)).astype(np.int32)

    def table(rows: int, columns: int, length: int) -> Codebook:
        return Codebook(
            rng.normal(0, 1, (1, 1, 5, length)).astype(np.float16),
            rng.integers(0, 5, (rows, columns // length)).astype(np.int32),
        )

    outliers = Outliers(np.array([3, 20]), np.array([2.0, -1.0], np.float16))
    target = rng.normal(0, 1, (6, 8)).astype(np.float32)
    for coded in (
        Product(table(6, 4, 2), table(4, 8, 4), outliers),
        Sum((table(6, 8, 4), table(6, 8, 2)), (grid,), outliers),
    ):
        matrices = [decode(part) for part in tuned_codes._parts(coded)]
        whole = tuned_codes._assembled(coded, matrices)
        np.testing.assert_array_equal(whole, decode(coded))
        slopes = tuned_codes._slopes(coded, matrices, 2 * (whole - target))
        for number, slope in enumerate(slopes):
            step = (1e-3 * slope / np.abs(slope).max()).astype(np.float32)
            ends = []
            for sign in (1, -1):
                moved = [*matrices[:number], matrices[number] + sign * step, *matrices[number + 1 :]]
                gap = tuned_codes._assembled(coded, moved).astype(np.float64) - target
                ends.append(float((gap**2).sum()))
            assert (ends[0] - ends[1]) / 2 == pytest.approx(float((slope * step).sum()), rel=1e-3)


def test_the_divergence_and_its_derivatives_against_differences() -> None:
    student = with_codes(teacher(), codes())
    name = next(name for name in codes() if "intermediate" in name)
    oracle = divergence_oracle(student, teacher(), TEXTS, [name], batches=2, batch=24)
    weight = decode(codes()[name])
    loss, slopes = oracle({name: weight})
    assert oracle({name: weight})[0] == loss
    step = (2e-3 * slopes[name] / np.abs(slopes[name]).max()).astype(np.float32)
    ends = [oracle({name: weight + sign * step})[0] for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float((slopes[name] * step).sum()), rel=0.02)
    own = {name: teacher().model.get_parameter(name).detach().numpy()}
    assert divergence_oracle(replace(teacher()), teacher(), TEXTS, [name])(own)[0] == pytest.approx(0, abs=1e-6)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(BadInput, match="give at least 3"):
        tune_codes(teacher(), codes(), teacher(), TEXTS[:2])


# The claim: rules on made-up results, and straight-through training on the tiny network.


def outcome(arm: str, seed: int, nats: float, **more: Any) -> dict[str, Any]:
    groups = [nats * factor for factor in (0.97, 1.0, 1.03)]
    losses = [1.0, 0.8, 0.7, 0.6, nats]
    return {
        "arm": arm, "seed": seed, "nats": nats, "nats_by_group": groups, "bytes": 1000, "training_seconds": 60.0,
        "losses": losses, "calibration": nats, **more,
    }  # fmt: skip


def rows(nats: tuple[float, ...], other: str = claim.STRAIGHT) -> list[dict[str, Any]]:
    ours = [outcome(claim.PV, seed, each) for seed, each in enumerate(nats)]
    return ours + [outcome(other, seed, 0.5) for seed in range(3)]


@pytest.mark.parametrize(
    ("nats", "verdict"), [((0.4, 0.41, 0.42), HOLDS), ((0.58, 0.6, 0.62), FAILS), ((0.4, 0.5, 0.6), MIXED)]
)
def test_less_divergence_on_other_texts(nats: tuple[float, ...], verdict: str) -> None:
    part = claim.held_out(rows(nats), claim.STRAIGHT)
    assert part["verdict"] == verdict
    logs = np.log(np.array(nats) / 0.5)
    assert part["figures"]["mean"] == pytest.approx(logs.mean())
    # All groups differ by the same factor, so that only seeds spread.
    assert part["figures"]["spread"] == pytest.approx(np.std(logs, ddof=1) / np.sqrt(3))
    assert claim.held_out(rows(nats[:1]), claim.STRAIGHT)["verdict"] == UNTESTED
    assert claim.held_out(rows(nats), claim.TABLES)["verdict"] == UNTESTED


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, HOLDS),
        ({"losses": [1.0, 0.8, 0.8, 0.7, 0.4]}, MIXED),
        ({"losses": [1.0, 0.8, 0.4]}, MIXED),
        ({"calibration": 0.41}, MIXED),
    ],
)
def test_accepted_steps(change: dict[str, Any], verdict: str) -> None:
    found = rows((0.4, 0.4, 0.4))
    found[1].update(change)
    assert claim.falling(found)["verdict"] == verdict
    for one in found:
        one.update(change)
    assert claim.falling(found)["verdict"] == (FAILS if change else HOLDS)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({"bytes": 1009}, HOLDS), ({"bytes": 1011}, MIXED), ({"training_seconds": 67.0}, MIXED), ({}, HOLDS)],
)
def test_equal_bytes_and_time(change: dict[str, Any], verdict: str) -> None:
    found = rows((0.4, 0.4, 0.4))
    found[0].update(change)
    assert claim.equal(found)["verdict"] == verdict


def plain() -> dict[str, Coded]:
    return {name: coded for name, coded in codes().items() if isinstance(coded, Codebook)}


def test_lookup_is_nearest_and_both_learn_through_it() -> None:
    name, coded = next(iter(plain().items()))
    assert isinstance(coded, Codebook)
    looked = claim.LookedUp(coded)
    weight = teacher().model.get_parameter(name).detach().clone().requires_grad_(True)
    torch.testing.assert_close(looked(weight), torch.from_numpy(decode(coded)), rtol=0, atol=1e-6)
    factors = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    (looked(weight) * factors).sum().backward()
    torch.testing.assert_close(weight.grad, factors)
    expected = np.zeros((len(looked.table), 4))
    np.add.at(expected, coded.indices.ravel(), factors.numpy().reshape(-1, 4))
    np.testing.assert_allclose(looked.table.grad, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        looked.table.mul_(1.2)
        moved = weight + 0.3 * factors
    looked.look_up(moved)
    table = looked.table.detach().numpy()
    gaps = ((moved.numpy().reshape(-1, 1, 4).astype(np.float64) - table) ** 2).sum(2)
    np.testing.assert_array_equal(looked.indices.numpy().ravel(), gaps.argmin(1))
    np.testing.assert_allclose(decode(looked.code(coded)), looked(moved).detach(), rtol=1e-3, atol=1e-5)


def test_straight_through_training_lowers_the_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RATE", 1e-3)  # a network this small has larger weights
    outputs = torch.from_numpy(embed(teacher(), TEXTS))
    lesson = claim.Lesson(teacher(), tuple(TEXTS), outputs, 1.5, 0)
    made, losses = claim.by_straight(lesson, plain())
    assert len(losses) > claim.LOOKUPS
    probe = make_probe(teacher(), TEXTS)
    before, after = (measure_network(probe, with_codes(teacher(), held)) for held in (plain(), made))
    assert after < 0.95 * before
    assert size(made) == pytest.approx(size(plain()), rel=0.02)
    assert not any("parametrizations" in name for name, _ in teacher().model.named_parameters())


def test_what_the_arms_of_a_seed_share_is_made_once_and_the_trained_codes_are_measured() -> None:
    from test_trained_claims import bench

    given: list[dict[str, Coded]] = []

    def train(lesson: claim.Lesson, held: dict[str, Coded]) -> tuple[dict[str, Coded], tuple[float, ...]]:
        given.append(dict(held))
        return {name: PlainCodebook().code(decode(code) * 0.5, statistics(*code.shape), Setting(2, 4))
                for name, code in held.items()}, (1.0, 0.5)  # fmt: skip

    own = claim.Tuning(bench())
    arms = {arm.label: replace(arm, train=train) if isinstance(arm, claim.TrainedArm) and arm.train else arm
            for arm in claim.CLAIM.arms}  # fmt: skip
    points = {label: own.measure(arm, Point(label, 0.1, 0), claim.observe) for label, arm in arms.items()}
    assert len(given) == 3
    assert all(one[name] is own.given[0][name] for one in given for name in one)
    assert list(own.outputs) == [0]
    assert points[claim.GIVEN]["losses"] == []
    assert points[claim.PV]["losses"] == [1.0, 0.5]
    # Weights of half the size are another network: what is measured is what was trained.
    assert points[claim.PV]["nats"] != points[claim.GIVEN]["nats"]
    assert points[claim.PV]["nats"] == points[claim.TABLES]["nats"]
    assert points[claim.PV]["calibration"] != points[claim.GIVEN]["calibration"]
