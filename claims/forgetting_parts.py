"""What claims about exemplars share: their figures and how these are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import nn

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.populations import NARROWED, SHARES, Floats, Originals, Plant, originals, population, probabilities
from claims.trials import of_arm, paired
from claims.vtrans import UNTESTED, Part
from isthmus.audit.exemplars import disagreement
from isthmus.cost.measure import count_parameters

LEAST = SHARES[-1]


@dataclass(frozen=True)
class Read:
    """Both populations of a point, what they say of the held-out images, and the figures that all claims share."""

    first: Originals
    after: tuple[nn.Module, ...]
    ours: Floats
    theirs: Floats
    figures: dict[str, float]


def read(plant: Plant, point: Point) -> Read:
    """Make the population of a point and read the held-out images with it and with the originals."""
    first, after = originals(plant, point.seed), population(plant, point)
    held = first.data.held
    ours, theirs = (probabilities(models, held) for models in (first.models, after))
    other = probabilities((first.other,), held)[0].argmax(axis=1) == held.labels
    apart = disagreement(ours, theirs)
    accuracies = [float((one.argmax(axis=2) == held.labels).mean()) for one in (ours, theirs)]
    figures = {
        "params": count_parameters(after[0]) / count_parameters(first.models[0]),
        "accuracy": accuracies[1],
        "lost": accuracies[0] - accuracies[1],
        "exemplars": float(apart.mean()),
        "on_all": float(other.mean()),
    }
    if apart.any():
        figures["on_exemplars"] = float(other[apart].mean())
    return Read(first, after, ours, theirs, figures)


def hard(outcomes: Sequence[Outcome], shares: Sequence[float]) -> Part:
    """Decide whether exemplars are harder than average for a network that took no part in finding them."""
    rule = (
        "at every share of the parameters below 1, another original's accuracy on the exemplars is below its accuracy "
        "on all images by more than twice the standard error of paired differences; mixed: at some; does not hold: "
        "nowhere"
    )
    passed, texts = [], []
    for share in shares:
        own, every = (of_arm(outcomes, NARROWED, share, key) for key in ("on_exemplars", "on_all"))
        if len(own) < 2 or len(own) != len(every):
            return part_of("exemplars are hard", rule, UNTESTED)
        mean, error = paired(own, every)
        passed.append(mean < -2 * error)
        texts.append(
            f"{share:.0%}: {100 * np.mean(own):.1f} against {100 * np.mean(every):.1f} % ({100 * mean:+.1f} ± "
            f"{100 * error:.1f} points)"
        )
    return part_of("exemplars are hard", rule, share_passed(passed), "; ".join(texts))


def rises(outcomes: Sequence[Outcome], key: str, name: str, what: str) -> Part:
    """Decide whether a figure of the narrowed networks grows with every step of narrowing."""
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    rule = (
        f"{what} is higher at each share of the parameters than at the one before it ({shares}) by more than twice the "
        "standard error of paired differences; mixed: at some; does not hold: nowhere"
    )
    runs = [of_arm(outcomes, NARROWED, share, key) for share in SHARES]
    if min(map(len, runs)) < 2 or len(set(map(len, runs))) > 1:
        return part_of(name, rule, UNTESTED)
    gaps = [paired(after, before) for before, after in pairwise(runs)]
    text = ", ".join(f"{share:.0%}: {100 * np.mean(run):.2f} %" for share, run in zip(SHARES, runs, strict=True))
    return part_of(name, rule, share_passed([mean > 2 * error for mean, error in gaps]), text)
