"""Information and generalization (Kawaguchi et al. 2023): what a layer keeps beyond the label goes with the gap.

81 trainings of five to ten seconds: ten minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.activations import activations
from isthmus.information.superfluous import superfluous_information
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx

FILES = ("fashion-mnist/train-images-idx3-ubyte.gz", "fashion-mnist/train-labels-idx1-ubyte.gz")
WIDTHS, DECAYS, WRONG = (32, 96, 256), (0.0, 0.1, 1.0), (0.0, 0.2, 0.4)
"""Of both layers; of AdamW; the share of training labels drawn anew."""
TRAINED, HELD, EPOCHS, BATCH, RATE = 3000, 5000, 60, 100, 1e-3
NOISE, LAYERS = 0.3, ("1", "3")
"""Noise of each unit as a share of the whole layer's deviation, without which what it keeps is infinite; the outputs of
the two layers."""


@cache
def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images of Fashion-MNIST by seed, pixels and labels: to train on, and held out."""
    folder = data_folder()
    if folder is None:
        raise BadInput("ib-generalization-bound: skipped, no folder of data")
    images, labels = (read_idx(folder / file) for file in FILES)
    order = np.random.default_rng(seed).permutation(len(images))[: TRAINED + HELD]
    pixels = torch.from_numpy(images[order].reshape(len(order), -1) / 255.0).float() - 0.3
    truth = torch.from_numpy(labels[order].astype(np.int64))
    return pixels[:TRAINED], truth[:TRAINED], pixels[TRAINED:], truth[TRAINED:]


def arm_of(width: int, decay: float) -> str:
    """Return what a network is called."""
    return f"{width} wide, decay {decay:g}"


ARMS = {arm_of(width, decay): (width, decay) for width in WIDTHS for decay in DECAYS}


def measure(point: Point) -> Mapping[str, Any]:
    """Train a network; measure what its layers keep beyond the label, and the gap of held-out and training loss."""
    width, decay = ARMS[point.arm]
    torch.manual_seed(point.seed)
    inputs, truth, others, their_truth = data(point.seed)
    wrong = torch.rand(len(truth)) < point.level
    labels = torch.where(wrong, torch.randint(0, 10, (len(truth),)), truth)
    # Held-out labels are as wrong as those that are trained on: the gap is that of one distribution.
    wrong_held = torch.rand(len(their_truth)) < point.level
    held = torch.where(wrong_held, torch.randint(0, 10, (len(their_truth),)), their_truth)
    model = nn.Sequential(
        nn.Linear(inputs.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=decay)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs[rows]), labels[rows]))
            optimizer.step()
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(model(x), y)) for x, y in ((inputs, labels), (others, held))]
    kept = {}
    for path, layer in activations(model, LAYERS, inputs).items():
        deviation = float((layer - layer.mean(0)).square().sum(1).mean().sqrt())
        found = superfluous_information(inputs, layer, labels, noise=NOISE * deviation, seed=point.seed)
        kept[f"layer {LAYERS.index(path) + 1}"] = None if found.nats is None else float(found.nats)
    return {
        "gap": losses[1] - losses[0],
        "train": losses[0],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **kept,
    }


def _correlations(outcomes: Sequence[Outcome], key: str) -> list[float]:
    """Return the rank correlation of a figure with the gap over all networks, seed by seed."""
    found = []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = [one for one in outcomes if one["seed"] == seed and one.get(key) is not None]
        if len(own) == len(ARMS) * len(WRONG):
            found.append(float(spearmanr([one[key] for one in own], [one["gap"] for one in own]).statistic))
    return found


def tracks(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): what the last layer keeps beyond the label goes with the gap."""
    rule = (
        f"over {len(ARMS) * len(WRONG)} networks, the rank correlation of I(X; Z | Y) of the last layer with the gap "
        "is above 0 by more than twice the standard error over seeds; does not hold: below 0 likewise; mixed: otherwise"
    )
    found = _correlations(outcomes, "layer 2")
    if len(found) < 2:
        return part_of("information goes with the gap", rule, UNTESTED)
    mean, error = paired(found, [0.0] * len(found))
    verdict = HOLDS if mean > 2 * error else FAILS if mean < -2 * error else MIXED
    first = _correlations(outcomes, "layer 1")
    text = f"{mean:+.2f} ± {error:.2f}" + (f"; of the first layer {np.mean(first):+.2f}" if first else "")
    return part_of("information goes with the gap", rule, verdict, text)


def better_than_size(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): more so than the number of parameters."""
    rule = (
        "that correlation is higher than the gap's with the number of parameters, by more than twice the standard "
        "error of paired differences; does not hold: lower likewise; mixed: otherwise"
    )
    ours, size = _correlations(outcomes, "layer 2"), _correlations(outcomes, "parameters")
    if len(ours) < 2:
        return part_of("better than the number of parameters", rule, UNTESTED)
    gap, error = paired(ours, size)
    verdict = HOLDS if gap > 2 * error else FAILS if gap < -2 * error else MIXED
    text = f"{np.mean(ours):+.2f} against {np.mean(size):+.2f}"
    return part_of("better than the number of parameters", rule, verdict, text)


def estimable(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): the score is to be had, and not at its ceiling."""
    rule = "in every network I(X; Z | Y) of both layers is estimable; mixed: in some"
    passed = [one.get(f"layer {n}") is not None for one in outcomes for n in (1, 2)]
    if not passed:
        return part_of("estimable", rule, UNTESTED)
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of("estimable", rule, verdict, f"{sum(passed)} of {len(passed)} layers")


TRIALS = Trials(
    slug="ib-generalization-bound",
    claim=(
        "What a hidden layer keeps of its input beyond the label, I(X; Z | Y), goes with the gap between held-out and "
        "training loss across networks, more than the number of parameters does."
    ),
    experiment=(
        f"{len(ARMS) * len(WRONG)} networks of two layers on {TRAINED} training images of Fashion-MNIST: widths "
        f"{', '.join(map(str, WIDTHS))}, weight decay {', '.join(f'{decay:g}' for decay in DECAYS)}, and "
        f"{', '.join(f'{share:.0%}' for share in WRONG)} of the labels drawn anew, the held-out ones of {HELD} images "
        f"as well. {EPOCHS} epochs of AdamW. I(X; Z | Y) is that of the layer with normal noise in each unit of "
        f"{NOISE:g} of the deviation of the whole layer, on the training images."
    ),
    arms=dict.fromkeys(ARMS, WRONG),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [tracks(outcomes), better_than_size(outcomes), estimable(outcomes)],
    columns=(
        Column("gap", "gap in nats", "{:.2f}"),
        Column("layer 1", "nats beyond the label, layer 1", "{:.2f}"),
        Column("layer 2", "layer 2", "{:.2f}"),
    ),
    level="wrong labels",
    recipe={"trained": TRAINED, "held": HELD, "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "noise": NOISE},
    data=lambda: digest_of([data(0)[1].numpy(), data(0)[3].numpy()]),
    needs=FILES,
)
