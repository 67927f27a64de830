"""Adaptive estimators (Chelombiev et al. 2019): bins that follow each layer's range show compression in ReLU networks.

60 trainings of half a minute with 40 records each: half an hour on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.information.activations import activations
from isthmus.information.binning import AdaptiveBins

RELU, TANH = "relu", "tanh"
BITS = 12
WIDTHS = (10, 7, 5, 4, 3)
DECAYS = (0.0, 0.003, 0.03)
"""Of squared weights, in the loss."""
TRAINED, EPOCHS, BATCH, RATE, RECORDS, BINS = 0.8, 1000, 512, 4e-4, 40, 30
LEAST, P_VALUE = 0.1, 0.05
"""Nats that count as compression, and how unlikely a rank correlation is to count."""


@cache
def data() -> tuple[Tensor, Tensor]:
    """Return every word of 12 bits, as -1 and 1, and a label: whether a smooth function of it is above its median.

    As in the experiments that began the dispute, a label that is all but a function of the input, which is uniform.
    """
    generator = np.random.default_rng(0)
    words = 2.0 * ((np.arange(2**BITS)[:, None] >> np.arange(BITS)) & 1) - 1
    centres = generator.choice([-1.0, 1.0], size=(8, BITS))
    heights = generator.normal(size=8)
    smooth = np.exp(-((words[:, None] - centres) ** 2).sum(2) / BITS) @ heights
    labels = (smooth > np.median(smooth)).astype(np.int64)
    return torch.from_numpy(words).float(), torch.from_numpy(labels)


def network(kind: str) -> nn.Sequential:
    """Return five narrow layers and a classifier; the layers' outputs are modules 1, 3, 5, 7 and 9."""
    sizes = (BITS, *WIDTHS)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU() if kind == RELU else nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 2))


def entropy(symbols: npt.NDArray[np.int64]) -> float:
    """Return the plug-in entropy in nats: what a layer that is a function of a uniform input shares with it."""
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(shares * np.log(shares)).sum())


