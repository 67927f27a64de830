"""Information by lossy compression (Butakov et al. 2024): images first made codes, then nearest neighbours.

48 estimates on images of known information and three small trainings: two to three minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.information import mutual_information
from isthmus.information.plane import InformationPlane

Floats = npt.NDArray[np.float64]
BLOBS, FRAMES = "blobs", "rectangles"
CODED, PIXELS = "compressed", "neighbours of pixels"
ARMS = tuple(f"{kind}, {how}" for kind in (BLOBS, FRAMES) for how in (CODED, PIXELS))
ESTIMATORS = {CODED: "compressed", PIXELS: "ksg"}
NATS = (1.0, 3.0, 5.0, 8.0)
SAMPLES, SIDE, WIDE = 3000, 12, 2.5
"""Images of each variable; their side in pixels; the deviation of a blob in pixels."""
WITHIN = 0.1
PLANE = "a network in training"
STEPS, EVERY, WATCHED, HIDDEN, RATE = 200, 50, 600, 16, 3e-3
PATHS = ("1", "3", "6")
"""Of the network: what leaves both convolutions, and the layer before the logits."""


def latents(nats: float, seed: int) -> tuple[Floats, Floats]:
    """Return two variables of two dimensions each, from 0 to 1, that share so many nats: a Gaussian copula."""
    rng = np.random.default_rng([seed, round(100 * nats)])
    correlation = np.sqrt(1 - np.exp(-nats))
    first = rng.standard_normal((SAMPLES, 2))
    second = correlation * first + np.sqrt(1 - correlation**2) * rng.standard_normal((SAMPLES, 2))
    return ndtr(first), ndtr(second)


def drawn(kind: str, places: Floats) -> Floats:
    """Return images, shape ``(samples, side * side)``, from which the latents can be read.

    A blob's middle is where the latents say; a rectangle begins at the upper left and is as high and wide as they say,
    the pixels at its edges as bright as it covers them.
    """
    grid = np.arange(SIDE, dtype=np.float64)
    if kind == BLOBS:
        middle = 2 + places * (SIDE - 5)
        rows, columns = (np.exp(-0.5 * ((grid - middle[:, [axis]]) / WIDE) ** 2) for axis in (0, 1))
    else:
        rows, columns = (np.clip(1 + places[:, [axis]] * (SIDE - 2) - grid, 0, 1) for axis in (0, 1))
    return (rows[:, :, None] * columns[:, None, :]).reshape(len(places), -1)


def _known(arm: str, nats: float, seed: int) -> dict[str, Any]:
    kind, how = arm.split(", ")
    first, second = (drawn(kind, one) for one in latents(nats, seed))
    found = mutual_information(first, second, estimator=ESTIMATORS[how], permutations=0, seed=seed)
    if found.nats is None or found.interval is None:
        return {"estimated": None, "off": None, "inside": 0.0}
    low, high = found.interval
    return {"estimated": found.nats, "off": found.nats / nats - 1, "inside": float(low <= nats <= high)}


def network() -> nn.Sequential:
    """Return a small convolutional network for digits of 8 by 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10),
    )  # fmt: skip


def _plane(seed: int) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)
    truth = torch.from_numpy(labels.astype(np.int64))
    torch.manual_seed(seed)
    order = torch.randperm(len(pixels))
    watched, own = order[:WATCHED], order[WATCHED:]
    model = network()
    plane = InformationPlane(
        model, PATHS, pixels[watched], truth[watched], estimator="compressed", label_estimator="compressed",
        every=EVERY, seed=seed,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    with plane.following(optimizer):
        for _ in range(STEPS):
            rows = own[torch.randint(0, len(own), (64,))]
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(pixels[rows]), truth[rows]))
            optimizer.step()
    sides = [side for point in plane.points for side in (point.input, point.label)]
    ends = {step: [point for point in plane.points if point.step == step] for step in (0, STEPS)}
    last = ends[STEPS][-1], ends[0][-1]
    told, before = (np.nan if one.label.nats is None else one.label.nats for one in last)
    return {
        "drawn": float(np.mean([side.nats is not None and side.interval is not None for side in sides])),
        "label before": float(before), "label after": float(told),
    }  # fmt: skip


