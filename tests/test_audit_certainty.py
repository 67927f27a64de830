"""Calibration, selective accuracy and the linear probes of the transfer card, against scikit-learn and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.calibration import calibration_curve
from sklearn.linear_model import RidgeCV
from sklearn.metrics import brier_score_loss, log_loss

from isthmus.audit.calibration import ReliabilityBin, debiased_square, fit_temperature, measure_calibration, reliability
from isthmus.audit.levels import Levels, fit_levels
from isthmus.audit.ridge import fit_ridge
from isthmus.audit.selective import measure_selective, risk_coverage
from isthmus.audit.transfer import TransferSet, measure_transfer
from isthmus.errors import BadInput

Array = np.ndarray[Any, Any]


def calibrated(count: int, seed: int, sharpen: float = 1.0) -> tuple[Array, Array]:
    """Return two-class probabilities that are right as often as they say, or sharpened, and the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, count)
    labels = (rng.random(count) < special.expit(logits)).astype(int)
    positive = special.expit(sharpen * logits)
    return np.stack([1 - positive, positive], axis=1), labels


def test_reliability_is_scikit_learns_curve() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1000)
    right = (rng.random(1000) < confidence**2).astype(float)
    curve = reliability(confidence, right, 10)
    shares, means = calibration_curve(right, confidence, n_bins=10, strategy="quantile")
    assert [part.confidence for part in curve] == pytest.approx(means.tolist())
    assert [part.accuracy for part in curve] == pytest.approx(shares.tolist())
    assert sum(part.count for part in curve) == 1000


def test_ties_stay_in_one_bin() -> None:
    confidence = np.array([0.5] * 70 + [0.9] * 30)
    curve = reliability(confidence, np.ones(100), 10)
    assert [(part.confidence, part.count) for part in curve] == [(pytest.approx(0.5), 70), (pytest.approx(0.9), 30)]


def test_brier_and_nats_are_scikit_learns() -> None:
    probabilities, labels = calibrated(400, 0)
    found = measure_calibration(probabilities, labels)
    # That of two classes counts both, scikit-learn's one of them.
    assert found.brier.value == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]))
    assert found.nll == pytest.approx(log_loss(labels, probabilities))
    shares, means = calibration_curve(
        probabilities.argmax(axis=1) == labels, probabilities.max(axis=1), n_bins=4, strategy="quantile"
    )
    found = measure_calibration(probabilities, labels, bins=4)
    assert found.ece == pytest.approx(np.abs(shares - means).mean())


def test_debiased_square_is_without_bias() -> None:
    """Of calibrated probabilities its mean is 0; of sharpened ones what a million examples have in the same bins."""
    for sharpen, bins in ((1.0, 10), (2.0, 10)):
        drawn = []
        for seed in range(300):
            probabilities, labels = calibrated(200, seed, sharpen)
            drawn.append(square(probabilities, labels, bins))
        truth = square(*calibrated(1_000_000, 999, sharpen), bins)
        error = np.std(drawn, ddof=1) / np.sqrt(len(drawn))
        assert abs(np.mean(drawn) - truth) < 3 * error + 0.05 * truth  # bins of 200 examples are not quite those
        plain = [plain_square(*calibrated(200, seed, sharpen), bins) for seed in range(300)]
        assert np.mean(plain) > truth + 10 * error


def curve_of(probabilities: Array, labels: Array, bins: int) -> tuple[ReliabilityBin, ...]:
    return reliability(probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels) * 1.0, bins)


def square(probabilities: Array, labels: Array, bins: int) -> float:
    return debiased_square(curve_of(probabilities, labels, bins))


def plain_square(probabilities: Array, labels: Array, bins: int) -> float:
    curve = curve_of(probabilities, labels, bins)
    return sum(part.count * (part.accuracy - part.confidence) ** 2 for part in curve) / len(labels)


def test_interval_of_the_calibration_error() -> None:
    sharp = measure_calibration(*calibrated(3000, 0, 3.0)).rms_debiased
    assert 0.05 < sharp.low <= sharp.value <= sharp.high
    held = [measure_calibration(*calibrated(300, seed), seed=seed).rms_debiased.low == 0 for seed in range(12)]
    assert sum(held) >= 9  # of calibrated probabilities the interval reaches 0


def test_temperature_undoes_what_sharpened() -> None:
    probabilities, labels = calibrated(4000, 1, 3.0)
    found = measure_calibration(probabilities, labels)
    assert found.temperature == pytest.approx(3.0, rel=0.12)
    assert found.nll_scaled < found.nll - 0.05
    theirs = optimize.minimize(
        lambda t: log_loss(labels, special.softmax(np.log(probabilities) / t[0], axis=1)), [1.0], method="Nelder-Mead"
    ).x[0]
    assert fit_temperature(np.log(probabilities), labels) == pytest.approx(theirs, rel=1e-3)


def test_risk_coverage_averages_over_orders_of_ties() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    loss = np.array([0.0, 1.0, 0.0, 0.0, 1.0])
    rng = np.random.default_rng(0)
    total = np.zeros(5)
    for _ in range(4000):
        order = np.lexsort((rng.random(5), -confidence))
        total += np.cumsum(loss[order]) / np.arange(1, 6)
    assert risk_coverage(confidence, loss) == pytest.approx(total / 4000, abs=0.02)


def test_selective_measures() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(500)
    loss = (rng.random(500) > confidence).astype(float)
    found = measure_selective(confidence, loss)
    order = np.argsort(-confidence)
    risks = np.cumsum(loss[order]) / np.arange(1, 501)
    assert found.area.value == pytest.approx(risks.mean())
    assert dict(found.accuracy)[0.8] == pytest.approx(1 - risks[399])
    assert dict(found.accuracy)[1.0] == pytest.approx(1 - loss.mean())
    assert found.excess > 0
    assert measure_selective(-loss, loss).excess == pytest.approx(0)
    assert "constant" in measure_selective(np.ones(60), loss[:60]).warnings[0]


