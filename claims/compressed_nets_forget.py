"""What do compressed deep neural networks forget (Hooker et al. 2019): the examples on which populations disagree.

18 populations of five networks, and the originals of each seed: six minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.forgetting_parts import LEAST, hard, read, rises
from claims.populations import (
    AGAIN,
    ARMS,
    CLASSES,
    EPOCHS_AFTER,
    FILES,
    HELD,
    NARROWED,
    NETWORKS,
    SHARES,
    SMALL,
    TRAINED,
    Data,
    Examples,
    Integers,
    as_tensor,
    images,
    probabilities,
    recipe,
)
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.audit.exemplars import disagreement

RARE_CLASSES = (8, 5, 1)
"""By seed, in turn: bag, sandal and trouser, which are otherwise easy, so that it is rarity that makes them hard."""
RARE, WRONG = 0.1, 0.05
"""How much of the rare class is left in training, and how much of the training data gets a wrong label."""
CHEAP = 0.01
"""Points of accuracy over which a share of the parameters is no longer cheap."""


def rare_class(seed: int) -> int:
    """Return the class that is made rare."""
    return RARE_CLASSES[seed % len(RARE_CLASSES)]


def plant(pixels: npt.NDArray[np.uint8], labels: Integers, seed: int) -> Data:
    """Make a class rare in training, and some training labels wrong; what is held out stays as it is."""
    rng = np.random.default_rng([seed, 1])
    held = Examples(as_tensor(pixels[:HELD]), labels[:HELD], labels[:HELD] == rare_class(seed))
    pixels, labels = pixels[HELD:], labels[HELD:]
    usable = np.flatnonzero((labels != rare_class(seed)) | (rng.random(len(labels)) < RARE))[:TRAINED]
    pixels, given = pixels[usable], labels[usable].copy()
    wrong = rng.random(len(given)) < WRONG
    given[wrong] = (given[wrong] + rng.integers(1, CLASSES, int(wrong.sum()))) % CLASSES
    return Data(Examples(as_tensor(pixels), given, wrong), held)


def measure(point: Point) -> Mapping[str, Any]:
    """Find the exemplars of a population among held-out images, and among those that were trained on."""
    found = read(plant, point)
    data = found.first.data
    rare = _over_represented("rare", disagreement(found.ours, found.theirs), data.held.planted)
    # Wrong labels can be forgotten only where they were learned.
    apart = disagreement(*(probabilities(models, data.train) for models in (found.first.models, found.after)))
    return {**found.figures, **rare, **_over_represented("wrong", apart, data.train.planted)}


def _over_represented(name: str, apart: npt.NDArray[np.bool_], planted: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the shares of exemplars among what was planted and among the rest."""
    return {name: float(apart[planted].mean()), f"not_{name}": float(apart[~planted].mean())}


def beyond_chance(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether narrowing makes more exemplars than training does."""
    rule = (
        f"at {LEAST:.0%} of the parameters there are more exemplars than between the originals and networks trained "
        "from other weights, and than where as many parameters are trained on, by more than twice the standard error "
        "of paired differences; mixed: than one of both; does not hold: than neither"
    )
    own = of_arm(outcomes, NARROWED, LEAST, "exemplars")
    others = {
        "trained again": of_arm(outcomes, AGAIN, None, "exemplars"),
        "trained on": of_arm(outcomes, NARROWED, 1.0, "exemplars"),
    }
    if len(own) < 2 or any(len(other) != len(own) for other in others.values()):
        return part_of("more than by chance", rule, UNTESTED)
    gaps = {name: paired(own, other) for name, other in others.items()}
    text = "; ".join(
        f"{100 * np.mean(own):.2f} % against {100 * np.mean(others[name]):.2f} % {name} ({100 * mean:+.2f} ± "
        f"{100 * error:.2f})"
        for name, (mean, error) in gaps.items()
    )
    return part_of("more than by chance", rule, share_passed([mean > 2 * error for mean, error in gaps.values()]), text)


def cheap(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the shares below 1 at which less than a point of accuracy is lost in the mean."""
    found = {share: of_arm(outcomes, NARROWED, share, "lost") for share in SHARES[1:]}
    return [share for share, lost in found.items() if lost and np.mean(lost) < CHEAP]


def over_represented(outcomes: Sequence[Outcome], key: str, name: str, what: str) -> Part:
    """Decide whether what was planted is seen otherwise more often than the rest."""
    rule = (
        f"at the smallest share of the parameters that costs less than a point, exemplars are more frequent among "
        f"{what} than among the rest by more than twice the standard error of paired differences; does not hold: less "
        "frequent likewise; mixed: otherwise"
    )
    shares = cheap(outcomes)
    own, rest = ([] if not shares else of_arm(outcomes, NARROWED, min(shares), one) for one in (key, f"not_{key}"))
    if len(own) < 2 or len(own) != len(rest):
        return part_of(name, rule, UNTESTED)
    mean, error = paired(own, rest)
    verdict = HOLDS if mean > 2 * error else FAILS if mean < -2 * error else MIXED
    text = (
        f"at {min(shares):.0%}: {100 * np.mean(own):.1f} against {100 * np.mean(rest):.1f} % ({100 * mean:+.1f} ± "
        f"{100 * error:.1f} points)"
    )
    return part_of(name, rule, verdict, text)


def _data() -> str:
    pixels, labels = images(0)
    return digest_of([pixels[: HELD + TRAINED], labels[: HELD + TRAINED]])


TRIALS = Trials(
    slug="compressed-nets-forget",
    claim=(
        "Where narrowing costs little accuracy, populations of networks before and after it disagree on a few images. "
        "These are harder than average for networks that were not narrowed, grow in number as networks get smaller, "
        "and hold more than their share of a class that was rare in training and of images with wrong labels."
    ),
    experiment=(
        f"Fashion-MNIST's training images by seed: {TRAINED} to train on, {HELD} held out. One class, another for "
        f"each seed, keeps {RARE:.0%} of its training images, and {WRONG:.0%} of the training labels are wrong. "
        f"Populations of {NETWORKS} networks of two hidden layers; units of least magnitude are taken out of both, and "
        f"what is left is trained for {EPOCHS_AFTER} epochs. Exemplars: the modal class of the population differs from "
        "the originals'. Accuracy on them is that of a sixth original. Wrong labels are looked for among the images "
        f"that were trained on. `{AGAIN}` says how much of that is chance, `{SMALL}` what networks of the same small "
        "shape do, trained for as many epochs in all."
    ),
    arms=ARMS,
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        hard(outcomes, SHARES[1:]),
        rises(outcomes, "exemplars", "exemplars grow in number", "the share of images that are exemplars"),
        beyond_chance(outcomes),
        over_represented(outcomes, "rare", "the rare class", "held-out images of the rare class"),
        over_represented(outcomes, "wrong", "wrong labels", "training images with wrong labels"),
    ],
    columns=(
        Column("params", "parameters", "{:.1%}"),
        Column("accuracy", "accuracy", "{:.3f}"),
        Column("exemplars", "exemplars", "{:.2%}"),
        Column("on_exemplars", "another original's accuracy on them", "{:.3f}"),
        Column("on_all", "on all", "{:.3f}"),
        Column("rare", "exemplars of the rare class", "{:.2%}"),
        Column("wrong", "of wrong labels", "{:.2%}"),
        Column("not_wrong", "of other training images", "{:.2%}"),
    ),
    level="share of the parameters",
    recipe={**recipe(), "rare": RARE, "wrong": WRONG, "classes": list(RARE_CLASSES)},
    data=_data,
    needs=FILES,
)
