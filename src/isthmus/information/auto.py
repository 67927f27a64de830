"""The default: several estimates that all tend to be low, the highest of them, and an interval that says how low.

Everything is computed from ranks: a strictly increasing map of a coordinate changes nothing. Three questions:

1. Are the samples a Gaussian copula, as far as moments up to the fourth (`departs`) and a critic that starts from that
   Gaussian can tell? Then the closed form is the answer, its interval that of its sampling error.
2. Otherwise: what does a critic find on samples that it was not fitted to (a lower bound), and on those that it was
   (too much)? Maximum likelihood is as much too high on the one as too low on the other, to first order, so the middle
   is taken and the interval holds both.
3. In few dimensions: what do nearest neighbours say of all coordinates, and in any number of dimensions, of how far out
   the samples are? How much they rise from half of the samples to all says how much more they would rise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from isthmus.information.canonical import departs
from isthmus.information.critic import Recipe, radii
from isthmus.information.discrete import PlugIn
from isthmus.information.gaussian import gaussian_information
from isthmus.information.ksg import ksg_parts
from isthmus.information.marginals import gaussianised
from isthmus.information.objectives import contrastive
from isthmus.information.result import CC, CD, DD, Estimate, Floats, Kinds, Side
from isthmus.information.ross import ross_parts
from isthmus.information.scores import crossfit

NEAR = 3
"""Neighbours."""
DIMS = 6
"""Dimensions of both sides together up to which neighbours are asked."""
FEW = 50
"""Samples below which no critic is trained."""
MISSED = 0.25
"""Share of what a critic found beyond the Gaussian that it may have missed."""
FLOOR = 0.005
"""Nats that nothing here would have noticed."""
BENT = 0.08
"""Share of the whole that it may have missed where moments say that the samples are not a Gaussian copula."""
MORE = 4.5
"""Times the last rise of neighbours' estimates that they may still rise: 0.82 times the last at each doubling."""
ROOM = 1.5
"""Nats below the logarithm of the samples from which on a critic's bound is at its ceiling."""


@dataclass(frozen=True)
class Candidate:
    """An estimate that is low, if anything.

    Parameters
    ----------
    nats, error, upper : float
        The value, its standard error, and how much it may be at the most.
    parts : ndarray
        What each sample adds.
    """

    nats: float
    error: float
    upper: float
    parts: Floats


@dataclass(frozen=True)
class Auto:
    """The highest of several estimates that tend to be low; see the module.

    Parameters
    ----------
    recipe : Recipe
        Of the critic.
    permutations : int
        Of the samples that a critic was not fitted to.
    """

    name: ClassVar[str] = "auto"
    about: ClassVar[str] = "the default: Gaussian copula where it fits, else the highest of critic and neighbours"
    paper: ClassVar[str] = "Kraskov et al. 2004; van den Oord et al. 2018; Ince et al. 2017"
    slug: ClassVar[str | None] = None
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD, DD)

    recipe: Recipe = field(default_factory=Recipe)
    permutations: int = 99

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        if x.kind == "discrete":
            return PlugIn().estimate(x, y, rng)
        found = [*near_candidates(x, y)]
        if len(x.values) < FEW:
            return self._few(x, y, found)
        return self._with_critic(x, y, found, rng)

    def _few(self, x: Side, y: Side, found: list[Candidate]) -> Estimate:
        if not found:
            return Estimate(
                0.0, not_estimable=f"{len(x.values)} samples of {x.values.shape[1]} and {y.values.shape[1]} dimensions"
            )
        return _best(found, None, None, _cap(x, y), ())

    def _with_critic(self, x: Side, y: Side, found: list[Candidate], rng: np.random.Generator) -> Estimate:
        folds = crossfit(x, y, contrastive, self.recipe, rng, base=True, permutations=self.permutations)
        out = np.concatenate([fold.out.contrast for fold in folds])
        base = np.concatenate([fold.base.contrast for fold in folds if fold.base is not None])
        inside = float(np.mean([fold.inside.contrast.mean() for fold in folds]))
        bound, gain = float(out.mean()), float((out - base).mean())
        error = float(out.std()) / np.sqrt(len(out))
        ceiling = float(np.log(len(folds[0].out.together)))
        together = float(np.mean([fold.out.together.mean() for fold in folds]))
        shuffled = np.mean([fold.out.shuffled for fold in folds], 0) - together + bound if self.permutations else None
        closed = closed_form(x, y)
        least = FLOOR if closed is None or closed[2] else 0.01 + 0.01 * bound
        sure = gain > max(2.5 * float((out - base).std()) / np.sqrt(len(out)), least)
        if closed is not None and not closed[2]:
            # A base fitted to half of few samples is noisy, and what a critic gains by smoothing it is no other shape.
            sure = sure and bound > closed[0]
        if closed is not None and not sure and not self._beaten(closed, found):
            nats, parts, bent = closed
            own = float(parts.std()) / np.sqrt(len(parts)) + _spread(x, y)
            missed = BENT * max(nats, 0.0) + 0.01 if bent else 0.0
            found = [Candidate(nats + missed / 2, own, nats + missed + FLOOR, parts)]
            return _best(found, shuffled, bound, None, ())
        if bound > ceiling - ROOM:
            reason = f"a critic tells all {len(folds[0].out.together)} pairs apart: more than {bound:.1f} nats"
            return Estimate(bound, out, not_estimable=f"{reason}; give noise=, or more samples")
        # The closed form knows the Gaussian part better than a base that was fitted to half of the samples.
        whole = bound if closed is None else max(bound, closed[0] + gain)
        upper = max(inside, whole) + MISSED * max(gain, 0.0) + BENT * max(bound, 0.0)
        found.append(Candidate(0.5 * (bound + max(inside, whole)), error, upper, out))
        return _best(found, shuffled, bound, _cap(x, y), ())

    @staticmethod
    def _beaten(closed: tuple[float, Floats, bool], found: list[Candidate]) -> bool:
        nats, _, bent = closed
        return any(other.nats - nats > (1.0 if bent else 2.5) * other.error for other in found)


