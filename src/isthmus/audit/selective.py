"""Selective accuracy: how well a network does on the examples that it is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, check_finite, few
from isthmus.audit.resampling import Estimate, percentile
from isthmus.errors import BadInput

COVERAGES = (0.5, 0.8, 0.9, 1.0)
_POINTS = 50
_RESAMPLES = 500


@dataclass(frozen=True)
class Selective:
    """The risk-coverage curve of one network.

    Parameters
    ----------
    name : str
    area : Estimate
        Mean risk over all coverages (AURC; Geifman and El-Yaniv 2017); less is better.
    excess : float
        The area above that of a network with the same losses that knows which are least (E-AURC).
    accuracy : tuple of (float, float)
        Coverage, and one less the risk there, at 50, 80, 90 and 100 % coverage.
    curve : tuple of (float, float)
        Coverage and risk, at most 50 points.
    """

    name: str
    area: Estimate
    excess: float
    accuracy: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]
    warnings: tuple[str, ...]


def risk_coverage(confidence: Array, loss: Array) -> Array:
    """Return the mean loss of the 1, 2, ... most confident examples, shape (examples,).

    Examples of equal confidence are taken in every order alike: each counts with the mean loss of all of them, which
    is the expectation over orders.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered, losses = confidence[order], loss[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    level = np.repeat(np.add.reduceat(losses, starts) / sizes, sizes)
    return np.asarray(np.cumsum(level) / np.arange(1, len(level) + 1), dtype=np.float64)


def measure_selective(confidence: npt.ArrayLike, loss: npt.ArrayLike, *, name: str = "", seed: int = 0) -> Selective:
    """Measure how loss falls as a network keeps to what it is surest of.

    Parameters
    ----------
    confidence, loss : array (examples,)
        The loss is 0 or 1 for errors; any other loss not below 0 serves too.
    seed : int

    Raises
    ------
    BadInput
        If they are not numbers of the same examples.
    """
    sure = check_finite(confidence, "confidence", (None,))
    losses = check_finite(loss, "loss", (len(sure),))
    count = len(sure)
    if not count:
        raise BadInput("confidence: no examples; give some")
    warnings = few(count)
    if sure.min() == sure.max():
        warnings += (f"{name or 'confidence'}: constant, so nothing can be selected by it",)
    risks = risk_coverage(sure, losses)
    rng = np.random.default_rng(seed)
    drawn = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        chosen = rng.integers(0, count, count)
        drawn[number] = risk_coverage(sure[chosen], losses[chosen]).mean()
    area = float(risks.mean())
    places = np.unique(np.linspace(0, count - 1, min(_POINTS, count)).round().astype(int)).tolist()
    return Selective(
        name=name,
        area=percentile(area, drawn, count),
        excess=area - float(risk_coverage(-losses, losses).mean()),
        accuracy=tuple((share, 1 - float(risks[max(1, round(share * count)) - 1])) for share in COVERAGES),
        curve=tuple(((place + 1) / count, float(risks[place])) for place in places),
        warnings=warnings,
    )
