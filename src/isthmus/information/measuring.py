"""Mutual information of two variables: one function for every estimator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from isthmus.errors import BadInput
from isthmus.information.auto import MORE
from isthmus.information.determinism import determined
from isthmus.information.noisy import Noisy
from isthmus.information.registry import Estimator, get
from isthmus.information.result import Estimate, Information, Null, Side
from isthmus.information.samples import read_pair

PERMUTED = 1000
"""Samples on which an estimator without a cheap way of its own is permuted."""
ROOM = 1.0
"""Nats below its ceiling from which on an estimate says no more than that there is much."""
COMPARED = ("cauchy-schwarz", "matrix-entropy")
"""Not Shannon's information: finite for a function, and their blocks are not comparable with the whole."""


def mutual_information(
    x: npt.ArrayLike | torch.Tensor,
    y: npt.ArrayLike | torch.Tensor,
    *,
    estimator: str | Estimator = "auto",
    noise: float | None = None,
    permutations: int = 19,
    seed: int = 0,
) -> Information:
    """Return the mutual information of two variables in nats.

    Parameters
    ----------
    x, y : array or tensor, shape ``(samples,)`` or ``(samples, dims)``
        Floats are continuous. Integers and booleans are labels (rows of them symbols) where fewer than a fifth of the
        samples are distinct, otherwise numbers. Constant columns and copies are left out and ties broken, with a
        warning.
    estimator : str or Estimator
        A name in ``isthmus.information.ESTIMATORS``, or one with other parameters, such as ``Ksg(neighbours=5)``.
    noise : float or None
        Standard deviation of normal noise that is added to ``y`` first, in its units: ``I(X; Y + N(0, s^2))``, finite
        also where y is a function of x. The default estimator then takes the entropy of the mixture (`Noisy`) if it
        notices that it is.
    permutations : int
        For the null; 0: none. Estimators with a critic have their own number (99), which cost nothing.
    seed : int

    Returns
    -------
    Information
        ``nats``: the estimate, not below 0 where it is an estimate of Shannon's information.

        ``interval``: of the default, see `isthmus.information.auto`; of bounds by a critic, from the value on samples
        that it was not fitted to up to that on samples that it was. Of others: 1.96 standard errors both ways (of the
        mean of what the samples add, or from the spread of eighths of the samples), and towards where the estimate
        moves from halves of the samples to all, by four and a half times as much: the bias that is left if the move
        shrinks to 0.82 of itself at each doubling.

        ``null``: mean and 95 % quantile of the same estimator on permuted samples, and the p-value. Critics are not
        fitted anew: their scores are held against pairs put together at random among the samples that they were not
        fitted to. Other estimators run again on at most 1,000 of the samples, permuted and not.

        ``not_estimable``: the reason, where one side is a function of the other or the samples are too few; ``nats``
        and ``interval`` are then None.

    Raises
    ------
    BadInput
        If a side cannot be read, the sides are unlike in length, the estimator is unknown or takes other kinds of
        sides, or a parameter is out of range.
    """
    # Not the stream of the bare seed: whoever drew the samples with it would get the same noise twice.
    rng = np.random.default_rng([seed, *b"information"])
    if permutations < 0:
        raise BadInput(f"{permutations} permutations; give 0 or more")
    chosen = get(estimator) if isinstance(estimator, str) else estimator
    left, right, notes = read_pair(x, y, rng)
    dims = left.values.shape[1], right.values.shape[1]
    if left.kind == "discrete" and right.kind == "continuous":
        if noise is not None:
            raise BadInput("noise is added to y, and x is discrete; only information of continuous sides needs it")
        left, right = right, left
    blank = Information(None, None, None, chosen.name, len(left.values), dims, notes)
    if _constant(left) or _constant(right):
        return replace(blank, nats=0.0, interval=(0.0, 0.0), warnings=(*notes, "a side is constant: it says nothing"))
    if noise is not None:
        chosen, right = _with_noise(chosen, left, right, noise, rng)
        blank = replace(blank, estimator=chosen.name)
    elif chosen.name not in COMPARED and chosen.name != "noisy" and (reason := determined(left, right)):
        return replace(blank, not_estimable=f"{reason}: information is infinite; give noise=")
    if (left.kind, right.kind) not in chosen.kinds:
        takes = ", ".join("/".join(kinds) for kinds in chosen.kinds)
        raise BadInput(f"{chosen.name} takes {takes}, not {left.kind}/{right.kind}; choose another estimator or auto")
    found = chosen.estimate(left, right, rng)
    shannon = chosen.name not in COMPARED
    reason = found.not_estimable or (_saturated(found, left, right) if shannon else None)
    if reason is not None:
        return replace(blank, not_estimable=reason, warnings=(*notes, *found.warnings))
    interval = found.interval or interval_of(chosen, found, left, right, rng)
    if shannon:
        interval = max(interval[0], 0.0), max(interval[1], 0.0)
    null = null_of(chosen, found, left, right, permutations, rng)
    nats = float(max(found.nats, 0.0) if shannon else found.nats)
    interval = float(interval[0]), float(interval[1])
    return replace(blank, nats=nats, interval=interval, null=null, warnings=(*notes, *found.warnings))


