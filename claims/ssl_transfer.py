"""Transfer (Ericsson et al. 2021): does the score on the source tell what a backbone's features are worth elsewhere?

Five versions of a pretrained network on four other sets of images, three times: a minute on one core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.audit.transfer import TransferSet, measure_transfer
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput
from isthmus.information.activations import activations
from isthmus.network import Network, encode
from isthmus.recovery.norms import estimate_norms
from isthmus.relevance.weights import unit_energy
from isthmus.sites import discover, narrow_model
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx
from isthmus.tasks.task import Task

FILES = (
    "cifar10/train-20k.npz", "fashion-mnist/train-images-idx3-ubyte.gz", "fashion-mnist/train-labels-idx1-ubyte.gz",
    "easy-vqa/easy-vqa-train.npz", "easy-vqa/easy-vqa-train-questions.json",
)  # fmt: skip
KIND, VERSION = "cifar10-resnet20", "resnet20"
SHARES = (1.0, 0.85, 0.7, 0.5, 0.3)
"""Of the channels within each block that stay."""
SETS = ("clothes", "digits", "shapes", "colours")
MANY, FEW, ERROR = "many-shot", "few-shot 5", "calibration error"
TRAINED, TESTED, SOURCE, NORMED = 200, 160, 300, 384
"""Images of each set; of the source, to score on; to fit batch norms to."""
HIGH = 0.8

Pixels = npt.NDArray[np.uint8]


def _folder() -> Any:
    folder = data_folder()
    if folder is None:
        raise BadInput("ssl-transfer: skipped, no folder of data")
    return folder


@cache
def _task() -> Task:
    return load_task(f"images:{_folder() / FILES[0]}")


@cache
def version(share: float) -> Network:
    """Return the network with that share of the channels within each block, the largest; batch norms fitted anew."""
    network = open_network(f"{KIND}={_folder().parent / 'models' / KIND}.safetensors")
    if share == 1:
        return network
    parameters, sites = dict(network.model.named_parameters()), discover(network)
    kept = {}
    for site in (site for site in sites if ".conv1." in site.name):
        count = max(1, round(share * site.units))
        kept[site.name] = sorted(unit_energy(parameters, site).argsort()[site.units - count :].tolist())
    narrowed = replace(network.with_model(narrow_model(network.model, sites, kept)), name=f"{share:.0%}")
    estimate_norms(narrowed, _task().train[:NORMED])
    return narrowed


@cache
def images(name: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Return a set's images, ``(images, height, width, 3)``, and labels."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return _coloured((digits.images * (255 / 16)).astype(np.uint8)), digits.target.astype(np.int64)
    if name == "clothes":
        grey, labels = (read_idx(_folder() / file) for file in FILES[1:3])
        return _coloured(np.asarray(grey[:4000], dtype=np.uint8)), labels[:4000].astype(np.int64)
    return _vqa(name)


def _coloured(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1)


def _vqa(name: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Return the images of questions of what shape or what colour there is, one question an image."""
    held = np.load(_folder() / FILES[3])
    pixels = next(held[key] for key in held.files if held[key].ndim == 4)
    asked = json.loads((_folder() / FILES[4]).read_text(encoding="utf-8"))
    words = {"shapes": ("circle", "rectangle", "triangle")}.get(name)
    found = {}
    for question, answer, image in asked:
        colour = "color" in question and answer not in ("yes", "no")
        if (answer in words) if words else colour:
            found[int(image)] = answer
    names = sorted(set(found.values()))
    places = sorted(found)
    return np.asarray(pixels[places], dtype=np.uint8), np.array([names.index(found[place]) for place in places])


@cache
def _drawn(name: str, seed: int) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    pixels, labels = images(name)
    chosen = np.random.default_rng([seed, SETS.index(name)]).permutation(len(pixels))[: TRAINED + TESTED]
    return encode(version(1.0), pixels[chosen])["pixel_values"], labels[chosen]


