"""Claims about what narrowing forgets: their populations on made-up images, their rules on made-up figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from claims import cie_audit, compressed_nets_forget, populations
from claims.coding import Point
from claims.populations import AGAIN, ARMS, CLASSES, NARROWED, SHARES, SIDE, SMALL
from claims.trials import Trials
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED

from isthmus.audit.exemplars import modal_labels
from isthmus.cost.measure import count_parameters

CLAIMS = (cie_audit, compressed_nets_forget)


def drawn(count: int = 400) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images (count, 28, 28) whose class is the row that is bright, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    pixels = rng.integers(0, 150, (count, SIDE, SIDE)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label + 2] = 200
    return pixels, labels


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of 16 units, three a population, trained for two epochs on made-up images."""
    small = {"TRAINED": 200, "HELD": 100, "NETWORKS": 3, "HIDDEN": 16, "EPOCHS": 2, "EPOCHS_AFTER": 1}
    for module in (populations, *CLAIMS):
        for name, value in small.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(populations, "images", lambda seed: drawn())
    populations.originals.cache_clear()
    yield
    populations.originals.cache_clear()


def test_narrowed_networks_are_small_and_keep_the_largest_units(tiny: None) -> None:
    torch.manual_seed(0)
    model = populations.Classifier((16, 16)).eval()
    whole = count_parameters(model)
    assert whole == 785 * 16 + 17 * 16 + 17 * 10
    small = populations.narrowed(model, 0.5)
    width = populations.widths(small)[0]
    assert populations.widths(small) == (width, width)
    taken = [785 * units + (units + 1) * units + (units + 1) * 10 for units in (width, width + 1)]
    assert taken[0] == count_parameters(small) <= 0.5 * whole < taken[1]
    first, second = model.layers[1], model.layers[3]
    energy = (first.weight**2).sum(1) + first.bias**2 + (second.weight**2).sum(0)
    kept = sorted(energy.argsort(descending=True)[:width].tolist())
    assert torch.equal(small.layers[1].weight, first.weight[kept])
    assert populations.widths(populations.narrowed(model, 1.0)) == (16, 16)


def test_populations_are_the_same_again(tiny: None) -> None:
    for arm, share in ((NARROWED, 0.5), (AGAIN, 1.0), (SMALL, 0.5)):
        once, again = (populations.population(cie_audit.plant, Point(arm, share, 0)) for _ in range(2))
        held = populations.originals(cie_audit.plant, 0).data.held
        assert np.array_equal(populations.probabilities(once, held), populations.probabilities(again, held))
        assert len({tuple(next(iter(model.parameters()))[0, :9].tolist()) for model in once}) == 3
        assert (count_parameters(once[0]) < count_parameters(populations.fresh(held, 0))) is (share < 1)


def test_what_is_planted(tiny: None) -> None:
    pixels, labels = drawn()
    turned = cie_audit.plant(pixels, labels, 0)
    assert 0 < turned.held.planted.sum() < 20
    for place in (int(turned.held.planted.argmax()), int(turned.held.planted.argmin())):
        image = pixels[place][::-1, ::-1] if turned.held.planted[place] else pixels[place]
        assert np.array_equal(turned.held.pixels[place, 0].numpy(), image.astype(np.float32) / 255)
    made = compressed_nets_forget.plant(pixels, labels, 1)
    assert np.array_equal(made.held.labels, labels[:100])
    assert np.array_equal(made.held.planted, labels[:100] == 5)
    clean = made.train.labels[~made.train.planted]
    assert (clean == 5).sum() < 0.3 * (labels[100:] == 5).sum()
    bright = made.train.pixels[:, 0].mean(2).argmax(1).numpy() // 2 - 1  # what the class truly is
    assert np.array_equal(bright != made.train.labels, made.train.planted)
    assert 0 < made.train.planted.sum() < 30


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_population_is_made_and_measured(tiny: None, claim: Any) -> None:
    found = claim.measure(Point(NARROWED, 0.1, 0))
    assert all(np.isfinite(value) for value in found.values())
    assert found["params"] <= 0.1
    held = populations.originals(claim.plant, 0).data.held
    first = populations.originals(claim.plant, 0).models
    after = populations.population(claim.plant, Point(NARROWED, 0.1, 0))
    ours, theirs = (modal_labels(populations.probabilities(models, held)) for models in (first, after))
    assert found["exemplars"] == (ours != theirs).mean()
    other = populations.probabilities((populations.originals(claim.plant, 0).other,), held)[0].argmax(1)
    assert found["on_exemplars"] == pytest.approx((other == held.labels)[ours != theirs].mean())
    if claim is cie_audit:
        planted, truth = held.planted, held.labels[held.planted]
        read = [populations.probabilities(models, held)[:, planted].argmax(2) for models in (first, after)]
        errors = [(one != truth).mean() for one in read]
        assert found["group_damage"] == pytest.approx(errors[1] - errors[0])
        assert found["beyond"] == pytest.approx(found["group_damage"] - found["damage"])