def closed_form(x: Side, y: Side) -> tuple[float, Floats, bool] | None:
    """Return the Gaussian closed form, what each sample adds, and whether moments say that it is not the whole."""
    if y.kind == "discrete" or len(x.values) < 4 * (x.values.shape[1] + y.values.shape[1]):
        return None
    left, right = gaussianised(x.values), gaussianised(y.values)
    nats, parts = gaussian_information(left, right)
    return nats, parts, departs(np.hstack([left, right]))


def near_candidates(x: Side, y: Side) -> list[Candidate]:
    """Return what nearest neighbours say: of all coordinates where they are few, and of how far out samples are."""
    left = gaussianised(x.values)
    right = gaussianised(y.values) if y.kind == "continuous" else y.values
    found = []
    if left.shape[1] + right.shape[1] <= DIMS:
        found.append(_rising(left, right, y.kind == "discrete"))
    if left.shape[1] > 1 or right.shape[1] > 1:
        outer = gaussianised(radii(left)[:, 1:])
        other = gaussianised(radii(right)[:, 1:]) if y.kind == "continuous" else right
        found.append(_rising(outer, other, y.kind == "discrete"))
    return found


def _rising(x: Floats, y: Floats, labels: bool) -> Candidate:
    def parts_of(places: slice) -> Floats:
        if labels:
            return ross_parts(x[places], y[places, 0].astype(np.int64), NEAR)
        return ksg_parts(x[places], y[places], NEAR)

    whole = parts_of(slice(None))
    nats, error = float(whole.mean()), float(whole.std()) / np.sqrt(len(whole))
    if len(x) < 4 * NEAR + 4:
        return Candidate(nats, error, nats + 1.0, whole)
    rise = nats - 0.5 * sum(float(parts_of(slice(start, None, 2)).mean()) for start in (0, 1))
    rise = max(rise, 0.0) if rise > 0.5 * error else 0.0
    return Candidate(nats + rise, error, nats + MORE * rise, whole)


def _spread(x: Side, y: Side) -> float:
    """Return the standard deviation that second moments of independent sides give the closed form."""
    return float(np.sqrt(0.5 * x.values.shape[1] * y.values.shape[1]) / len(x.values))


def _cap(x: Side, y: Side) -> float | None:
    """Return the entropy of a label, which no information exceeds."""
    if y.kind != "discrete":
        return None
    share = np.bincount(y.symbols) / len(y.symbols)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _best(
    found: list[Candidate],
    shuffled: Floats | None,
    statistic: float | None,
    cap: float | None,
    notes: tuple[str, ...],
) -> Estimate:
    best = max(found, key=lambda other: other.nats)
    lower = max(best.nats - 1.96 * best.error, 0.0)
    lower = min(lower, max(float(best.parts.mean()) - 1.96 * best.error, 0.0))
    upper = max(max(other.upper for other in found), best.nats, 0.0) + 1.96 * best.error
    nats = max(best.nats, 0.0)
    if cap is not None:
        nats, upper = min(nats, cap), min(upper, cap + 1.96 * best.error)
    return Estimate(nats, best.parts, (lower, upper), shuffled, statistic, warnings=notes)
