"""NormGrad (Rebuffi et al. 2020): the norm of what a location adds to a weight's gradient, as a saliency map.

Networks are pretrained; maps of 240 classes in mosaics at five depths, three times: a minute on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.saliency import Seen, class_sensitivity, combined, contributions, locations, observe, saliency
from isthmus.network import Network, encode
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.task import Task

FILE, KIND = "cifar10/train-20k.npz", "cifar10-resnet20"
NORMGRAD, CAM, COMBINED, IDENTITY = "normgrad", "grad-cam", "normgrad, all depths", "identity convolution"
TRAINED, RANDOM = "sensitivity, trained", "sensitivity, random weights"
PATHS = ("layer1.0", "layer1.2", "layer2.2", "layer3.1", "layer3.2")
"""Modules whose output is explained, by level, from the input to the logits.

Behind the last one comes the mean over places: there the gradient is the same everywhere, and NormGrad's map cannot
depend on the class. It is shown and not decided on.
"""
DEPTHS = tuple(float(place) for place in range(len(PATHS)))
DECIDED = DEPTHS[:-1]
EARLY, LATE = DECIDED[0], DECIDED[-1]
MOSAICS, IMAGES = 60, 64
"""Mosaics of four images a seed; images that sensitivity is measured on."""
SURE = 0.9
"""Probability from which on an image may be part of a mosaic."""
EXACT = 1e-4
METHODS: dict[str, Mapping[str, Any]] = {
    NORMGRAD: {"extraction": "outer", "aggregation": "norm"},
    CAM: {"extraction": "cam", "aggregation": "positive"},
}


@cache
def _network() -> Network:
    folder = data_folder()
    if folder is None:
        raise BadInput("normgrad: skipped, no folder of data")
    return open_network(f"{KIND}={folder.parent / 'models' / KIND}.safetensors")


@cache
def _task() -> Task:
    folder = data_folder()
    if folder is None:
        raise BadInput("normgrad: skipped, no folder of data")
    return load_task(f"images:{folder / FILE}")


def drawn(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return pixels ``(count, 3, 32, 32)`` as the network takes them, and labels, of held-out images by seed."""
    held = _task().held_out
    places = np.random.default_rng(seed).permutation(len(held.examples))[:count]
    pixels = encode(_network(), [held.examples[place] for place in places])["pixel_values"]
    return pixels, torch.tensor([held.labels[place] for place in places])


@dataclass(frozen=True)
class Mosaics:
    """Four images of four classes in two rows: pixels ``(mosaics, 3, 64, 64)``, classes ``(mosaics, 4)`` by quarter."""

    pixels: Tensor
    classes: Tensor


def mosaics(pixels: Tensor, labels: Tensor, count: int, seed: int) -> Mosaics:
    """Put images together, four of four classes each.

    Parameters
    ----------
    pixels : Tensor, shape ``(images, channels, side, side)``
    labels : Tensor, shape ``(images,)``

    Raises
    ------
    BadInput
        If there are images of fewer than four classes.
    """
    different = len(set(labels.tolist()))
    if different < 4:
        raise BadInput(f"mosaics: images of {different} classes; four are needed")
    rng, chosen = np.random.default_rng([seed, 4]), list[list[int]]()
    while len(chosen) < count:
        order, four = rng.permutation(len(labels)), list[int]()
        for place in order.tolist():
            if all(labels[place] != labels[other] for other in four):
                four.append(place)
            if len(four) == 4:
                chosen.append(four)
                break
    rows = torch.tensor(chosen)
    quarters = pixels[rows]
    upper, lower = (torch.cat([quarters[:, at], quarters[:, at + 1]], dim=-1) for at in (0, 2))
    return Mosaics(torch.cat([upper, lower], dim=-2), labels[rows])


