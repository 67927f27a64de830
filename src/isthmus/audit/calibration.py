"""Calibration: whether a network is right as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, Integers, check_finite, check_labels, check_probabilities, few
from isthmus.audit.resampling import Estimate, percentile

BINS = 15
_RESAMPLES = 500


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of the reliability curve: mean confidence, accuracy, and how many examples."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """How far a network's confidence is from its accuracy.

    Parameters
    ----------
    name : str
    accuracy, confidence : float
        Means over the examples; confidence is the probability of the chosen class.
    ece : float
        Expected calibration error over bins of equal mass: ``sum_b n_b/n |accuracy_b - confidence_b|``.
    rms_debiased : Estimate
        The root of the mean squared error over the same bins without what sampling alone adds to it; 0 where that is
        all there is. Its interval is a bootstrap's of the square, moved so that the resamples' mean is the value,
        since drawing again adds sampling once more.
    brier : Estimate
        ``mean sum_c (p_c - y_c)**2``, 0 to 2 (Brier 1950).
    nll : float
        Mean negative log-likelihood, nats.
    temperature : float
        What logits must be divided by for the least nats; above 1 for a network too sure of itself.
    nll_scaled : float
        Nats with a temperature fitted on the other half of the examples.
    curve : tuple of ReliabilityBin
        Least confident first.
    """

    name: str
    accuracy: float
    confidence: float
    ece: float
    rms_debiased: Estimate
    brier: Estimate
    nll: float
    temperature: float
    nll_scaled: float
    curve: tuple[ReliabilityBin, ...]
    warnings: tuple[str, ...]


def measure_calibration(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, name: str = "", bins: int = BINS, seed: int = 0
) -> Calibration:
    """Measure one network's calibration.

    Parameters
    ----------
    probabilities : array (examples, classes)
    labels : array (examples,)
    bins : int
        Of equal mass; fewer where there are less than 10 examples a bin.
    seed : int

    Raises
    ------
    BadInput
        If the arrays are not probabilities and labels of the same examples.

    Notes
    -----
    The squared gap of a bin is too large by the variance of its accuracy, ``accuracy (1 - accuracy) / (n_b - 1)``;
    with that taken off, the weighted mean over bins is without bias (Kumar et al. 2019, *Verified Uncertainty
    Calibration*, section 4). The absolute gap of ``ece`` has no such estimate: compare it only at equal numbers of
    examples. Equal confidences stay in one bin.
    """
    what = f"probabilities of {name or 'the network'}"
    array = check_probabilities(check_finite(probabilities, what, (None, None)), what)[0]
    count, classes = array.shape
    truth = check_labels(labels, count, classes)
    confidence, right = array.max(axis=1), (array.argmax(axis=1) == truth).astype(np.float64)
    bins = max(1, min(bins, count // 10))
    curve = reliability(confidence, right, bins)
    rng = np.random.default_rng(seed)
    drawn = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        chosen = rng.integers(0, count, count)
        drawn[number] = debiased_square(reliability(confidence[chosen], right[chosen], bins))
    squares = brier_scores(array, truth)
    means = squares[rng.integers(0, count, (_RESAMPLES, count))].mean(axis=1)
    square = debiased_square(curve)
    warnings = list(few(count))
    if len(curve) < bins:
        warnings.append(f"{name or 'probabilities'}: ties leave {len(curve)} distinct bins of {bins}")
    logs = np.log(np.clip(array, 1e-12, None))
    return Calibration(
        name=name,
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=sum(part.count * abs(part.accuracy - part.confidence) for part in curve) / count,
        rms_debiased=_rooted(percentile(square, drawn - drawn.mean() + square, count)),
        brier=percentile(float(squares.mean()), means, count),
        nll=_nll(logs, truth),
        temperature=fit_temperature(logs, truth),
        nll_scaled=_crossed(logs, truth, rng),
        curve=curve,
        warnings=tuple(warnings),
    )


def brier_scores(probabilities: Array, labels: Integers) -> Array:
    """Return each example's Brier score, shape (examples,)."""
    return np.asarray(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1))


def reliability(confidence: Array, right: Array, bins: int) -> tuple[ReliabilityBin, ...]:
    """Return the reliability curve over bins of equal mass; equal confidences stay together.

    Parameters
    ----------
    confidence, right : array (examples,)
    bins : int
    """
    order = np.argsort(confidence, kind="stable")
    ordered, hits = confidence[order], right[order]
    starts = np.unique(np.searchsorted(ordered, ordered[np.arange(bins) * len(ordered) // bins], side="left"))
    sizes = np.diff(np.append(starts, len(ordered)))
    means, shares = np.add.reduceat(ordered, starts) / sizes, np.add.reduceat(hits, starts) / sizes
    return tuple(
        ReliabilityBin(float(mean), float(share), int(size))
        for mean, share, size in zip(means, shares, sizes, strict=True)
    )


def debiased_square(curve: tuple[ReliabilityBin, ...]) -> float:
    """Return the squared calibration error without sampling's share; below 0 where it is less than sampling's."""
    total = 0.0
    for part in curve:
        variance = part.accuracy * (1 - part.accuracy) / max(part.count - 1, 1)
        total += part.count * ((part.accuracy - part.confidence) ** 2 - variance)
    return total / sum(part.count for part in curve)


def _rooted(square: Estimate) -> Estimate:
    value, low, high = (max(0.0, end) ** 0.5 for end in (square.value, square.low, square.high))
    return Estimate(value, low, high, square.count)


def fit_temperature(logits: Array, labels: Integers) -> float:
    """Return the temperature of least nats (Guo et al. 2017), within 1/100 and 100.

    Parameters
    ----------
    logits : array (examples, classes)
        Or log-probabilities, which differ from logits by a constant a row.
    labels : array (examples,)
    """
    from scipy import optimize

    found = optimize.minimize_scalar(
        lambda power: _nll(logits / np.exp(power), labels), bounds=(-np.log(100), np.log(100)), method="bounded"
    )
    return float(np.exp(found.x))


def _nll(logits: Array, labels: Integers) -> float:
    from scipy.special import logsumexp

    return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def _crossed(logs: Array, labels: Integers, rng: np.random.Generator) -> float:
    order = rng.permutation(len(labels))
    halves = order[::2], order[1::2]
    total = 0.0
    for fit, held in (halves, halves[::-1]):
        total += len(held) * _nll(logs[held] / fit_temperature(logs[fit], labels[fit]), labels[held])
    return total / len(labels)
