"""Discrete infomax codes (Lee et al. 2020): codes that say as much of the label as they can, for retrieval.

36 codes, half of them trained for half a minute: twelve minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.training.infomax_codes import (
    CodeHead,
    InfomaxLoss,
    agreement,
    codes_of,
    label_information,
    place_information,
)
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx

FILES = ("fashion-mnist/train-images-idx3-ubyte.gz", "fashion-mnist/train-labels-idx1-ubyte.gz")
OURS, FREE, PRODUCT, SIGNS, CLASSIFIER = (
    "dimco", "dimco without the regularizer", "product quantization", "sign hashing",
    "signs of a classifier's features",
)  # fmt: skip
BITS = (16.0, 32.0, 64.0)
SYMBOLS = 16
TRAINED, STORED, QUERIES = 5000, 8000, 1000
COMPONENTS, HIDDEN, EPOCHS, BATCH, RATE = 96, 256, 20, 256, 1e-3
CHECKS = 5
"""Times during training at which what codes say of labels is measured."""


@dataclass(frozen=True)
class Data:
    """Frozen features (principal components of pixels) and labels: to train on, stored, and asked for."""

    train: tuple[Tensor, Tensor]
    stored: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]


@cache
def data(seed: int) -> Data:
    """Return images of Fashion-MNIST's training part, drawn by seed; the three parts share none."""
    folder = data_folder()
    if folder is None:
        raise BadInput("dimco: skipped, no folder of data")
    images, labels = (read_idx(folder / file) for file in FILES)
    order = np.random.default_rng(seed).permutation(len(images))[: TRAINED + STORED + QUERIES]
    pixels = images[order].reshape(len(order), -1).astype(np.float64) / 255
    centred = pixels - pixels[:TRAINED].mean(0)
    directions = np.linalg.svd(centred[:TRAINED], full_matrices=False)[2][:COMPONENTS]
    features = torch.from_numpy(centred @ directions.T).float()
    truth = torch.from_numpy(labels[order].astype(np.int64))
    parts = [
        (features[rows], truth[rows])
        for rows in (slice(TRAINED), slice(TRAINED, TRAINED + STORED), slice(TRAINED + STORED, None))
    ]
    return Data(*parts)


def mean_average_precision(scores: npt.NDArray[Any], same: npt.NDArray[np.bool_]) -> float:
    """Return the mean over queries of the average precision of a ranking; what ties is retrieved together.

    Parameters
    ----------
    scores : ndarray, shape ``(queries, stored)``
        More is nearer.
    same : ndarray of bool, shape ``(queries, stored)``
        Which are of the query's class.
    """
    from sklearn.metrics import average_precision_score

    return float(np.mean([average_precision_score(hits, row) for row, hits in zip(scores, same, strict=True)]))


def _body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(COMPONENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())


