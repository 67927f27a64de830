"""The parts of an audit that read the networks again: corruptions, positions and transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from isthmus.audit.checks import LEAST, Array, Integers
from isthmus.audit.composing import Composed, compose
from isthmus.audit.corruptions import CORRUPTIONS, corrupt_texts
from isthmus.audit.features import encoder_of, features_of
from isthmus.audit.imagecorruptions import IMAGE_CORRUPTIONS, corrupt_image
from isthmus.audit.position import PositionBias, measure_position_bias
from isthmus.audit.readers import Head, Readout
from isthmus.audit.reading import Parts, Reading, passages
from isthmus.audit.robustness import Robustness, measure_robustness
from isthmus.audit.transfer import Transfer, TransferSet, measure_transfer
from isthmus.errors import BadInput
from isthmus.examples import Image, image_of_array, texts_of
from isthmus.flow.suiting import check_suits
from isthmus.network import Network
from isthmus.pixels import scaled_pixels
from isthmus.progress import Progress
from isthmus.tasks import Task
from isthmus.tasks.metrics import cosine

STRENGTHS: tuple[float, ...] = (0.1, 0.3)
SEVERITIES: tuple[float, ...] = (1, 3, 5)
_CORRUPTED = 300  # examples that are corrupted
_CORRUPTION_SEEDS = 2
_TRANSFER = 2000  # training examples of a transfer set, and test examples


@dataclass(frozen=True)
class Population:
    """Networks read on the same examples: each with its head, and what it says of them."""

    heads: tuple[Head, ...]
    readouts: tuple[Readout, ...]

    @property
    def probabilities(self) -> Array:
        """Shape (networks, examples, classes)."""
        return np.stack([readout.probabilities for readout in self.readouts])

    @property
    def losses(self) -> Array:
        """Shape (networks, examples)."""
        return np.stack([readout.loss for readout in self.readouts])


def measure_corruptions(
    reading: Reading, before: Population, after: Population, seed: int, progress: Progress
) -> Robustness:
    """Return what each corruption costs, on at most 300 examples; two draws of each where chance is involved."""
    chosen = np.sort(np.random.default_rng([seed, 6]).permutation(len(reading.examples))[:_CORRUPTED])
    clean: Parts = tuple(reading.examples[index] for index in chosen.tolist())
    base, kinds, strengths, said = clean, tuple(CORRUPTIONS), STRENGTHS, tuple[str, ...]()
    if reading.images:
        base, kinds, strengths = _as_seen(clean, before.heads[0].network), tuple(IMAGE_CORRUPTIONS), SEVERITIES
        if find_spec("PIL") is None:
            kinds = tuple(kind for kind in kinds if kind != "jpeg")
            said = ("jpeg takes Pillow, so not measured; run pip install 'isthmus[images]'",)
    settings = [(kind, strength) for kind in kinds for strength in strengths]

    def losses(population: Population, parts: Parts) -> Array:
        return np.stack([head.read(parts, chosen).loss for head in population.heads])

    corrupted = {}
    for number, (kind, strength) in enumerate(settings):
        progress("robustness", number, len(settings), f"{kind} {strength:g}")
        drawn = _corrupted(base, kind, strength, seed)
        corrupted[kind, strength] = (
            np.stack([losses(before, parts) for parts in drawn]),
            np.stack([losses(after, parts) for parts in drawn]),
        )
    measured = measure_robustness(losses(before, clean), losses(after, clean), corrupted, seed=seed)
    progress("robustness", len(settings), len(settings))
    return replace(measured, warnings=(*measured.warnings, *said))


def _as_seen(parts: Parts, network: Network) -> Parts:
    """Return images at the scale at which a network sees them, where the severities of corruptions are defined."""
    wanted = network.images
    assert wanted is not None
    return tuple(
        (image_of_array(scaled_pixels(wanted, image), image.name),) for (image,) in parts if isinstance(image, Image)
    )


def _corrupted(parts: Parts, kind: str, strength: float, seed: int) -> list[Parts]:
    if kind in CORRUPTIONS:
        return [
            tuple(corrupt_texts(texts_of(pair, "robustness"), kind, strength, seed + offset) for pair in parts)
            for offset in range(_CORRUPTION_SEEDS)
        ]
    draws = _CORRUPTION_SEEDS if IMAGE_CORRUPTIONS[kind].drawn else 1
    return [
        tuple(
            (corrupt_image(image, kind, int(strength), seed + offset),)
            for (image,) in parts
            if isinstance(image, Image)
        )
        for offset in range(draws)
    ]


def measure_positions(
    reading: Reading, before: Population, after: Population, seed: int, progress: Progress
) -> tuple[list[PositionBias], list[str]]:
    """Return the position bias of each narrowed network, and what must be said of how it was measured."""
    if reading.images:
        return [], ["position: is where in a text the part stands that decides it, so not measured on images"]
    classes = reading.labels if reading.scores is None else None
    held = passages(reading) if classes is None else [one for (one, *_) in reading.examples]
    texts = texts_of(held, "position")
    composed = compose(texts, classes, seed=seed)
    if len(composed.deciding) < LEAST:
        return [], ["position: too few short texts to compose longer ones of, so not measured"]
    heads = (before.heads[0], *after.heads)
    scores, warnings = [], []
    for number, head in enumerate(heads):
        progress("position", number, len(heads), head.network.name)
        longest = max(len(head.network.tokenizer(text)["input_ids"]) for text in composed.texts[0])
        if longest > head.network.max_length:
            warnings.append(
                f"position: {head.network.name} cuts texts at {head.network.max_length} tokens and the longest "
                f"composed one has {longest}, so what stands last is not all read"
            )
        scores.append(_position_scores(head, composed, classes))
    progress("position", len(heads), len(heads))
    return [
        measure_position_bias(scores[0], theirs, name=head.network.name, seed=seed)
        for head, theirs in zip(after.heads, scores[1:], strict=True)
    ], warnings


def _position_scores(head: Head, composed: Composed, classes: Integers | None) -> Array:
    """Return, by position, the probability of the deciding part's class, or the cosine with it alone."""
    if classes is not None:
        rows = np.arange(len(composed.chosen))
        parts = (tuple((text,) for text in column) for column in composed.texts)
        read = [head.read(part, composed.chosen).probabilities for part in parts]
        return np.stack([probabilities[rows, classes[composed.chosen]] for probabilities in read], axis=1)
    alone = features_of(head.network, composed.deciding)
    places = np.arange(len(alone))
    columns = [
        cosine(np.concatenate([alone, features_of(head.network, column)]), places, places + len(alone))
        for column in composed.texts
    ]
    return np.stack(columns, axis=1)