def test_proportional_odds_is_the_optimum_of_another_search() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.2, 1200)
    truth = Levels(0.0, 1.0, 8.0, np.array([1.0, 3.0, 5.0]))
    levels = (truth.probabilities(values).cumsum(axis=1) < rng.random((1200, 1))).sum(axis=1)
    fitted = fit_levels(values, levels, 4)
    probabilities = fitted.probabilities(values)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(1200))

    def nats(model: Levels) -> float:
        return -float(np.log(np.maximum(model.probabilities(values)[np.arange(1200), levels], 1e-12)).mean())

    theirs = optimize.minimize(
        lambda x: nats(Levels(0.0, 1.0, x[0], x[1:])), [8.0, 1.0, 3.0, 5.0], method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 4000},
    )  # fmt: skip
    assert nats(fitted) == pytest.approx(theirs.fun, abs=1e-5)
    assert fitted.slope / fitted.scale == pytest.approx(theirs.x[0], rel=0.01)
    with pytest.raises(BadInput, match="the same"):
        fit_levels(np.ones(20), np.arange(20) % 2, 2)


def test_a_level_that_nobody_has_gets_almost_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 500)
    levels = np.where(values + rng.normal(0, 0.5, 500) > 0, 3, 0)
    assert fit_levels(values, levels, 5).probabilities(values)[:, [1, 2, 4]].mean() < 0.01


def test_ridge_is_scikit_learns_leave_one_out() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(3, 2, (60, 30))
    targets = inputs @ rng.normal(0, 1, 30) + rng.normal(0, 8, 60)
    mine = fit_ridge(inputs, targets)
    scaled = (inputs - mine.centre) / mine.scale
    theirs = RidgeCV(alphas=[10.0**power for power in range(-4, 5)]).fit(scaled, targets)
    assert mine.penalty == theirs.alpha_
    assert mine.weights == pytest.approx(theirs.coef_)
    assert mine.predict(inputs) == pytest.approx(theirs.predict(scaled))


def features(count: int, noise: float, seed: int, name: str = "set", classes: int = 3) -> TransferSet:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 2 * count)
    inputs = 2 * np.eye(classes, 6)[labels] + rng.normal(0, 1, (2 * count, 6))
    inputs += noise * np.random.default_rng(seed).normal(0, 1, inputs.shape)
    return TransferSet(name, inputs[:count], inputs[count:], labels[:count] * 1.0, labels[count:] * 1.0, classes)


def test_transfer_card_sees_worse_features() -> None:
    card = measure_transfer(
        ["original", "near", "far"],
        [[features(400, 0, 1)], [features(400, 1, 2)], [features(400, 4, 3)]],
        [0.9, 0.8, 0.3],
    )
    cells = {(cell.network, cell.column): cell for cell in card.cells}
    assert {column for _, column in cells} == {"many-shot", "few-shot 5", "few-shot 20", "calibration error"}
    far = cells["far", "many-shot"]
    assert far.change is not None
    assert far.change.high < 0
    assert far.change.value == pytest.approx(far.value.value - cells["original", "many-shot"].value.value)
    assert cells["original", "few-shot 5"].value.value < cells["original", "many-shot"].value.value
    assert cells["original", "many-shot"].change is None
    assert {row.column: row.correlation for row in card.correlations}["many-shot"] == pytest.approx(1.0)
    assert measure_transfer(["a", "b"], [[features(100, 0, 1)]] * 2, [1.0, 0.5]).correlations == ()


def test_transfer_of_pairs_is_spearman() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 1, (300, 5))
    scores = inputs[:, 0] + 0.1 * rng.normal(0, 1, 300)
    data = TransferSet("pairs", inputs[:200], inputs[200:], scores[:200], scores[200:], 0)
    card = measure_transfer(["one"], [[data]])
    values = {cell.column: cell.value.value for cell in card.cells}
    from scipy import stats

    predicted = fit_ridge(inputs[:200], scores[:200]).predict(inputs[200:])
    assert values["many-shot"] == pytest.approx(stats.spearmanr(predicted, scores[200:]).statistic)
    assert set(values) == {"many-shot", "few-shot 32", "few-shot 128"}


def test_rare_classes_and_wrong_sets_are_said() -> None:
    short = features(60, 0, 1)
    labels = short.train_targets.copy()
    labels[labels == 2] = 1
    labels[:3] = 2
    card = measure_transfer(["one"], [[TransferSet("short", short.train, short.test, labels, short.test_targets, 3)]])
    assert "rarest class has 3 training examples, so no few-shot 5, 20" in card.warnings[0]
    with pytest.raises(BadInput, match="same sets"):
        measure_transfer(["a", "b"], [[short], []])
    broken = TransferSet("broken", short.train * np.nan, short.test, labels, short.test_targets, 3)
    with pytest.raises(BadInput, match="transfer broken: training features: not a finite number"):
        measure_transfer(["a"], [[broken]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, y: measure_calibration(p, y[:-1]), "labels: shape"),
        (lambda p, y: measure_calibration(p * np.nan, y), "not a finite number"),
        (lambda p, y: measure_calibration(p[:5], y[:5]), "too few"),
        (lambda p, y: measure_selective(p[:, 0], y[:-2]), "loss: shape"),
        (lambda p, y: measure_selective([], []), "no examples"),
    ],
)
def test_bad_input_is_one_clear_line(call: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call(*calibrated(100, 0))
