"""The zoo's ViT rounded after training: the trials that claims about it share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from claims.coding import Point
from claims.common import Outcome
from claims.data import FASHION, image_task
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, of_arm, paired
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.after_training.method import Job, Method
from isthmus.errors import BadInput
from isthmus.flow.coding import file_bytes
from isthmus.network import Network, encode, outputs
from isthmus.storage.blobs import unpack
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task
from isthmus.tasks.data import data_folder

IMAGES, HELD = 32, 1000
"""Levels are set on so many images, and judged on so many that the network was not trained on."""
NEEDS = (FASHION,)
MODEL = "vit-fashion"
COLUMNS = (
    Column("accuracy", "accuracy", "{:.2%}"),
    Column("nats", "nats", "{:.4f}"),
    Column("bytes", "bytes", "{:,.0f}"),
)
EXPERIMENT = (
    f"`{MODEL}` (1.2 M parameters, 50 tokens) on Fashion-MNIST: levels are set on {{images}} training images drawn by "
    f"seed, accuracy and nats of divergence from the original are on {HELD:,} images that it was not trained on, "
    "of the part by which its recipe was chosen. Weights of the layers are rounded to so many bits a row, what "
    "enters their linear maps, queries, keys, values and attention weights to as many. "
)


@cache
def network() -> Network:
    """Return the original."""
    return open_network(MODEL)


@cache
def task() -> Task:
    """Return its task; what is held out is what it was not trained on."""
    folder = data_folder()
    if folder is None:
        raise BadInput("rounded ViT: skipped, no folder of data")
    return image_task(folder, FASHION)


@cache
def reference() -> tuple[Tensor, float]:
    """Return the original's logits of the images held out, and its accuracy."""
    found = logits(network())
    return found, accuracy(found)


def logits(one: Network) -> Tensor:
    """Return the logits of the images held out, ``(images, classes)``."""
    images = task().held_out.examples[:HELD]
    with torch.inference_mode():
        return torch.cat([outputs(one, encode(one, images[start : start + 250])) for start in range(0, HELD, 250)])


def accuracy(found: Tensor) -> float:
    """Return the share of the images held out that logits get right."""
    return float((found.argmax(1) == torch.tensor(task().held_out.labels[:HELD])).float().mean())


def measured(method: Method, point: Point, images: int = IMAGES) -> dict[str, Any]:
    """Round the original by a method to the point's bits, and return what that loses."""
    seen = list(task().train)
    random.Random(point.seed).shuffle(seen)
    bits = int(point.level)
    small = method.rounded(Job(network(), seen[:images], bits, bits, point.seed))
    whole, right = reference()
    found = logits(small)
    shapes = {name: small.model.get_parameter(name).shape for name in small.codes}
    codes = {name: unpack(small.codes[name], (rows, columns)) for name, (rows, columns) in shapes.items()}
    gap = (whole.softmax(1) * (whole.log_softmax(1) - found.log_softmax(1))).sum(1)
    return {
        "accuracy": accuracy(found),
        "original": right,
        "nats": float(gap.mean()),
        "bytes": file_bytes(small, codes),
    }


def ahead(outcomes: Sequence[Outcome], better: str, worse: str, level: float, name: str) -> Part:
    """Decide whether one arm loses less than another, in nats."""
    rule = (
        f"at {level:g} bits `{better}` loses fewer nats than `{worse}`, by more than twice the standard error of "
        "paired differences; mixed: fewer, by less"
    )
    ours, theirs = (of_arm(outcomes, arm, level, "nats") for arm in (better, worse))
    rights = [of_arm(outcomes, arm, level, "accuracy") for arm in (better, worse)]
    if len(ours) < 2 or len(ours) != len(theirs):
        return part_of(name, rule, UNTESTED)
    gap, error = paired(theirs, ours)
    text = (
        f"{sum(ours) / len(ours):.4f} against {sum(theirs) / len(theirs):.4f} nats, "
        f"{sum(rights[0]) / len(ours):.2%} against {sum(rights[1]) / len(theirs):.2%} right"
    )
    return part_of(name, rule, share_passed([gap > 0, gap > 2 * error]), text, gap=gap, error=error)


def data() -> str:
    """Return the fingerprint of the data."""
    return task().fingerprint


def recipe(images: int = IMAGES, **more: Any) -> Mapping[str, Any]:
    """Return what the figures depend on besides the data."""
    return {"images": images, "held": HELD, "model": MODEL, **more}