def interval_of(
    estimator: Estimator, found: Estimate, x: Side, y: Side, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the interval of an estimator that states none; see `mutual_information`."""
    size = len(x.values)
    if found.parts is not None:
        error = float(found.parts.std()) / np.sqrt(len(found.parts))
    else:
        blocks = [found.nats, *_values(estimator, x, y, 8, rng)]
        error = float(np.std(blocks[1:], ddof=1)) / np.sqrt(8) if len(blocks) > 2 else float("inf")
    low = high = 1.96 * error
    halves = _values(estimator, x, y, 2, rng)
    rise = found.nats - float(np.mean(halves)) if len(halves) == 2 else 0.0
    if abs(rise) > 0.5 * error:
        low, high = (low, high + MORE * rise) if rise > 0 else (low - MORE * rise, high)
    if not np.isfinite(error) or size < 16:
        low, high = max(low, abs(found.nats) + 1.0), max(high, 1.0)
    if not np.isfinite(low):
        low = high = abs(found.nats) + 1.0
    return found.nats - low, found.nats + high


def null_of(
    estimator: Estimator, found: Estimate, x: Side, y: Side, permutations: int, rng: np.random.Generator
) -> Null | None:
    """Return what permuted samples give; see `mutual_information`."""
    if permutations == 0:
        return None
    if found.shuffled is not None and found.statistic is not None:
        return _null(found.shuffled, found.statistic, len(x.values))
    if len(x.values) > PERMUTED:
        places = rng.choice(len(x.values), PERMUTED, replace=False)
        x, y = x.taken(places), y.taken(places)
        statistic = estimator.estimate(x, y, rng).nats
    else:
        statistic = found.nats
    values = [estimator.estimate(x, y.taken(rng.permutation(len(x.values))), rng).nats for _ in range(permutations)]
    return _null(np.asarray(values), statistic, len(x.values))


def _null(values: npt.NDArray[np.float64], statistic: float, samples: int) -> Null:
    p = (1 + int((values >= statistic).sum())) / (1 + len(values))
    return Null(float(values.mean()), float(np.quantile(values, 0.95)), p, len(values), samples)


def _values(estimator: Estimator, x: Side, y: Side, blocks: int, rng: np.random.Generator) -> list[float]:
    found = []
    for start in range(blocks):
        part = slice(start, None, blocks)
        try:
            found.append(estimator.estimate(x.taken(part), y.taken(part), rng).nats)
        except BadInput:
            # A block can be too small where the whole is not: what is left says less, and the interval is wider.
            continue
    return found


def _with_noise(chosen: Estimator, x: Side, y: Side, noise: float, rng: np.random.Generator) -> tuple[Estimator, Side]:
    if not (np.isfinite(noise) and noise > 0):
        raise BadInput(f"noise {noise!r}; give a positive standard deviation, in the units of y")
    if y.kind == "discrete":
        raise BadInput("noise is added to y, and y is discrete; give floats, or no noise")
    if chosen.name == "noisy" or (chosen.name == "auto" and determined(x, y) is not None):
        return Noisy(noise), y
    return chosen, Side(y.values + noise * rng.normal(size=y.values.shape), "continuous")


def _saturated(found: Estimate, x: Side, y: Side) -> str | None:
    if found.ceiling is None or found.nats < found.ceiling - ROOM or (x.kind, y.kind) == ("discrete", "discrete"):
        return None
    return f"{found.nats:.2f} nats, near the {found.ceiling:.2f} that so many samples can show; give more, or noise="


def _constant(side: Side) -> bool:
    return bool((side.values == side.values[0]).all())