def measure(point: Point) -> Mapping[str, Any]:
    """Estimate known information from images, or watch a network."""
    return _plane(point.seed) if point.arm == PLANE else _known(point.arm, point.level, point.seed)


def near(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): estimates from codes."""
    rule = (
        f"of both kinds of images and at every number of nats, the mean estimate from codes over seeds is within "
        f"{WITHIN:.0%} of the truth; mixed: of some; does not hold: of none"
    )
    passed, texts = [], []
    for kind in (BLOBS, FRAMES):
        row = []
        for nats in NATS:
            own = of_arm(outcomes, f"{kind}, {CODED}", nats, "off")
            if not own and not any(one["arm"] == f"{kind}, {CODED}" for one in outcomes):
                return part_of("information of images, from codes", rule, UNTESTED)
            off = float(np.mean(own)) if own else np.nan
            passed.append(abs(off) <= WITHIN)
            row.append(f"{nats:g}: {off:+.0%}")
        texts.append(f"{kind} {', '.join(row)}")
    return part_of("information of images, from codes", rule, share_passed(passed), "; ".join(texts))


def beyond_pixels(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): whether they are nearer than those from pixels."""
    rule = (
        "of both kinds and at every number of nats, the mean absolute relative error of estimates from codes is below "
        "that of nearest neighbours of pixels; mixed: of some; does not hold: of none"
    )
    passed, texts = [], []
    for kind in (BLOBS, FRAMES):
        row = []
        for nats in NATS:
            ours, theirs = (of_arm(outcomes, f"{kind}, {how}", nats, "off") for how in (CODED, PIXELS))
            if not ours or not theirs:
                return part_of("nearer than from pixels", rule, UNTESTED)
            passed.append(float(np.abs(ours).mean()) < float(np.abs(theirs).mean()))
            row.append(f"{nats:g}: {np.mean(theirs):+.0%}")
        texts.append(f"{kind}, from pixels {', '.join(row)}")
    return part_of("nearer than from pixels", rule, share_passed(passed), "; ".join(texts))


def watched(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): whether a network's plane is drawn."""
    rule = (
        "for each of three layers and at each step both values have an estimate and an interval, and the last layer "
        "says more of the label after training than before, in every seed; mixed: in some"
    )
    own = [one for one in outcomes if one["arm"] == PLANE]
    if not own:
        return part_of("a network's information plane", rule, UNTESTED)
    passed = [one["drawn"] == 1 and one["label after"] > one["label before"] for one in own]
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    means = [np.mean([one[key] for one in own]) for key in ("drawn", "label before", "label after")]
    text = f"{means[0]:.0%} of the values; of the label {means[1]:.2f}, then {means[2]:.2f} nats"
    return part_of("a network's information plane", rule, verdict, text)


TRIALS = Trials(
    slug="ib-lossy-compression",
    claim=(
        "What two images share can be estimated by compressing them first: the estimate from codes is near the truth "
        "where that from pixels is not, and layers of a network can be followed through its training by it."
    ),
    experiment=(
        f"{SAMPLES} pairs of images of {SIDE} by {SIDE} pixels, drawn from two latents each that share a known number "
        "of nats: where a blob is, or how high and wide a rectangle. Codes are four principal components, the linear "
        "autoencoder of the library; the paper trains one of convolutions. Then a small convolutional network on "
        f"scikit-learn's digits, watched at {STEPS // EVERY + 1} steps on {WATCHED} images that it is not trained on, "
        "noise of half of its deviation added to each layer."
    ),
    arms={**dict.fromkeys(ARMS, NATS), PLANE: (0.0,)},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [near(outcomes), beyond_pixels(outcomes), watched(outcomes)],
    columns=(
        Column("estimated", "nats", "{:.2f}"),
        Column("off", "off by", "{:+.0%}"),
        Column("inside", "truth within the interval", "{:.0%}"),
        Column("label before", "of the label, before", "{:.2f}"),
        Column("label after", "after", "{:.2f}"),
    ),
    level="nats",
    recipe={
        "samples": SAMPLES, "side": SIDE, "wide": WIDE, "steps": STEPS, "every": EVERY, "watched": WATCHED,
        "hidden": HIDDEN, "rate": RATE,
    },
    data=lambda: digest_of([drawn(BLOBS, latents(1.0, 0)[0])]),
)  # fmt: skip
