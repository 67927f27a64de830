"""Readers: what a task's examples are, and what a network says of them, as arrays that the measures take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isthmus.audit.checks import Array, Integers, check_count, check_finite
from isthmus.audit.levels import Levels, fit_levels
from isthmus.audit.ranks import rank_losses
from isthmus.errors import BadInput
from isthmus.examples import texts_of
from isthmus.network import Network, embed
from isthmus.tasks import Task
from isthmus.tasks.divergence import TEMPERATURE
from isthmus.tasks.metrics import cosine, probe_texts
from isthmus.tasks.probe import Probe, fit_probe

MOST = 5000  # examples that are audited
MOST_TEXTS = 2000  # of unlabelled text, where every text is a class
LEVELS = 6  # of a score: 0, 1, ... 5 fifths
_BATCH = 64
_FITTED = 1000  # training pairs that levels are fitted on
_LOSSES = {"classify": "error", "sts": "1 - Spearman", "text": "divergence, nats"}

Parts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Reading:
    """The examples of a task.

    Parameters
    ----------
    task : Task
    texts : tuple of tuples of str
        One tuple an example: a text, or the two of a pair.
    labels : array (examples,) or None
        Classes, or levels of a score; None of unlabelled text.
    scores : array (examples,) or None
        Of pairs: 0 to 1.
    class_names : tuple of str
    warnings : tuple of str
    """

    task: Task
    texts: Parts
    labels: Integers | None
    scores: Array | None
    class_names: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def loss_name(self) -> str:
        """What the loss of this task is."""
        return _LOSSES[self.task.kind]


@dataclass(frozen=True)
class Readout:
    """What a network says of examples.

    Parameters
    ----------
    probabilities : array (examples, classes)
    loss : array (examples,)
        Of ``classify`` the error, 0 or 1; of ``sts`` the ranks' distance, whose mean is one less Spearman's
        correlation; of ``text`` the divergence in nats of which other texts are near from that of the original.
    """

    probabilities: Array
    loss: Array


@dataclass(frozen=True)
class Head:
    """A network with what turns its outputs into probabilities, fitted on training data only where there is any.

    Parameters
    ----------
    read : callable
        Takes texts, one tuple an example, and their places among the examples; returns a `Readout`.
    features : array (passages, width)
        Embeddings of `passages`.
    """

    network: Network
    read: Callable[[Parts, Integers], Readout]
    features: Array


def level_of(scores: Array) -> Integers:
    """Return scores of 0 to 1 as the nearest of the levels 0 to 5."""
    return np.asarray(np.clip(np.floor(scores * (LEVELS - 1) + 0.5), 0, LEVELS - 1), dtype=np.int64)


def read_task(task: Task, *, seed: int = 0) -> Reading:
    """Return the examples that a task holds out, at most 5000 (2000 of unlabelled text), drawn at random.

    Raises
    ------
    BadInput
        If there are too few.
    """
    if task.kind == "lm":
        raise BadInput(f"{task.name}: language models are not audited yet; compare shows perplexity and recall")
    held = task.held_out
    single = texts_of(held.examples, "audit")
    texts: Parts = tuple(zip(held.left, held.right, strict=True)) if held.left else tuple((text,) for text in single)
    check_count(len(texts), task.name)
    most = MOST_TEXTS if task.kind == "text" else MOST
    chosen = np.sort(np.random.default_rng(seed).permutation(len(texts))[:most])
    warnings: tuple[str, ...] = ()
    if len(chosen) < len(texts):
        warnings += (f"{len(chosen):,} of {len(texts):,} held-out examples were audited, drawn at random",)
    texts = tuple(texts[index] for index in chosen.tolist())
    repeated = len(texts) - len(set(texts))
    if repeated:
        warnings += (f"{repeated} examples are repeated; intervals count them as if they were new",)
    if task.kind == "sts":
        scores = np.array(held.scores)[chosen]
        names = tuple(f"{level} of {LEVELS - 1}" for level in range(LEVELS))
        return Reading(task, texts, level_of(scores), scores, names, warnings)
    if task.kind == "classify":
        return Reading(task, texts, np.array(held.labels)[chosen], None, task.label_names, warnings)
    return Reading(task, texts, None, None, tuple(text for (text,) in texts), warnings)


def passages(reading: Reading) -> tuple[str, ...]:
    """Return the distinct texts of the examples, in order."""
    return tuple(dict.fromkeys(text for pair in reading.texts for text in pair))


def encoder_of(network: Network) -> Network:
    """Return a network whose output is features: itself, or of a classifier the mean of its last hidden states.

    A classifier that does not name its encoder gives its logits for features.
    """
    prefix = str(getattr(network.model, "base_model_prefix", ""))
    if network.pooling != "logits" or not hasattr(network.model, prefix):
        return network
    return replace(network.with_model(network.model.get_submodule(prefix)), pooling="mean", normalize=False)


def features_of(network: Network, texts: Sequence[str]) -> Array:
    """Return the embeddings of texts, shape (texts, width), checked to be numbers."""
    outputs = embed(network, texts, batch_size=_BATCH)
    return check_finite(outputs, f"network {network.name}: outputs", (len(texts), None))


def fit_head(network: Network, reading: Reading, reference: Array | None = None, *, seed: int = 0) -> Head:
    """Return a network with what turns its outputs into probabilities.

    A classifier's own logits serve; an encoder gets a linear probe fitted on the training texts. Cosines of pairs
    become probabilities of levels by a proportional-odds model fitted on the training pairs, or, where all data is
    held out, on the audited pairs themselves. For unlabelled text the probabilities are of which other text is near,
    as in `isthmus.tasks.divergence`.

    Parameters
    ----------
    network : Network
    reading : Reading
    reference : array (examples, examples), optional
        Of unlabelled text: the original's probabilities, which losses are measured from.
    seed : int

    Raises
    ------
    BadInput
        If outputs are not finite, or the network does not fit the task.
    """
    if reading.task.kind == "classify":
        return _class_head(network, reading, seed)
    if network.pooling == "logits":
        raise BadInput(
            f"network {network.name}: a classifier, and {reading.task.name} is for encoders; give a classify: task"
        )
    return _pair_head(network, reading, seed) if reading.scores is not None else _text_head(network, reading, reference)


def _class_head(network: Network, reading: Reading, seed: int) -> Head:
    from scipy.special import softmax

    task, labels = reading.task, reading.labels
    probe: Probe | None = None
    if network.pooling != "logits":
        if not task.labelled:
            raise BadInput(
                f"{task.name}: no labelled training texts to fit a linear probe on; give a folder with train and dev "
                "files"
            )
        train = probe_texts(task, seed)
        inputs = features_of(network, texts_of([text for text, _ in train], "audit"))
        probe = fit_probe(inputs, np.array([label for _, label in train]), len(task.label_names))

    held = passages(reading)
    features = features_of(encoder_of(network), held)
    rows = dict(zip(held, features, strict=True))

    def read(texts: Parts, chosen: Integers) -> Readout:
        if probe is not None and texts is reading.texts:  # of an encoder these are known already
            outputs = np.stack([rows[text] for (text,) in texts])
        else:
            outputs = features_of(network, [text for (text,) in texts])
        logits = outputs if probe is None else probe.logits(outputs)
        if logits.shape[1] != len(task.label_names):
            raise BadInput(
                f"{task.name}: network {network.name} has {logits.shape[1]} classes and the data "
                f"{len(task.label_names)}; give data with the classes that the network was trained on"
            )
        assert labels is not None
        probabilities = np.asarray(softmax(logits, axis=1), dtype=np.float64)
        return Readout(probabilities, (probabilities.argmax(axis=1) != labels[chosen]).astype(np.float64))

    return Head(network, read, features)


def _pair_head(network: Network, reading: Reading, seed: int) -> Head:
    scores, pairs = reading.scores, reading.task.pairs
    assert scores is not None
    held = passages(reading)
    features = features_of(network, held)

    def cosines(texts: Parts) -> Array:
        distinct = tuple(dict.fromkeys(text for pair in texts for text in pair))
        place = {text: index for index, text in enumerate(distinct)}
        sides = [np.array([place[pair[side]] for pair in texts]) for side in (0, 1)]
        known = features if distinct == held else features_of(network, distinct)
        return cosine(known, sides[0], sides[1])

    if pairs:
        some = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:_FITTED]).tolist()
        values = cosines(tuple(pairs[index][:2] for index in some))
        model: Levels = fit_levels(values, level_of(np.array([pairs[index][2] for index in some])), LEVELS)
    else:
        model = fit_levels(cosines(reading.texts), level_of(scores), LEVELS)

    def read(texts: Parts, chosen: Integers) -> Readout:
        values = cosines(texts)
        return Readout(model.probabilities(values), rank_losses(values, scores[chosen]))

    return Head(network, read, features)


def _text_head(network: Network, reading: Reading, reference: Array | None) -> Head:
    from scipy.special import softmax

    candidates = _unit(features_of(network, [text for (text,) in reading.texts]))

    def near(queries: Array, chosen: Integers) -> Array:
        likeness = queries @ candidates.T / TEMPERATURE
        likeness[np.arange(len(chosen)), chosen] = -np.inf  # a text's likeness to itself says nothing
        return np.asarray(softmax(likeness, axis=1), dtype=np.float64)

    origin = near(candidates, np.arange(len(candidates))) if reference is None else reference

    def read(texts: Parts, chosen: Integers) -> Readout:
        if texts == reading.texts:
            probabilities = near(candidates, chosen)
        else:
            probabilities = near(_unit(features_of(network, [text for (text,) in texts])), chosen)
        ours, theirs = (np.clip(each, 1e-12, None) for each in (origin[chosen], probabilities))
        return Readout(probabilities, np.maximum((origin[chosen] * np.log(ours / theirs)).sum(axis=1), 0.0))

    return Head(network, read, candidates)


def _unit(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(norms > 0, norms, 1.0), dtype=np.float64)
