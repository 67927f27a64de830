"""Populations of small classifiers, before and after narrowing: what claims about what narrowing forgets are tested on.

Networks of two hidden layers learn images of Fashion-MNIST. Each is narrowed physically, the hidden units of least
magnitude first, and trained on for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from claims.coding import Point
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput
from isthmus.network import ImageInput, Network
from isthmus.relevance.weights import unit_energy
from isthmus.sites import Site, discover, narrow_model
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx

FILES = ("fashion-mnist/train-images-idx3-ubyte.gz", "fashion-mnist/train-labels-idx1-ubyte.gz")
CLASSES, SIDE = 10, 28
TRAINED, HELD = 6000, 4000
NETWORKS = 5
"""In a population; another original takes no part in finding exemplars, so that its accuracy on them is fair."""
HIDDEN, EPOCHS, EPOCHS_AFTER, BATCH, RATE = 128, 15, 8, 128, 1e-3
SHARES = (1.0, 0.5, 0.25, 0.1)
NARROWED, AGAIN, SMALL = "narrowed and trained on", "trained again from the start", "small from the start"
ARMS = {NARROWED: SHARES, AGAIN: (1.0,), SMALL: (SHARES[-1],)}

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Images and what is known of them.

    Parameters
    ----------
    pixels : Tensor
        Shape ``(images, 1, height, width)``, from 0 to 1.
    labels : array (images,)
        To train on and to be judged by.
    planted : array (images,) of bool
        Those that something was done to.
    """

    pixels: Tensor
    labels: Integers
    planted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Data:
    """Images to train on, and others held out."""

    train: Examples
    held: Examples


Plant = Callable[[npt.NDArray[np.uint8], Integers, int], Data]


@cache
def images(seed: int) -> tuple[npt.NDArray[np.uint8], Integers]:
    """Return images (images, 28, 28) and labels of Fashion-MNIST's training part in an order drawn by seed.

    Raises
    ------
    BadInput
        If the data is not there.
    """
    folder = data_folder()
    if folder is None:
        raise BadInput("populations: skipped, no folder of data")
    pixels, labels = (read_idx(folder / file) for file in FILES)
    order = np.random.default_rng(seed).permutation(len(pixels))
    return pixels[order], labels[order].astype(np.int64)


def as_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return images (images, height, width) as a network takes them."""
    return torch.from_numpy(pixels[:, None].astype(np.float32) / 255)


class Classifier(nn.Module):
    """Two hidden layers on pixels."""

    def __init__(self, hidden: tuple[int, int]) -> None:
        super().__init__()
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
            nn.Linear(second, CLASSES),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor) -> Any:
        """Return logits ``(batch, classes)`` of images ``(batch, 1, height, width)``."""
        return ImageClassifierOutputWithNoAttention(logits=self.layers(pixel_values))


def trained(model: nn.Module, examples: Examples, epochs: int, seed: int) -> nn.Module:
    """Train a model on all images for so many epochs, in an order drawn by seed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(examples.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(examples.pixels[rows]).logits, labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def fresh(examples: Examples, seed: int, hidden: tuple[int, int] | None = None, epochs: int = EPOCHS) -> nn.Module:
    """Return a model trained from weights drawn by seed."""
    torch.manual_seed(seed)
    return trained(Classifier(hidden or (HIDDEN, HIDDEN)), examples, epochs, seed)


def narrowed(model: nn.Module, share: float) -> nn.Module:
    """Return a physically narrower copy: as many units of each hidden layer as keep it within a share of parameters."""
    whole = ImageInput(1, SIDE, SIDE, (0.0,), (1.0,))
    sites = discover(Network("classifier", model, None, "logits", False, 1, images=whole))
    limit = share * count_parameters(model)
    weights = dict(model.named_parameters())
    ranked = {site.name: np.argsort(-unit_energy(weights, site), kind="stable") for site in sites}
    low, high = 1, max(site.units for site in sites)
    while low < high:  # the most units that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _taking(model, sites, ranked, middle)[1] <= limit else (low, middle - 1)
    return _taking(model, sites, ranked, low)[0]


def _taking(
    model: nn.Module, sites: tuple[Site, ...], ranked: dict[str, Integers], units: int
) -> tuple[nn.Module, int]:
    kept = {name: tuple(sorted(order[:units].tolist())) for name, order in ranked.items()}
    smaller = narrow_model(model, sites, kept)
    return smaller, count_parameters(smaller)


def widths(model: nn.Module) -> tuple[int, int]:
    """Return how many units the hidden layers have."""
    first, second, _ = (one.out_features for one in model.modules() if isinstance(one, nn.Linear))
    return first, second


@torch.no_grad()
def probabilities(models: tuple[nn.Module, ...], examples: Examples) -> Floats:
    """Return what models say of images, shape ``(models, images, classes)``."""
    read = [torch.softmax(model(examples.pixels).logits.double(), 1).numpy() for model in models]
    return np.stack(read)


@dataclass(frozen=True)
class Originals:
    """The data of a seed, a population of networks trained on it, and another network."""

    data: Data
    models: tuple[nn.Module, ...]
    other: nn.Module


@cache
def originals(plant: Plant, seed: int) -> Originals:
    """Return the originals of a seed; all that is drawn follows from it."""
    data = plant(*images(seed), seed)
    models = tuple(fresh(data.train, 1000 * seed + number) for number in range(NETWORKS + 1))
    return Originals(data, models[:-1], models[-1])


def population(plant: Plant, point: Point) -> tuple[nn.Module, ...]:
    """Return the population of a point: an arm's, at a share of the parameters."""
    first = originals(plant, point.seed)
    seeds = [1000 * point.seed + 100 + number for number in range(NETWORKS)]
    if point.arm == AGAIN:
        return tuple(fresh(first.data.train, seed) for seed in seeds)
    if point.arm == SMALL:
        hidden = widths(narrowed(first.models[0], point.level))
        # As many epochs as narrowed ones have had before and after the cut.
        return tuple(fresh(first.data.train, seed, hidden, EPOCHS + EPOCHS_AFTER) for seed in seeds)
    return tuple(
        trained(narrowed(model, point.level), first.data.train, EPOCHS_AFTER, seed)
        for model, seed in zip(first.models, seeds, strict=True)
    )


def recipe() -> dict[str, Any]:
    """Return what the figures depend on besides the data."""
    return {
        "trained": TRAINED, "held": HELD, "networks": NETWORKS, "hidden": HIDDEN, "epochs": EPOCHS,
        "epochs_after": EPOCHS_AFTER, "batch": BATCH, "rate": RATE,
    }  # fmt: skip