def pointing(maps: Tensor, quarter: int) -> tuple[Tensor, Tensor]:
    """Return whether the largest value is in a quarter (0 left above, 3 right below), and the map's share in it.

    A map without any value says nothing: it hits by chance, a quarter of the time.

    Parameters
    ----------
    maps : Tensor, shape ``(mosaics, height, width)``
        None below 0; height and width even.
    """
    high, wide = maps.shape[1] // 2, maps.shape[2] // 2
    top, left = high * (quarter // 2), wide * (quarter % 2)
    own = maps[:, top : top + high, left : left + wide].flatten(1)
    whole = maps.flatten(1)
    empty = whole.amax(1) <= 0
    hit = (own.amax(1) >= whole.amax(1)).double()
    share = own.sum(1).double() / whole.sum(1).double().clamp(min=1e-300)
    return torch.where(empty, 0.25, hit), torch.where(empty, 0.25, share)


@cache
def _mosaics(seed: int) -> Mosaics:
    pixels, labels = drawn(seed, 800)
    with torch.no_grad():
        logits = torch.cat([_network().model(pixel_values=part).logits for part in torch.split(pixels, 200)])
    sure = (logits.argmax(1) == labels) & (logits.softmax(1).amax(1) >= SURE)
    return mosaics(pixels[sure], labels[sure], MOSAICS, seed)


@cache
def _maps(method: str, seed: int) -> tuple[dict[str, Tensor], ...]:
    """Return the maps of each quarter's class, at all depths."""
    held, inputs = _mosaics(seed), {"pixel_values": _mosaics(seed).pixels}
    return tuple(
        saliency(_network().model, PATHS, inputs, held.classes[:, quarter], **METHODS[method]) for quarter in range(4)
    )


def _points(arm: str, level: float, seed: int) -> dict[str, Any]:
    hits, shares = [], []
    for quarter, maps in enumerate(_maps(NORMGRAD if arm == COMBINED else arm, seed)):
        found = combined(list(maps.values())) if arm == COMBINED else maps[PATHS[int(level)]]
        hit, share = pointing(found, quarter)
        hits.append(hit)
        shares.append(share)
    return {"hits": float(torch.cat(hits).mean()), "mass": float(torch.cat(shares).mean())}


def identity_gradient(model: nn.Module, path: str, inputs: Mapping[str, Tensor], classes: Tensor) -> Tensor:
    """Return the gradient by the weights of an identity 1x1 convolution put behind a module, ``(channels, channels)``.

    By backpropagation through a convolution that is really there.
    """
    weights: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        weight = torch.eye(output.shape[1])[:, :, None, None].requires_grad_()
        weights.append(weight)
        return nn.functional.conv2d(output, weight)

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), weights)
    return gradient[:, :, 0, 0]


def _identity(level: float, seed: int) -> dict[str, Any]:
    pixels, labels = drawn(seed, 32)
    path, inputs = PATHS[int(level)], {"pixel_values": pixels}
    expected = identity_gradient(_network().model, path, inputs, labels)
    seen: Seen = observe(_network().model, [path], inputs, labels)[path]
    summed = contributions(locations(seen.output), locations(seen.gradient)).sum((0, 1))
    return {"off": float((summed - expected).norm() / expected.norm())}


