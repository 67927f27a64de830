"""Exemplars: the examples on which original and narrowed networks disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, Integers, Mask, check_labels, check_probabilities, few
from isthmus.audit.resampling import Estimate, example_draws, mean_share, percentile
from isthmus.errors import BadInput

ROWS = 200  # exemplars that are listed


@dataclass(frozen=True)
class Exemplar:
    """One example that is seen otherwise after narrowing.

    Parameters
    ----------
    index : int
        Its place among the examples.
    text, text2 : str
        What it is, an image by its name; the second of a pair, or empty.
    label : str
        The truth; empty where it is not known.
    original, narrowed : str
        The modal class of each population.
    votes : float
        The share of narrowed networks that give their modal class.
    confidence : float
        The originals' mean probability of their modal class.
    nats : float
        How far the narrowed networks' mean distribution is from the originals'.
    """

    index: int
    text: str
    text2: str
    label: str
    original: str
    narrowed: str
    votes: float
    confidence: float
    nats: float


@dataclass(frozen=True)
class Exemplars:
    """The disagreement of two populations.

    Parameters
    ----------
    count, of : int
        Exemplars, and all examples.
    share : Estimate
    accuracy, accuracy_all, gap : Estimate or None
        Of the originals, on exemplars and on all examples, and the first less the second. None without labels.
    accuracy_narrowed : Estimate or None
        Of the narrowed networks, on exemplars.
    nats : Estimate
        The mean divergence over all examples.
    top_share : float
        The share of all nats that the tenth of examples with most of them has; 0.1 if all had the same.
    rows : tuple of Exemplar
        Most nats first, at most 200.
    """

    count: int
    of: int
    share: Estimate
    accuracy: Estimate | None
    accuracy_all: Estimate | None
    accuracy_narrowed: Estimate | None
    gap: Estimate | None
    nats: Estimate
    top_share: float
    rows: tuple[Exemplar, ...]
    warnings: tuple[str, ...]


def modal_labels(probabilities: Array) -> Integers:
    """Return the class that most networks of a population choose; of classes with equal votes the one with most mass.

    Parameters
    ----------
    probabilities : array (networks, examples, classes)

    Returns
    -------
    array (examples,)
    """
    votes = np.zeros(probabilities.shape[1:])
    chosen = probabilities.argmax(axis=2)
    for row in chosen:
        votes[np.arange(len(row)), row] += 1
    # A mean probability is below 1 but for certainty, which a hair's breadth keeps below a vote.
    return np.asarray((votes + probabilities.mean(axis=0) * (1 - 1e-9)).argmax(axis=1), dtype=np.int64)


def divergence_nats(original: Array, narrowed: Array) -> Array:
    """Return the Kullback-Leibler divergence in nats of the mean distributions, shape (examples,).

    Parameters
    ----------
    original, narrowed : array (networks, examples, classes)
        ``sum_c P(c) log(P(c) / Q(c))`` with P the originals' mean and Q the narrowed networks'. What a float32
        softmax rounds to zero counts as 1e-12.
    """
    ours, theirs = (np.clip(each.mean(axis=0), 1e-12, None) for each in (original, narrowed))
    ours, theirs = ours / ours.sum(axis=1, keepdims=True), theirs / theirs.sum(axis=1, keepdims=True)
    return np.asarray(np.maximum((ours * np.log(ours / theirs)).sum(axis=1), 0.0), dtype=np.float64)


def disagreement(original: Array, narrowed: Array) -> Mask:
    """Return where the modal classes of two populations differ, shape (examples,)."""
    return np.asarray(modal_labels(original) != modal_labels(narrowed))


def find_exemplars(
    original: npt.ArrayLike,
    narrowed: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    texts: Sequence[Sequence[str]] | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> Exemplars:
    """Find the examples on which two populations of networks disagree.

    An exemplar is an example whose modal class under the narrowed networks is not that under the originals (Hooker et
    al. 2019, *What Do Compressed Deep Neural Networks Forget?*, and 2020, *Characterising Bias in Compressed Models*).
    With one network on each side that is a plain disagreement, and some of it is chance: the more seeds, the less.

    Parameters
    ----------
    original, narrowed : array (networks, examples, classes) or (examples, classes)
        Probabilities.
    labels : array (examples,), optional
    texts : sequence of sequences of str, optional
        One or two texts an example, or an image's name, for the list.
    class_names : sequence of str
    seed : int

    Returns
    -------
    Exemplars

    Raises
    ------
    BadInput
        If the arrays are not of the same examples and classes, or not probabilities.
    """
    first = check_probabilities(original, "the original's probabilities")
    second = check_probabilities(narrowed, "the narrowed network's probabilities")
    if first.shape[1:] != second.shape[1:]:
        raise BadInput(
            f"probabilities of shape {first.shape[1:]} and {second.shape[1:]} (examples, classes) cannot be compared; "
            "read both networks on the same examples"
        )
    count, classes = first.shape[1:]
    names = list(class_names) or [str(number) for number in range(classes)]
    ours, theirs = modal_labels(first), modal_labels(second)
    mask = ours != theirs
    nats = divergence_nats(first, second)
    truth = None if labels is None else check_labels(labels, count, classes)
    warnings = list(few(count))
    if 0 < mask.sum() < 10:
        warnings.append(f"{int(mask.sum())} exemplars: too few to say what they have in common")
    if len(first) == 1 and truth is not None:
        warnings.append(
            "one original: some exemplars are its own chance errors, so its accuracy on them looks lower than that of "
            "another seed would; give more originals for a fair figure"
        )
    order = sorted(np.flatnonzero(mask).tolist(), key=lambda index: (-nats[index], index))[:ROWS]
    votes = (second.argmax(axis=2) == theirs).mean(axis=0)
    rows = tuple(
        Exemplar(
            index=index,
            text=texts[index][0] if texts is not None else "",
            text2=texts[index][1] if texts is not None and len(texts[index]) > 1 else "",
            label="" if truth is None else names[int(truth[index])],
            original=names[int(ours[index])],
            narrowed=names[int(theirs[index])],
            votes=float(votes[index]),
            confidence=float(first[:, index, ours[index]].mean()),
            nats=float(nats[index]),
        )
        for index in order
    )
    drawn = np.concatenate([weights @ nats / count for weights in example_draws(count, seed)])
    most = np.sort(nats)[::-1][: max(1, round(count / 10))]
    total = float(nats.sum())
    rights = [None if truth is None else (each.argmax(axis=2) == truth).mean(axis=0) for each in (first, second)]
    some = bool(mask.any())
    return Exemplars(
        count=int(mask.sum()),
        of=count,
        share=mean_share(mask.astype(np.float64)),
        accuracy=mean_share(rights[0][mask], seed) if rights[0] is not None and some else None,
        accuracy_all=mean_share(rights[0], seed) if rights[0] is not None else None,
        accuracy_narrowed=mean_share(rights[1][mask], seed) if rights[1] is not None and some else None,
        gap=_gap(rights[0], mask, seed) if rights[0] is not None and some else None,
        nats=percentile(float(nats.mean()), drawn, count),
        top_share=float(most.sum()) / total if total > 0 else 0.1,
        rows=rows,
        warnings=tuple(warnings),
    )


def _gap(right: Array, mask: Mask, seed: int) -> Estimate:
    inside, drawn = mask.astype(np.float64), []
    for weights in example_draws(len(right), seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((weights * inside) @ right / (weights @ inside) - weights @ right / len(right))
    return percentile(float(right[mask].mean() - right.mean()), np.concatenate(drawn), int(mask.sum()))