def _train(model: nn.Module, loss: Any, part: tuple[Tensor, Tensor], check: Any = None) -> list[float]:
    inputs, labels = part
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    checked = []
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        if check is not None and (epoch + 1) % (EPOCHS // CHECKS) == 0:
            checked.append(check(model))
    return checked


def _hard(probabilities: Tensor) -> Tensor:
    """Return codes as probabilities of zero and one: what is measured on these is the plug-in estimate."""
    return nn.functional.one_hot(codes_of(probabilities), SYMBOLS).to(torch.float64)


@torch.no_grad()
def _says(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    return float(label_information(_hard(model(part[0])), part[1]).mean())


def _same(queries: Tensor, stored: Tensor) -> npt.NDArray[np.bool_]:
    return np.asarray((queries[:, None] == stored).numpy())


def _by_codes(arm: str, bits: float, held: Data, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(_body(), CodeHead(HIDDEN, int(bits) // 4, SYMBOLS))
    before = _says(model, held.stored)
    rising = _train(model, InfomaxLoss(1.0 if arm == OURS else 0.0), held.train, lambda one: _says(one, held.stored))
    with torch.no_grad():
        probabilities = {name: model(part[0]) for name, part in vars(held).items()}
        codes = {name: codes_of(one) for name, one in probabilities.items()}
        between = place_information(_hard(probabilities["stored"]))
        places = len(between)
        asked = agreement(probabilities["queries"], codes["stored"]).numpy()
        own = agreement(probabilities["train"][:QUERIES], codes["train"][QUERIES:]).numpy()
    seen = mean_average_precision(own, _same(held.train[1][:QUERIES], held.train[1][QUERIES:]))
    found = mean_average_precision(asked, _same(held.queries[1], held.stored[1]))
    return {
        "map": found,
        "gap": seen - found,
        "says": [before, *rising],
        "between": float((between.sum() - between.diagonal().sum()) / (places * (places - 1))),
        "last": rising[-1],
    }


def _by_products(bits: float, held: Data, seed: int) -> npt.NDArray[Any]:
    """Return minus the squared distances of queries to what product codes of 256 entries stand for."""
    from sklearn.cluster import KMeans

    parts = int(bits) // 8
    total = np.zeros((QUERIES, STORED))
    for columns in np.array_split(np.arange(COMPONENTS), parts):
        # Components in turn, so that every part holds large and small ones.
        own = (columns * parts) % COMPONENTS + (columns * parts) // COMPONENTS
        fitted = KMeans(256, n_init=1, random_state=seed).fit(held.train[0][:, own].numpy())
        centres = fitted.cluster_centers_[fitted.predict(held.stored[0][:, own].numpy())]
        asked = held.queries[0][:, own].numpy()
        total -= (asked**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * asked @ centres.T
    return total


def _by_signs(bits: float, held: Data, seed: int, *, learned: bool) -> npt.NDArray[Any]:
    """Return how many signs agree: of random directions, or of a classifier's last features."""
    torch.manual_seed(seed)
    if learned:
        features = nn.Sequential(_body(), nn.Linear(HIDDEN, int(bits)), nn.Tanh())
        _train(nn.Sequential(features, nn.Linear(int(bits), 10)), nn.CrossEntropyLoss(), held.train)
    else:
        directions = nn.Linear(COMPONENTS, int(bits), bias=False)
        nn.init.normal_(directions.weight)
        features = nn.Sequential(directions)
    with torch.no_grad():
        asked, stored = (features(part[0]).sign() for part in (held.queries, held.stored))
    return np.asarray((asked @ stored.T).numpy())


def measure(point: Point) -> Mapping[str, Any]:
    """Train codes or make them, and rank what is stored by them."""
    held = data(point.seed)
    if point.arm in (OURS, FREE):
        return _by_codes(point.arm, point.level, held, point.seed)
    if point.arm == PRODUCT:
        scores = _by_products(point.level, held, point.seed)
    else:
        scores = _by_signs(point.level, held, point.seed, learned=point.arm == CLASSIFIER)
    return {"map": mean_average_precision(scores, _same(held.queries[1], held.stored[1]))}


def retrieval(outcomes: Sequence[Outcome], others: Sequence[str], name: str) -> Part:
    """Decide whether more of what is retrieved is right than with other codes of as many bits."""
    rule = (
        "at every number of bits the mean average precision is above that of each by more than twice the standard "
        "error of paired differences; mixed: at some; does not hold: nowhere"
    )
    passed, texts = [], []
    for other in others:
        gaps = []
        for bits in BITS:
            own, theirs = (of_arm(outcomes, arm, bits, "map") for arm in (OURS, other))
            if len(own) < 2 or len(own) != len(theirs):
                return part_of(name, rule, UNTESTED)
            mean, error = paired(own, theirs)
            passed.append(mean > 2 * error)
            gaps.append(f"{100 * mean:+.1f} ± {100 * error:.1f}")
        texts.append(f"against `{other}` at {', '.join(f'{bits:g}' for bits in BITS)} bits: {', '.join(gaps)} points")
    return part_of(name, rule, share_passed(passed), "; ".join(texts))


def rises(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether codes say more and more of the label."""
    rule = (
        f"in every run, what a place says of the label on images that are not trained on is higher at the end than "
        f"before, and does not fall by more than 0.02 nats between two of {CHECKS} checks; mixed: in some"
    )
    runs = [one["says"] for one in outcomes if one["arm"] == OURS]
    if not runs:
        return part_of("information rises", rule, UNTESTED)
    passed = [run[-1] > run[0] and all(b >= a - 0.02 for a, b in pairwise(run)) for run in runs]
    start, end = (float(np.mean([run[at] for run in runs])) for at in (0, -1))
    text = f"{start:.2f} to {end:.2f} nats a place; in {sum(passed)} of {len(passed)} runs"
    return part_of("information rises", rule, share_passed(passed), text)


def independent(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether places say less of each other with the regularizer."""
    rule = (
        "at every number of bits, what two places share (the mean over pairs) is below that without the regularizer by "
        "more than twice the standard error of paired differences; mixed: at some; does not hold: nowhere"
    )
    passed, texts = [], []
    for bits in BITS:
        own, free = (of_arm(outcomes, arm, bits, "between") for arm in (OURS, FREE))
        if len(own) < 2 or len(own) != len(free):
            return part_of("independent places", rule, UNTESTED)
        mean, error = paired(own, free)
        passed.append(mean < -2 * error)
        texts.append(f"{bits:g} bits: {np.mean(own):.2f} against {np.mean(free):.2f} nats")
    return part_of("independent places", rule, share_passed(passed), "; ".join(texts))


def overfitting(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether shorter codes overfit less."""
    rule = (
        "how much higher the precision is on images that were trained on rises from the shortest to the longest codes "
        "by more than twice the standard error of paired differences; does not hold: falls likewise; mixed: otherwise"
    )
    short, long = (of_arm(outcomes, OURS, bits, "gap") for bits in (BITS[0], BITS[-1]))
    if len(short) < 2 or len(short) != len(long):
        return part_of("shorter codes overfit less", rule, UNTESTED)
    mean, error = paired(long, short)
    verdict = HOLDS if mean > 2 * error else FAILS if mean < -2 * error else MIXED
    text = ", ".join(f"{bits:g} bits: {100 * np.mean(of_arm(outcomes, OURS, bits, 'gap')):.1f} points" for bits in BITS)
    return part_of("shorter codes overfit less", rule, verdict, text, gap=mean, error=error)


def _data() -> str:
    held = data(0)
    return digest_of([part.numpy() for pair in vars(held).values() for part in pair[1:]])


TRIALS = Trials(
    slug="dimco",
    claim=(
        "Codes trained to share as much as they can with labels, their places independent, retrieve better than "
        "product quantization and sign hashing of as many bits; what they say of labels rises in training, and "
        "shorter codes overfit less."
    ),
    experiment=(
        f"Fashion-MNIST's training images by seed: {TRAINED} to train on, {STORED} stored, {QUERIES} asked for; the "
        f"{COMPONENTS} first principal components of their pixels, frozen. Codes of {SYMBOLS} symbols a place on a "
        "network of two layers. Product quantization and random directions see no labels, as in their papers; the "
        "signs of a classifier's features, trained alike, see the same labels. Ranking by agreement, distance or equal "
        "signs."
    ),
    arms=dict.fromkeys((OURS, FREE, PRODUCT, SIGNS, CLASSIFIER), BITS),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        retrieval(outcomes, (PRODUCT, SIGNS), "retrieval"),
        retrieval(outcomes, (CLASSIFIER,), "retrieval against codes that see labels"),
        rises(outcomes),
        independent(outcomes),
        overfitting(outcomes),
    ],
    columns=(
        Column("map", "mean average precision", "{:.3f}"),
        Column("last", "nats a place says of the label"),
        Column("between", "nats two places share"),
        Column("gap", "more on what was trained on", "{:.3f}"),
    ),
    level="bits",
    recipe={
        "symbols": SYMBOLS, "train": TRAINED, "stored": STORED, "queries": QUERIES, "components": COMPONENTS,
        "hidden": HIDDEN, "epochs": EPOCHS, "batch": BATCH, "rate": RATE,
    },
    data=_data,
    needs=FILES,
)  # fmt: skip
