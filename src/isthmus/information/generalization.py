"""How far the loss on new samples can be above that on the training set, by what a layer keeps of its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput

Floats = npt.NDArray[np.float64]

SHARES = np.geomspace(0.001, 0.5, 10)
"""Of the samples that may be atypical; chosen beforehand, so that the best may be taken afterwards."""


@dataclass(frozen=True)
class GapBound:
    """An upper bound on the expected loss minus the mean training loss, and what it is made of.

    Parameters
    ----------
    value : float
        In units of the loss: ``typical + missing + atypical``.
    typical, missing, atypical : float
        From the cells that the training set has seen, from those that it has not, and from codes too rare to count.
    share : float
        Of samples that were counted as atypical.
    trivial : float
        What every gap is below: the range of the loss less the mean training loss.
    vacuous : str or None
        Why the bound says nothing, naming the largest part; None where it does say something.
    """

    value: float
    typical: float
    missing: float
    atypical: float
    share: float
    trivial: float
    vacuous: str | None


def gap_rate(superfluous: float, encoder: float, samples: int) -> float:
    """Return ``sqrt((I(X; Z | Y) + I(encoder; S) + 1) / n)``: how the gap scales, without constants. It is no bound.

    Kawaguchi et al. 2023 (arXiv 2305.18887), Theorem 2 in its asymptotic form: for ranking layers and networks.

    Parameters
    ----------
    superfluous, encoder : float
        Nats: what the layer keeps of the input beyond the label, and what its weights know of the training set.
    samples : int
        Of the training set.

    Raises
    ------
    BadInput
        If an information is below 0 or not finite, or there are no samples.
    """
    _check(superfluous, encoder)
    if samples < 1:
        raise BadInput(f"{samples} samples; give those of the training set")
    return float(np.sqrt((superfluous + encoder + 1) / samples))


def gap_bound(
    codes: npt.ArrayLike,
    labels: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    superfluous: float,
    encoder: float,
    loss_range: float,
    confidence: float = 0.95,
) -> GapBound:
    """Return a bound on the gap between expected and training loss that holds with the given probability.

    The argument of Kawaguchi et al. 2023, Theorems 1 and 2, with every constant explicit, for a code Z of finitely many
    values that the loss depends on only along with Y (quantise a layer first; the cell's largest loss is taken):

    - Of codes with ``P(z | y) >= exp(-I / g)`` there are at most ``exp(I / g)`` for each of ``|Y|`` labels, ``I = H(Z |
      Y)``, which is ``I(X; Z | Y)`` for a code that is a function of the input. The others have mass ``g`` at most.
    - For each of those cells ``P - P' <= sqrt(2 P L / n)`` (Chernoff), with ``L = ln |Y| + I / g + ln(2 r / q)``; hence
      ``P <= (sqrt(P' + L / 2n) + sqrt(L / 2n))^2``. P' is the share of the training set, r the number of values of g
      that are tried.
    - Cells never seen have mass ``G + (2 sqrt 2 + sqrt 3) sqrt(ln(6 / q) / n)`` at most, G the share of samples
      that are alone in their cell (McAllester and Schapire 2000, Theorem 9).
    - Would the encoder not depend on the training set, ``q = 1 - confidence``; as it does, ``ln(1 / q) = (I(encoder;
      S) + ln 2) / (1 - confidence)`` (Bassily et al. 2018, Theorem 8).

    Parameters
    ----------
    codes : array_like of int, shape ``(samples,)`` or ``(samples, places)``
        Of the training set.
    labels : array_like of int, shape ``(samples,)``
        Each label there can be is among them.
    losses : array_like, shape ``(samples,)``
        From 0 to ``loss_range``.
    superfluous : float
        ``I(X; Z | Y)`` in nats, or an upper bound on it: take the upper end of an interval.
    encoder : float
        What the weights up to the layer share with the training set, in nats, or an upper bound: the bits of the
        weights times ln 2 always is one; 0 for weights fixed before the training set was drawn.
    loss_range : float
        The largest loss there can be.
    confidence : float

    Raises
    ------
    BadInput
        If lengths differ, a loss is out of range, or a number is.
    """
    _check(superfluous, encoder)
    if not 0 < confidence < 1:
        raise BadInput(f"confidence {confidence:g}; give a probability between 0 and 1")
    cells, counts, worst, mean = _cells(codes, labels, losses, loss_range)
    samples, classes = int(counts.sum()), len(np.unique(cells[:, -1]))
    left = 1 - confidence
    doubt = (encoder + np.log(2)) / left if encoder > 0 else -np.log(left)
    alone = float((counts == 1).sum()) / samples
    unseen = alone + (2 * np.sqrt(2) + np.sqrt(3)) * np.sqrt((np.log(6) + doubt) / samples)
    missing = loss_range * min(1.0, float(unseen))
    found: list[tuple[float, float, float]] = []
    for share in SHARES:
        scale = np.log(classes) + superfluous / share + np.log(2 * len(SHARES)) + doubt
        half = scale / (2 * samples)
        upper = np.minimum(1.0, np.square(np.sqrt(counts / samples + half) + np.sqrt(half)))
        found.append((float((worst * np.sqrt(2 * upper * scale / samples)).sum()), loss_range * share, float(share)))
    typical, atypical, share = min(found, key=lambda one: one[0] + one[1])
    value, trivial = typical + missing + atypical, loss_range - mean
    reason = None
    if value >= trivial:
        parts = {"cells that were seen": typical, "unseen cells": missing, "atypical codes": atypical}
        name = max(parts, key=lambda one: parts[one])
        reason = f"{value:.3g} where no gap exceeds {trivial:.3g}; most of it, {parts[name]:.3g}, is from {name}"
    return GapBound(value, typical, missing, atypical, share, trivial, reason)


def _cells(
    codes: npt.ArrayLike, labels: npt.ArrayLike, losses: npt.ArrayLike, loss_range: float
) -> tuple[npt.NDArray[np.int64], Floats, Floats, float]:
    """Return the cells, how many samples each has, its largest loss, and the mean loss."""
    symbols, classes, values = np.asarray(codes), np.asarray(labels), np.asarray(losses, dtype=np.float64)
    symbols = symbols[:, None] if symbols.ndim == 1 else symbols
    if symbols.ndim != 2 or symbols.dtype.kind not in "iub" or classes.dtype.kind not in "iub":
        raise BadInput(f"codes of shape {symbols.shape} and kind {symbols.dtype}; give integers, and integer labels")
    if classes.shape != values.shape or values.shape != symbols.shape[:1] or not len(values):
        raise BadInput(f"{len(symbols)} codes, {classes.shape} labels, {values.shape} losses; give one of each")
    if not (np.isfinite(loss_range) and loss_range > 0):
        raise BadInput(f"loss range {loss_range:g}; give the largest loss there can be")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > loss_range:
        raise BadInput(f"losses from {values.min():g} to {values.max():g}; give finite ones from 0 to {loss_range:g}")
    cells, which, counts = np.unique(
        np.column_stack([symbols, classes]), axis=0, return_inverse=True, return_counts=True
    )
    worst = np.zeros(len(cells))
    np.maximum.at(worst, which.ravel(), values)
    return cells, counts.astype(np.float64), worst, float(values.mean())


def _check(superfluous: float, encoder: float) -> None:
    for name, value in (("superfluous", superfluous), ("encoder", encoder)):
        if not (np.isfinite(value) and value >= 0):
            raise BadInput(f"{name} information {value!r}; give nats, 0 or more")