# Rules.


def outcomes(claim: Trials, figures: Any) -> list[dict[str, Any]]:
    return [vars(point) | figures(point) for point in claim.points(claim.seeds)]


@pytest.mark.parametrize(("sign", "verdict"), [(1, HOLDS), (-1, FAILS)])
def test_rules_of_forgetting(sign: int, verdict: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        noise, cut = 0.001 * point.seed, 1 - point.level
        own = {
            "on_all": 0.85,
            "on_exemplars": 0.85 - sign * (0.3 + noise),
            "lost": 0.008 if point.level > 0.1 else 0.03,
        }
        chance = 0.05 if point.arm == AGAIN else 0.06 + sign * 0.04 * cut
        planted = {"rare": 0.1 + sign * (0.05 + noise), "not_rare": 0.1, "wrong": 0.1 + sign * 0.02, "not_wrong": 0.1}
        return {**own, **planted, "exemplars": chance + noise}

    parts = compressed_nets_forget.TRIALS.parts(outcomes(compressed_nets_forget.TRIALS, figures))
    assert [part["verdict"] for part in parts] == [verdict] * 5
    assert compressed_nets_forget.cheap(outcomes(compressed_nets_forget.TRIALS, figures)) == [0.5, 0.25]
    assert "at 25%" in parts[3]["summary"]


def test_what_costs_more_than_a_point_everywhere_is_not_tested() -> None:
    def figures(point: Point) -> dict[str, Any]:
        return {"lost": 0.02, "rare": 0.5, "not_rare": 0.1, "exemplars": 0.1, "on_all": 0.8, "on_exemplars": 0.4}

    found = compressed_nets_forget.TRIALS.parts(outcomes(compressed_nets_forget.TRIALS, figures))
    assert found[3]["verdict"] == found[4]["verdict"] == UNTESTED


@pytest.mark.parametrize(("worst", "verdicts"), [(3, [HOLDS, HOLDS, HOLDS, HOLDS]), (2, [HOLDS, MIXED, MIXED, MIXED])])
def test_rules_of_the_audit(worst: int, verdicts: list[str]) -> None:
    """The minority pays more at each share, or at all but the smallest."""

    def figures(point: Point) -> dict[str, Any]:
        step = SHARES.index(point.level)
        more = 0.02 * step if step <= worst else -0.01
        seen = step == 3 and (worst == 3 or point.seed == 0)
        own = {"group_damage": 0.01 * step + more + 0.0001 * point.seed, "damage": 0.01 * step, "found": float(seen)}
        return {**own, "beyond": more, "p": 0.01, "on_all": 0.8, "on_exemplars": 0.5 + 0.001 * point.seed}

    parts = cie_audit.TRIALS.parts(outcomes(cie_audit.TRIALS, figures))
    assert [part["verdict"] for part in parts] == verdicts


def test_arms_are_those_of_the_populations() -> None:
    assert all(claim.TRIALS.arms == ARMS for claim in CLAIMS)
