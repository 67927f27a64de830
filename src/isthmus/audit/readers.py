"""Readers: what a network says of the examples of a task, as arrays that the measures take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Array, Integers
from isthmus.audit.features import encoder_of, features_of
from isthmus.audit.levels import Levels, fit_levels
from isthmus.audit.ranks import rank_losses
from isthmus.audit.reading import LEVELS, Parts, Reading, level_of, passages
from isthmus.errors import BadInput
from isthmus.network import Network
from isthmus.tasks.divergence import TEMPERATURE
from isthmus.tasks.metrics import cosine, probe_texts
from isthmus.tasks.probe import Probe, fit_probe

_FITTED = 1000  # training pairs that levels are fitted on


@dataclass(frozen=True)
class Readout:
    """What a network says of examples.

    Parameters
    ----------
    probabilities : array (examples, classes)
    loss : array (examples,)
        Of classes the error, 0 or 1; of scored pairs the ranks' distance, whose mean is one less Spearman's
        correlation; of what is not labelled the divergence in nats of which other examples are near from that of the
        original.
    """

    probabilities: Array
    loss: Array


@dataclass(frozen=True)
class Head:
    """A network with what turns its outputs into probabilities, fitted on training data only where there is any.

    Parameters
    ----------
    read : callable
        Takes texts or images, one tuple an example, and their places among the examples; returns a `Readout`.
    features : array (passages, width)
        Embeddings of `passages`.
    """

    network: Network
    read: Callable[[Parts, Integers], Readout]
    features: Array


def fit_head(network: Network, reading: Reading, reference: Array | None = None, *, seed: int = 0) -> Head:
    """Return a network with what turns its outputs into probabilities.

    A classifier's own logits serve; an encoder gets a linear probe fitted on the training examples. Cosines of pairs
    become probabilities of levels by a proportional-odds model fitted on the training pairs, or, where all data is
    held out, on the audited pairs themselves. Where nothing is labelled the probabilities are of which other example
    is near, as in `isthmus.tasks.divergence`.

    Parameters
    ----------
    network : Network
    reading : Reading
    reference : array (examples, examples), optional
        Where nothing is labelled: the original's probabilities, which losses are measured from.
    seed : int

    Raises
    ------
    BadInput
        If outputs are not finite, or the network does not fit the task.
    """
    if reading.labels is not None and reading.scores is None:
        return _class_head(network, reading, seed)
    if network.pooling == "logits":
        wanted = "labelled images" if reading.images else "a classify: task"
        raise BadInput(f"network {network.name}: a classifier, and {reading.task.name} is for encoders; give {wanted}")
    return _pair_head(network, reading, seed) if reading.scores is not None else _near_head(network, reading, reference)


def _class_head(network: Network, reading: Reading, seed: int) -> Head:
    from scipy.special import softmax

    task, labels = reading.task, reading.labels
    probe: Probe | None = None
    if network.pooling != "logits":
        if not task.labelled:
            what = "images" if reading.images else "texts"
            raise BadInput(
                f"{task.name}: no labelled training {what} to fit a linear probe on; give a folder with train and dev "
                "files"
            )
        train = probe_texts(task, seed)
        inputs = features_of(network, [example for example, _ in train])
        probe = fit_probe(inputs, np.array([label for _, label in train]), len(task.label_names))

    held = passages(reading)
    features = features_of(encoder_of(network), held)
    rows = dict(zip(held, features, strict=True))

    def read(examples: Parts, chosen: Integers) -> Readout:
        if probe is not None and examples is reading.examples:  # of an encoder these are known already
            outputs = np.stack([rows[one] for (one,) in examples])
        else:
            outputs = features_of(network, [one for (one,) in examples])
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

    def cosines(examples: Parts) -> Array:
        distinct = tuple(dict.fromkeys(text for pair in examples for text in pair))
        place = {text: index for index, text in enumerate(distinct)}
        sides = [np.array([place[pair[side]] for pair in examples]) for side in (0, 1)]
        known = features if distinct == held else features_of(network, distinct)
        return cosine(known, sides[0], sides[1])

    if pairs:
        some = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:_FITTED]).tolist()
        values = cosines(tuple(pairs[index][:2] for index in some))
        model: Levels = fit_levels(values, level_of(np.array([pairs[index][2] for index in some])), LEVELS)
    else:
        model = fit_levels(cosines(reading.examples), level_of(scores), LEVELS)

    def read(examples: Parts, chosen: Integers) -> Readout:
        values = cosines(examples)
        return Readout(model.probabilities(values), rank_losses(values, scores[chosen]))

    return Head(network, read, features)


def _near_head(network: Network, reading: Reading, reference: Array | None) -> Head:
    from scipy.special import softmax

    candidates = _unit(features_of(network, [one for (one,) in reading.examples]))

    def near(queries: Array, chosen: Integers) -> Array:
        likeness = queries @ candidates.T / TEMPERATURE
        likeness[np.arange(len(chosen)), chosen] = -np.inf  # likeness to itself says nothing
        return np.asarray(softmax(likeness, axis=1), dtype=np.float64)

    origin = near(candidates, np.arange(len(candidates))) if reference is None else reference

    def read(examples: Parts, chosen: Integers) -> Readout:
        if examples == reading.examples:
            probabilities = near(candidates, chosen)
        else:
            probabilities = near(_unit(features_of(network, [one for (one,) in examples])), chosen)
        ours, theirs = (np.clip(each, 1e-12, None) for each in (origin[chosen], probabilities))
        return Readout(probabilities, np.maximum((origin[chosen] * np.log(ours / theirs)).sum(axis=1), 0.0))

    return Head(network, read, candidates)


def _unit(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(norms > 0, norms, 1.0), dtype=np.float64)