def _random(seed: int) -> nn.Module:
    """Return the network with random weights, its batch norms fitted to images, so that nothing vanishes on the way."""
    torch.manual_seed(seed)
    model: Any = type(_network().model)(_network().model.config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(pixel_values=drawn(seed + 1000, 256)[0])
    model.eval()
    found: nn.Module = model
    return found


def measure(point: Point) -> Mapping[str, Any]:
    """Let maps point at classes in mosaics, hold them against a gradient, or say how much they depend on the class."""
    if point.arm in (NORMGRAD, CAM, COMBINED):
        return _points(point.arm, point.level, point.seed)
    if point.arm == IDENTITY:
        return _identity(point.level, point.seed)
    model = _network().model if point.arm == TRAINED else _random(point.seed)
    inputs = {"pixel_values": drawn(point.seed, IMAGES)[0]}
    return {"sensitivity": class_sensitivity(model, PATHS[int(point.level)], inputs)}


def early(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): which points better close to the input."""
    rule = (
        f"in mosaics, at {PATHS[0]}, the share of maps whose largest value is in the quarter of the class that they "
        "explain is higher for NormGrad than for Grad-CAM by more than twice the standard error of paired differences; "
        "does not hold: lower likewise; mixed: otherwise"
    )
    name = "pointing close to the input, against Grad-CAM"
    ours, theirs = (of_arm(outcomes, arm, EARLY, "hits") for arm in (NORMGRAD, CAM))
    if len(ours) < 2 or len(ours) != len(theirs):
        return part_of(name, rule, UNTESTED)
    gap, error = paired(ours, theirs)
    verdict = HOLDS if gap > 2 * error else FAILS if gap < -2 * error else MIXED
    text = f"{np.mean(ours):.1%} against {np.mean(theirs):.1%} (chance 25%)"
    return part_of(name, rule, verdict, text, gap=gap, error=error)


def degrades(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): which loses less on the way from the logits to the input."""
    rule = (
        f"from {PATHS[int(LATE)]} to {PATHS[0]} the share falls by less for NormGrad than for Grad-CAM, by more than "
        "twice the standard error of paired differences; does not hold: by more; mixed: otherwise"
    )
    name = "what is lost from the last to the first depth"
    falls = {}
    for arm in (NORMGRAD, CAM):
        late, first = (of_arm(outcomes, arm, level, "hits") for level in (LATE, EARLY))
        if len(late) < 2 or len(late) != len(first):
            return part_of(name, rule, UNTESTED)
        falls[arm] = [a - b for a, b in zip(late, first, strict=True)]
    if len(falls[NORMGRAD]) != len(falls[CAM]):
        return part_of(name, rule, UNTESTED)
    gap, error = paired(falls[NORMGRAD], falls[CAM])
    verdict = HOLDS if gap < -2 * error else FAILS if gap > 2 * error else MIXED
    text = f"{100 * np.mean(falls[NORMGRAD]):.1f} against {100 * np.mean(falls[CAM]):.1f} points"
    return part_of(name, rule, verdict, text)


def sensitive(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): maps depend more on the class where weights are trained."""
    rule = (
        "at each depth but the last, one less the correlation of the maps of the likeliest and the least likely class "
        "is higher with trained weights than with random ones by more than twice the standard error; mixed: at some; "
        "does not hold: nowhere"
    )
    name, passed, texts = "class sensitivity", [], []
    for level in DECIDED:
        path = PATHS[int(level)]
        ours, theirs = (of_arm(outcomes, arm, level, "sensitivity") for arm in (TRAINED, RANDOM))
        if len(ours) < 2 or len(ours) != len(theirs):
            return part_of(name, rule, UNTESTED)
        gap, error = paired(ours, theirs)
        passed.append(gap > 2 * error)
        texts.append(f"{path}: {np.mean(ours):.3f} against {np.mean(theirs):.3f}")
    return part_of(name, rule, share_passed(passed), "; ".join(texts))


def together(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): maps of all depths together point better than that of any."""
    rule = (
        "the geometric mean of the maps of all depths points better than the map of each but the last by more than "
        "twice the standard error of paired differences; mixed: than of some; does not hold: than of none"
    )
    name, passed, texts = "maps of all depths together", [], []
    whole = of_arm(outcomes, COMBINED, None, "hits")
    for level in DECIDED:
        path = PATHS[int(level)]
        own = of_arm(outcomes, NORMGRAD, level, "hits")
        if len(own) < 2 or len(own) != len(whole):
            return part_of(name, rule, UNTESTED)
        gap, error = paired(whole, own)
        passed.append(gap > 2 * error)
        texts.append(f"{path} {np.mean(own):.1%}")
    return part_of(name, rule, share_passed(passed), f"{np.mean(whole):.1%}; {', '.join(texts)}")


def identical(outcomes: Sequence[Outcome]) -> Part:
    """Decide (e): locations add up to the gradient of an identity's weights."""
    rule = (
        f"at every depth, what locations contribute adds up to the gradient by the weights of an identity convolution "
        f"that is put there, within {EXACT:g} of its length"
    )
    values = of_arm(outcomes, IDENTITY, None, "off")
    if not values:
        return part_of("the sum over locations", rule, UNTESTED)
    passed = [value <= EXACT for value in values]
    return part_of("the sum over locations", rule, share_passed(passed), f"off by {max(values):.1e} at the most")


TRIALS = Trials(
    slug="normgrad",
    claim=(
        "The norm of what a location adds to the gradient of an identity convolution's weights is a saliency map that "
        "still points at what it explains close to the input, where Grad-CAM does not, and that depends on the class "
        "where a network is trained."
    ),
    experiment=(
        f"The pretrained ResNet-20 of CIFAR-10. Pointing: {MOSAICS} mosaics by seed of four images of four classes "
        f"that it recognises with a probability of {SURE:g} or more, read as one image of 64 by 64 pixels; for each of "
        "the four classes a map of each method at five depths. Nothing is smoothed. Behind the last depth comes "
        "the mean over places, so that NormGrad cannot tell classes apart there: it is shown and not decided on. "
        f"Sensitivity: NormGrad's maps of {IMAGES} held-out images; random weights are drawn by seed, their batch "
        "norms fitted to images."
    ),
    arms={
        NORMGRAD: DEPTHS, CAM: DEPTHS, COMBINED: (0.0,), TRAINED: DEPTHS, RANDOM: DEPTHS, IDENTITY: DEPTHS,
    },
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        early(outcomes), degrades(outcomes), sensitive(outcomes), together(outcomes), identical(outcomes),
    ],
    columns=(
        Column("hits", "points at the class", "{:.1%}"),
        Column("mass", "of the map, in its quarter", "{:.1%}"),
        Column("sensitivity", "class sensitivity", "{:.3f}"),
        Column("off", "off by", "{:.1e}"),
    ),
    level="depth",
    recipe={"mosaics": MOSAICS, "images": IMAGES, "sure": SURE, "paths": list(PATHS)},
    data=lambda: _task().fingerprint,
    needs=(FILE,),
)  # fmt: skip