def features(network: Network, pixels: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the mean over places of what the last block gives, shape ``(images, width)``."""
    path = "layer3"
    found = activations(network.model, [path], {"pixel_values": pixels})[path].double().numpy()
    return np.asarray(found)


def _source(network: Network, seed: int) -> float:
    held = _task().held_out
    chosen = np.random.default_rng(seed).permutation(len(held.examples))[:SOURCE]
    right = []
    for part in np.array_split(chosen, max(1, len(chosen) // 200)):
        with torch.no_grad():
            logits = network.model(**encode(network, [held.examples[place] for place in part])).logits
        right.append(logits.argmax(1).numpy() == np.array([held.labels[place] for place in part]))
    return float(np.concatenate(right).mean())


def measure(point: Point) -> Mapping[str, Any]:
    """Return the card of one version: its score on the source, and its columns on each set."""
    network, sets = version(point.level), []
    for name in SETS:
        pixels, labels = _drawn(name, point.seed)
        rows, targets = features(network, pixels), labels.astype(np.float64)
        sets.append(
            TransferSet(
                name, rows[:TRAINED], rows[TRAINED:], targets[:TRAINED], targets[TRAINED:], int(labels.max()) + 1
            )
        )
    card = measure_transfer([network.name], [sets], seed=point.seed)
    found = {f"{cell.dataset}, {cell.column}": cell.value.value for cell in card.cells}
    means = {
        column: float(np.mean([value for name, value in found.items() if name.endswith(column)]))
        for column in (MANY, FEW, ERROR)
    }
    source = _source(network, point.seed)
    return {"source": source, "parameters": count_parameters(network.model), **found, **means}


def correlations(outcomes: Sequence[Outcome], column: str) -> list[float]:
    """Return, by seed, the mean over sets of the rank correlation over versions of source score and column."""
    found = []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = [one for one in outcomes if one["seed"] == seed]
        if len(own) == len(SHARES):
            source = [one["source"] for one in own]
            worth = [[one[f"{name}, {column}"] for one in own] for name in SETS]
            found.append(float(np.mean([spearmanr(source, one).statistic for one in worth])))
    return found


def tells(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): whether the source's score tells the transfer."""
    rule = (
        f"the rank correlation over versions of source accuracy and many-shot accuracy, in the mean over {len(SETS)} "
        f"sets, is {HIGH:g} or more in the mean over seeds; does not hold: below {HIGH / 2:g}; mixed: between"
    )
    found = correlations(outcomes, MANY)
    if not found:
        return part_of("source accuracy tells many-shot transfer", rule, UNTESTED)
    mean = float(np.mean(found))
    verdict = HOLDS if mean >= HIGH else FAILS if mean < HIGH / 2 else MIXED
    return part_of("source accuracy tells many-shot transfer", rule, verdict, f"{mean:+.2f}")


def less_so(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): whether it tells few-shot transfer less."""
    rule = (
        "that correlation is lower with five examples of each class, by more than twice the standard error of paired "
        "differences; does not hold: higher likewise; mixed: otherwise"
    )
    many, few = (correlations(outcomes, column) for column in (MANY, FEW))
    if len(many) < 2:
        return part_of("less so few-shot transfer", rule, UNTESTED)
    gap, error = paired(few, many)
    verdict = HOLDS if gap < -2 * error else FAILS if gap > 2 * error else MIXED
    return part_of("less so few-shot transfer", rule, verdict, f"{np.mean(few):+.2f} against {np.mean(many):+.2f}")


def first_lost(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): whether few-shot accuracy goes before many-shot accuracy."""
    rule = (
        "at every share below one, in the mean over sets, a larger part of few-shot accuracy is lost than "
        "of many-shot accuracy, by more than twice the standard error of paired differences; mixed: at some; does not "
        "hold: at none"
    )
    name, passed, texts = "few-shot accuracy goes first", [], []
    for share in SHARES[1:]:
        lost = {}
        for column in (MANY, FEW):
            before, after = (of_arm(outcomes, VERSION, level, column) for level in (1.0, share))
            if len(before) < 2 or len(before) != len(after):
                return part_of(name, rule, UNTESTED)
            lost[column] = [1 - b / a for a, b in zip(before, after, strict=True)]
        gap, error = paired(lost[FEW], lost[MANY])
        passed.append(gap > 0 and gap > 2 * error)
        texts.append(f"{share:.0%}: {np.mean(lost[FEW]):.1%} against {np.mean(lost[MANY]):.1%}")
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of(name, rule, verdict, "; ".join(texts))


TRIALS = Trials(
    slug="ssl-transfer",
    claim=(
        "Over versions of one backbone, accuracy on the source goes with what a linear probe finds elsewhere, more so "
        "with many examples than with few; what few examples find is lost first."
    ),
    experiment=(
        "ResNet-20 of CIFAR-10 and four versions with fewer channels within each block (the largest stay, batch "
        "norms are fitted anew, nothing is trained), frozen. Sets: Fashion-MNIST, scikit-learn's digits, and shape and "
        f"colour of easy-VQA's images; {TRAINED} images to fit a probe to, {TESTED} to test it, by seed. Source "
        f"accuracy: {SOURCE} held-out images. The paper compares thirteen pretrained backbones, not versions of one."
    ),
    arms={VERSION: SHARES},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [tells(outcomes), less_so(outcomes), first_lost(outcomes)],
    columns=(
        Column("source", "accuracy on the source", "{:.1%}"),
        *(Column(f"{name}, {MANY}", f"{name}, many", "{:.1%}") for name in SETS),
        *(Column(f"{name}, {FEW}", f"{name}, five a class", "{:.1%}") for name in SETS),
        Column(ERROR, "calibration error", "{:.3f}"),
    ),
    level="channels that stay",
    recipe={"trained": TRAINED, "tested": TESTED, "source": SOURCE, "normed": NORMED, "sets": list(SETS)},
    data=lambda: _task().fingerprint,
    needs=FILES,
)  # fmt: skip
