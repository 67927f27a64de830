"""Inputs: networks on images that were compressed on the way to them, and the bytes that were sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.audit.checks import Array
from isthmus.audit.inputs import CODECS, InputCurve, Sent, compress_image, measure_inputs
from isthmus.errors import BadInput
from isthmus.examples import Pixels, image_of_array
from isthmus.flow.suiting import check_suits
from isthmus.flow.verifying import check_labels
from isthmus.flow.watching import blocks
from isthmus.information.activations import activations
from isthmus.network import Network, encode, outputs
from isthmus.progress import Progress, silent
from isthmus.tasks import Task

QUALITIES = (90, 70, 50, 30, 20, 10, 5, 1)
IMAGES = 1000
BATCH = 128
Setting = tuple[str, int]


@dataclass(frozen=True)
class Inputs:
    """Networks on compressed images: a curve for each, whose features the distance is of, and notes."""

    task: str
    images: int
    features: str
    curves: tuple[InputCurve, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the curves as plain data."""
        return asdict(self)


def measure_sent(
    networks: Sequence[Network],
    task: Task,
    *,
    codecs: Sequence[str] = tuple(CODECS),
    qualities: Sequence[int] = QUALITIES,
    images: int = IMAGES,
    judge: Network | None = None,
    paths: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Inputs:
    """Compress held-out images at falling quality and measure classifiers on what arrives.

    Parameters
    ----------
    networks : sequence of Network
        Classifiers of images.
    task : Task
        With labelled images; those held out are used, ``images`` of them at most, drawn by seed.
    codecs, qualities
        Every codec is taken at every quality.
    judge : Network, optional
        Whose features the deep distance is of; the first network by default.
    paths : sequence of str
        Its modules; by default four of its blocks, evenly from the first to the last.

    Returns
    -------
    Inputs
        The deep distance of two images is the mean over modules of one less the cosine of what they give.

    Raises
    ------
    BadInput
        If a network is no classifier of images, the task has no labels, or a codec or quality cannot be used.
    """
    notes = _check(networks, task, codecs, qualities)
    seeing = judge or networks[0]
    modules = tuple(paths) or tuple(blocks(seeing.model))
    order = np.sort(np.random.default_rng(seed).permutation(len(task.held_out.examples))[:images])
    pixels = [_opaque(np.asarray(task.held_out.examples[place])) for place in order]
    labels = torch.tensor(task.held_out.labels)[torch.from_numpy(order)]
    settings = [(codec, quality) for codec in codecs for quality in qualities]
    clean: list[list[tuple[Tensor, Tensor]]] = [[] for _ in networks]
    parts: dict[Setting, list[list[Sent]]] = {setting: [[] for _ in networks] for setting in settings}
    total = -(-len(pixels) // BATCH)
    for step, rows in enumerate(_rows(len(pixels))):
        progress("inputs", step, total)
        own, truth = pixels[rows], labels[rows]
        whole = _features(seeing, modules, own)
        for number, network in enumerate(networks):
            clean[number].append(_answers(network, own, truth))
        for codec, quality in settings:
            arrived, sizes = zip(*(compress_image(one, codec, quality) for one in own), strict=True)
            squared = np.array([((one.astype(float) - two) ** 2).mean() for one, two in zip(own, arrived, strict=True)])
            deep = deep_distance(whole, _features(seeing, modules, arrived))
            for number, network in enumerate(networks):
                right, losses = (side.numpy() for side in _answers(network, arrived, truth))
                found = Sent(right, losses, np.array(sizes, dtype=float), squared, deep)
                parts[codec, quality][number].append(found)
    progress("inputs", total, total)
    raw = float(np.mean([one.size for one in pixels]))
    curves = []
    for number, network in enumerate(networks):
        right, losses = (torch.cat(side).numpy() for side in zip(*clean[number], strict=True))
        sent = {setting: _joined(every[number]) for setting, every in parts.items()}
        curves.append(measure_inputs(right, losses, sent, raw_bytes=raw, name=network.name, seed=seed))
    return Inputs(task.name, len(pixels), f"{seeing.name}: {', '.join(modules)}", tuple(curves), notes)


def deep_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Array:
    """Return the mean over modules of one less the cosine of two sets of features, ``(images, width)`` by module."""
    each = [1 - F.cosine_similarity(first[path].double(), second[path].double(), dim=1) for path in first]
    return np.asarray(torch.stack(each).mean(0).numpy())


def _check(networks: Sequence[Network], task: Task, codecs: Sequence[str], qualities: Sequence[int]) -> tuple[str, ...]:
    if not networks or not codecs or not qualities:
        raise BadInput("inputs: give at least one network, one codec and one quality")
    for codec in codecs:
        for quality in qualities:
            compress_image(np.zeros((8, 8), dtype=np.uint8), codec, quality)
    notes: list[str] = []
    for network in networks:
        notes += check_suits(network, task)
        if network.images is None or network.pooling != "logits":
            raise BadInput(f"inputs: network {network.name} is no classifier of images; give one, such as a ViT")
        if not task.held_out.labels:
            raise BadInput(f"{task.name}: its images have no labels; give a folder for each class, or labels beside")
        check_labels(network, task)
    return tuple(dict.fromkeys(notes))


def _opaque(image: Pixels) -> Pixels:
    """Return an image as codecs take it: (height, width) or (height, width, 3), without what says how opaque it is."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[2] > 2 else image[..., 0]


def _rows(count: int) -> Iterator[slice]:
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))


def _features(network: Network, paths: Sequence[str], images: Sequence[Pixels]) -> dict[str, Tensor]:
    return activations(network.model, paths, _encoded(network, images), pooling="flatten")


def _encoded(network: Network, images: Sequence[Pixels]) -> dict[str, Tensor]:
    return encode(network, [image_of_array(one, "what arrived") for one in images])


@torch.inference_mode()
def _answers(network: Network, images: Sequence[Pixels], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each class is right, 0 or 1, and the cross-entropy of the true one."""
    logits = outputs(network, _encoded(network, images)).double()
    return (logits.argmax(1) == labels).double(), F.cross_entropy(logits, labels, reduction="none")


def _joined(parts: Sequence[Sent]) -> Sent:
    return Sent(*(np.concatenate([vars(part)[name] for part in parts]) for name in Sent.__dataclass_fields__))
