"""Superfluous information against closed forms, and the bound against gaps that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy

from isthmus.errors import BadInput
from isthmus.information.gaussian import Gaussian
from isthmus.information.generalization import SHARES, gap_bound, gap_rate
from isthmus.information.superfluous import superfluous_information


def test_superfluous_information_of_gaussians_within_labels() -> None:
    """Within a label a Gaussian channel whose noise differs by label; that the label moves the layer does not count."""
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.25).astype(int)
    x = rng.normal(size=4000)
    size = np.where(labels == 1, 0.25, 1.0)
    layer = x + size * rng.normal(size=4000) + 5 * labels
    expected = 0.5 * (0.75 * math.log(2) + 0.25 * math.log(1 + 16))
    found = superfluous_information(x[:, None], layer[:, None], labels, estimator=Gaussian())
    assert found.nats == pytest.approx(expected, abs=0.05)
    assert found.interval is not None
    assert found.interval[0] < expected < found.interval[1]
    clean = superfluous_information(x[:, None], (x + 5 * labels)[:, None], labels, noise=0.5)
    assert clean.nats == pytest.approx(0.5 * math.log(1 + 4), abs=0.05)
    assert clean.samples == 4000


def test_superfluous_information_says_where_it_has_no_value() -> None:
    x, labels = np.random.default_rng(0).normal(size=(400, 2)), np.arange(400) % 2
    found = superfluous_information(x, 2 * x, labels, estimator="ksg")
    assert (found.nats, found.interval) == (None, None)
    assert "label 0: column" in (found.not_estimable or "")


def by_hand(
    counts: dict[tuple[int, int], int], losses: dict[tuple[int, int], float], nats: float, doubt: float
) -> float:
    samples = sum(counts.values())
    best = math.inf
    for share in SHARES:
        scale = math.log(len({y for _, y in counts}) * 20) + nats / share + doubt
        total = share
        for cell, count in counts.items():
            root = math.sqrt(count / samples + scale / (2 * samples)) + math.sqrt(scale / (2 * samples))
            total += losses[cell] * min(root, 1.0) * math.sqrt(2 * scale / samples)
        best = min(best, total)
    alone = sum(count == 1 for count in counts.values()) / samples
    return best + min(1.0, alone + (math.sqrt(8) + math.sqrt(3)) * math.sqrt((math.log(6) + doubt) / samples))


@pytest.mark.parametrize("encoder", [0.0, 3.0])
def test_the_bound_is_the_formula_written_out(encoder: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 50_000)
    codes = (labels + 2 * (rng.random(50_000) < 0.1)) % 4
    table = {(code, label): 0.01 * code + 0.02 * label for code in range(4) for label in range(2)}
    losses = np.array([table[int(code), int(label)] for code, label in zip(codes, labels, strict=True)])
    doubt = (encoder + math.log(2)) / 0.1 if encoder else math.log(10)
    counts = {
        (int(code), int(label)): int(((codes == code) & (labels == label)).sum())
        for code, label in {(int(code), int(label)) for code, label in zip(codes, labels, strict=True)}
    }
    found = gap_bound(codes, labels, losses, superfluous=0.33, encoder=encoder, loss_range=1.0, confidence=0.9)
    assert found.value == pytest.approx(by_hand(counts, table, 0.33, doubt))
    assert found.value == pytest.approx(found.typical + found.missing + found.atypical)
    assert found.trivial == pytest.approx(1 - losses.mean())
    assert found.vacuous is None


def test_no_gap_exceeds_the_bound_even_of_a_decoder_that_has_seen_the_samples() -> None:
    """The decoder is wrong wherever the training set has fewer samples of a cell than expected: the worst there is."""
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.ones(5), size=2)
    nats = float(np.mean([entropy(row) for row in given]))
    truth = given / 2
    gaps, bounds = [], []
    for _ in range(40):
        drawn = rng.choice(10, size=20_000, p=truth.ravel())
        labels, codes = drawn // 5, drawn % 5
        share = np.bincount(drawn, minlength=10).reshape(2, 5) / len(drawn)
        loss = 0.1 * (share < truth)
        gaps.append(float(((truth - share) * loss).sum()))
        bounds.append(
            gap_bound(codes, labels, loss[labels, codes], superfluous=nats, encoder=0.0, loss_range=1.0).value
        )
    assert 0 < max(gaps) < min(bounds) < 0.5


def test_more_information_of_either_kind_or_fewer_samples_loosen_it() -> None:
    codes, labels = np.arange(100_000) % 4, np.arange(100_000) % 2
    losses = np.full(100_000, 0.01)

    def bound(superfluous: float, encoder: float, rows: int = 100_000) -> float:
        return gap_bound(
            codes[:rows], labels[:rows], losses[:rows], superfluous=superfluous, encoder=encoder, loss_range=1.0
        ).value

    assert bound(0.7, 0.0) < bound(1.4, 0.0)
    assert bound(0.7, 0.0) < bound(0.7, 5.0) < bound(0.7, 50.0)
    assert bound(0.7, 0.0) < bound(0.7, 0.0, 10_000)
    assert gap_rate(0.7, 5.0, 100) == pytest.approx(math.sqrt(6.7 / 100))


def test_it_says_when_it_is_vacuous_and_why() -> None:
    labels = np.arange(500) % 2
    found = gap_bound(np.arange(500), labels, np.zeros(500), superfluous=5.0, encoder=0.0, loss_range=1.0)
    assert found.missing == 1.0
    assert "unseen cells" in (found.vacuous or "")


def test_bad_input() -> None:
    codes, labels, losses = np.arange(20) % 3, np.arange(20) % 2, np.zeros(20)
    good = {"superfluous": 1.0, "encoder": 0.0, "loss_range": 1.0}
    x = np.random.default_rng(0).normal(size=(20, 2))
    for call, words in (
        (lambda: gap_bound(codes[:9], labels, losses, **good), "one of each"),
        (lambda: gap_bound(codes / 2, labels, losses, **good), "give integers"),
        (lambda: gap_bound(codes, labels, losses + 2, **good), "losses from 2 to 2"),
        (lambda: gap_bound(codes, labels, losses + math.nan, **good), "losses from nan"),
        (lambda: gap_bound(codes, labels, losses, **{**good, "encoder": -1.0}), "encoder information -1"),
        (lambda: gap_bound(codes, labels, losses, **{**good, "loss_range": 0.0}), "loss range 0"),
        (lambda: gap_bound(codes, labels, losses, confidence=1.0, **good), "confidence 1"),
        (lambda: gap_rate(1.0, 1.0, 0), "0 samples"),
        (lambda: superfluous_information(x, x[:5], labels), "give one of each"),
        (lambda: superfluous_information(x, x, labels / 2), "one integer"),
        (lambda: superfluous_information(x, x, (np.arange(20) > 14).astype(int)), "label 1 has 5 samples"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