def fixed_symbols(values: npt.NDArray[Any], edges: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the number of the row of bins of each sample, all columns and epochs binned alike."""
    rows = np.digitize(values, edges)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def compression(values: Sequence[float]) -> float:
    """Return how many nats are lost from the most that a layer held to the end of training."""
    return float(max(values) - values[-1])


def measure(point: Point) -> Mapping[str, Any]:
    """Train a network, record its layers, and measure how each is compressed by both ways of binning."""
    torch.manual_seed(point.seed)
    inputs, labels = data()
    order = torch.randperm(len(inputs))
    own, held = order[: int(TRAINED * len(order))], order[int(TRAINED * len(order)) :]
    model = network(point.arm)
    paths = [str(2 * index + 1) for index in range(len(WIDTHS))]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    # Early epochs change most: they are recorded more densely.
    due = {0, *np.unique(np.geomspace(1, EPOCHS, RECORDS).round()).astype(int).tolist()}
    seen: list[dict[str, npt.NDArray[Any]]] = []
    for epoch in range(EPOCHS + 1):
        if epoch in due:
            seen.append({path: one.numpy() for path, one in activations(model, paths, inputs).items()})
        if epoch == EPOCHS:
            break
        for rows in torch.split(own[torch.randperm(len(own))], BATCH):
            loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            squares = torch.stack([layer.weight.square().sum() for layer in model if isinstance(layer, nn.Linear)])
            optimizer.zero_grad()
            torch.autograd.backward(loss + point.level * squares.sum())
            optimizer.step()
    with torch.no_grad():
        accuracy = float((model(inputs[held]).argmax(1) == labels[held]).float().mean())
    low, high = (float(how([how(one) for layers in seen for one in layers.values()])) for how in (np.min, np.max))
    edges = np.linspace(low, high, BINS + 1)[1:-1]
    bins = AdaptiveBins(bins=BINS)
    by_layer = {
        "adaptive": [compression([entropy(bins.symbols(layers[path])) for layers in seen]) for path in paths],
        "fixed": [compression([entropy(fixed_symbols(layers[path], edges)) for layers in seen]) for path in paths],
    }
    means = {f"{how} mean": float(np.mean(values)) for how, values in by_layer.items()}
    return {**by_layer, **means, "accuracy": accuracy}


def missed(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): adaptive bins show compression in ReLU networks that fixed ones miss."""
    rule = (
        f"in ReLU networks without decay adaptive bins show more than {LEAST:g} nats of compression in the mean over "
        "layers, and more than fixed bins, both by more than twice the standard error over seeds; does not hold: "
        f"{LEAST:g} nats or less; mixed: otherwise"
    )
    name = "compression that fixed bins miss"
    ours, theirs = (of_arm(outcomes, RELU, 0.0, f"{how} mean") for how in ("adaptive", "fixed"))
    if len(ours) < 2:
        return part_of(name, rule, UNTESTED)
    most, error = paired(ours, [LEAST] * len(ours))
    gap, gap_error = paired(ours, theirs)
    shown, more = most > 2 * error, gap > 2 * gap_error
    verdict = HOLDS if shown and more else FAILS if most < -2 * error else MIXED
    return part_of(name, rule, verdict, f"{np.mean(ours):.2f} nats, by fixed bins {np.mean(theirs):.2f}")


def by_decay(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): decay increases compression."""
    rule = (
        "in ReLU networks the mean compression over layers by adaptive bins is higher at the strongest decay than "
        "without, by more than twice the standard error of paired differences; does not hold: lower likewise; mixed: "
        "otherwise"
    )
    none, most = (of_arm(outcomes, RELU, level, "adaptive mean") for level in (DECAYS[0], DECAYS[-1]))
    if len(none) < 2 or len(none) != len(most):
        return part_of("decay compresses", rule, UNTESTED)
    gap, error = paired(most, none)
    verdict = HOLDS if gap > 2 * error else FAILS if gap < -2 * error else MIXED
    means = (f"{level:g}: {np.mean(of_arm(outcomes, RELU, level, 'adaptive mean')):.2f} nats" for level in DECAYS)
    return part_of("decay compresses", rule, verdict, "; ".join(means))


def last_layer(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): only in the last layer does compression go with accuracy."""
    rule = (
        f"over all runs of both kinds, the rank correlation of a layer's compression and accuracy is above 0 with p < "
        f"{P_VALUE} in the last layer and in no other; does not hold: not in the last; mixed: in others too"
    )
    if len(outcomes) < 20:
        return part_of("only the last layer's goes with accuracy", rule, UNTESTED)
    right = [one["accuracy"] for one in outcomes]
    found = [spearmanr([one["adaptive"][layer] for one in outcomes], right) for layer in range(len(WIDTHS))]
    passed = [float(one.statistic) > 0 and float(one.pvalue) < P_VALUE for one in found]
    verdict = FAILS if not passed[-1] else HOLDS if sum(passed) == 1 else MIXED
    text = ", ".join(f"layer {n + 1}: {one.statistic:+.2f} (p = {one.pvalue:.3f})" for n, one in enumerate(found))
    return part_of("only the last layer's goes with accuracy", rule, verdict, text)


TRIALS = Trials(
    slug="adaptive-mi-estimators",
    claim=(
        "Estimators whose bins follow a layer's range at each epoch show that networks that do not saturate compress "
        "too, which bins of fixed width miss; decay of weights compresses more, and only the last layer's compression "
        "goes with accuracy."
    ),
    experiment=(
        f"All words of {BITS} bits, the label a smooth function above its median, {TRAINED:.0%} to train on; five "
        f"layers of {', '.join(map(str, WIDTHS))}, {EPOCHS} epochs. Each layer is recorded on all words {RECORDS} "
        "times. What it shares with the input is the entropy of its binned values; compression is the most of that "
        f"over training less that at the end. {BINS} bins: of equally many distinct values at each record, or of equal "
        "width over the range of all layers and records."
    ),
    arms={RELU: DECAYS, TANH: DECAYS},
    seeds=tuple(range(10)),
    measure=measure,
    parts=lambda outcomes: [missed(outcomes), by_decay(outcomes), last_layer(outcomes)],
    columns=(
        Column("adaptive mean", "nats of compression, adaptive bins", "{:.2f}"),
        Column("fixed mean", "fixed bins", "{:.2f}"),
        Column("accuracy", "accuracy", "{:.3f}"),
    ),
    level="decay",
    recipe={
        "widths": WIDTHS, "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "records": RECORDS, "bins": BINS,
    },
    data=lambda: digest_of([one.numpy() for one in data()]),
)  # fmt: skip