def read_transfer(
    networks: Sequence[Network], tasks: Sequence[Task], scores: Sequence[float], seed: int, progress: Progress
) -> Transfer:
    """Return the transfer card of networks, whose scores on the task itself are given."""
    sets = []
    for number, network in enumerate(networks):
        progress("transfer", number, len(networks), network.name)
        sets.append([_transfer_set(network, task, seed) for task in tasks])
    measured = measure_transfer([network.name for network in networks], sets, scores, seed=seed)
    progress("transfer", len(networks), len(networks))
    return measured


def _transfer_set(network: Network, task: Task, seed: int) -> TransferSet:
    """Read a labelled task through a network's frozen features."""
    check_suits(network, task)
    encoder, rng, held = encoder_of(network), np.random.default_rng([seed, 7]), task.held_out
    if task.labelled:
        train = _some(task.labelled, rng)
        test = _some(tuple(zip(held.examples, held.labels, strict=True)), rng)
        return TransferSet(
            task.name,
            features_of(encoder, [example for example, _ in train]),
            features_of(encoder, [example for example, _ in test]),
            np.array([label for _, label in train], dtype=np.float64),
            np.array([label for _, label in test], dtype=np.float64),
            len(task.label_names),
        )
    if task.kind == "sts" and task.pairs:
        pairs = _some(task.pairs, rng)
        tested = _some(tuple(zip(held.left, held.right, held.scores, strict=True)), rng)
        return TransferSet(
            task.name,
            _pair_features(encoder, pairs),
            _pair_features(encoder, tested),
            np.array([score for *_, score in pairs]),
            np.array([score for *_, score in tested]),
            0,
        )
    raise BadInput(
        f"--transfer {task.name}: nothing labelled to train a probe on; give a folder with train and dev files"
    )


def _some(rows: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [rows[index] for index in np.sort(rng.permutation(len(rows))[:_TRANSFER]).tolist()]


def _pair_features(encoder: Network, pairs: Sequence[tuple[str, str, float]]) -> Array:
    """Return ``|u - v|`` and ``u * v`` of each pair, shape (pairs, twice the width)."""
    left, right = (features_of(encoder, [str(pair[side]) for pair in pairs]) for side in (0, 1))
    return np.concatenate([np.abs(left - right), left * right], axis=1)
