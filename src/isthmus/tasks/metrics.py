"""The quality of a network on a task: likeness, Spearman correlation, accuracy or likelihood, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.examples import Example
from isthmus.tasks.probe import fit_probe
from isthmus.tasks.task import ACCURACY, LIKELIHOOD, LIKENESS, SPEARMAN, Metric, Task

Array = npt.NDArray[np.float64]
Embed = Callable[[Sequence[Example]], npt.NDArray[np.floating]]

MOST_PAIRS = 100_000  # of passages that likeness looks at
MOST_PROBE_TEXTS = 4000
_RESAMPLES = (200, 1000)
_WORK = 20_000_000  # points ranked over all resamples: below a second


def evaluate(
    embed: Embed,
    task: Task,
    reference: npt.NDArray[np.floating] | None = None,
    *,
    logits: bool = False,
    seed: int = 0,
) -> Metric:
    """Measure a network on what a task holds out.

    Parameters
    ----------
    embed : callable
        Takes texts or images, returns an array (examples, width) of embeddings, or of logits.
    task : Task
    reference : array (held-out examples, any width), optional
        The original's embeddings of ``task.held_out.examples``, for likeness. None says that this network is the
        original.
    logits : bool
        Whether ``embed`` returns the logits of a classifier of the task's classes, in their order.
    seed : int
        For the choice of pairs and for the bootstrap.

    Returns
    -------
    Metric
        ``likeness`` (where nothing is labelled): the Spearman correlation, over pairs of held-out passages (all, or
        100,000 at random), of their cosine similarities under the network and under the original; 1 for the
        original. ``spearman`` (``sts``): that of the pairs' cosine similarities and scores. ``accuracy``
        (where there are classes): that of the classifier, or of a linear probe fitted on at most 4000 training
        examples. ``likelihood`` (``lm``): the geometric mean of the probability of each next token, which is one over
        the perplexity; ``embed`` then gives nats and tokens of each text. The interval is a bootstrap over passages,
        pairs or examples.

    Raises
    ------
    BadInput
        If the network's outputs are not finite or not of the shape, or the task lacks what the metric needs.
    """
    if task.metric_name == LIKENESS:
        return _likeness(embed, task, reference, seed)
    if task.metric_name == SPEARMAN:
        return _spearman(embed, task, seed)
    if task.metric_name == LIKELIHOOD:
        return _likelihood(embed, task, seed)
    return _accuracy(embed, task, logits, seed)


def _likeness(embed: Embed, task: Task, reference: npt.NDArray[np.floating] | None, seed: int) -> Metric:
    if reference is None:
        return Metric(LIKENESS, 1.0, (1.0, 1.0))
    texts = task.held_out.examples
    if len(texts) < 3:
        raise BadInput(f"{task.name}: {len(texts)} held-out examples are too few for likeness; give at least 3")
    first, second = passage_pairs(len(texts), MOST_PAIRS, seed)
    theirs = cosine(_checked(reference, len(texts), task, "the original"), first, second)
    ours = cosine(_checked(embed(texts), len(texts), task, "the network"), first, second)
    value = spearman(ours, theirs)

    def resample(rng: np.random.Generator, count: int) -> Array:
        # Passages are drawn, not pairs: pairs that share a passage are not independent.
        drawn = rng.multinomial(len(texts), np.full(len(texts), 1 / len(texts)), size=count)
        weights: Array = (drawn[:, first] * drawn[:, second]).astype(np.float64)
        return weights

    return Metric(LIKENESS, value, _interval(ours, theirs, value, resample, seed))


def _spearman(embed: Embed, task: Task, seed: int) -> Metric:
    held_out = task.held_out
    texts = held_out.passages
    place = {text: index for index, text in enumerate(texts)}
    left = np.array([place[text] for text in held_out.left])
    right = np.array([place[text] for text in held_out.right])
    cosines = cosine(_checked(embed(texts), len(texts), task, "the network"), left, right)
    scores = np.array(held_out.scores)
    value = spearman(cosines, scores)

    def resample(rng: np.random.Generator, count: int) -> Array:
        pairs = len(scores)
        return rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=count).astype(np.float64)

    return Metric(SPEARMAN, value, _interval(cosines, scores, value, resample, seed))


def _accuracy(embed: Embed, task: Task, logits: bool, seed: int) -> Metric:
    texts, labels = task.held_out.examples, np.array(task.held_out.labels)
    outputs = _checked(embed(texts), len(texts), task, "the network")
    if logits:
        if outputs.shape[1] != len(task.label_names):
            raise BadInput(
                f"{task.name}: the network has {outputs.shape[1]} classes and the data {len(task.label_names)}; "
                "give data with the classes that the network was trained on"
            )
        predicted = outputs.argmax(axis=1)
    else:
        if not task.labelled:
            raise BadInput(
                f"{task.name}: no labelled training examples to fit a linear probe on; "
                "give a folder with train and dev files"
            )
        train = probe_texts(task, seed)
        inputs = _checked(embed([text for text, _ in train]), len(train), task, "the network")
        probe = fit_probe(inputs, np.array([label for _, label in train]), len(task.label_names))
        predicted = probe.predict(outputs)
    right = int((predicted == labels).sum())
    value = right / len(texts)
    # Drawing examples of which a share is right is drawing from a binomial.
    drawn = np.random.default_rng(seed).binomial(len(texts), value, size=_RESAMPLES[1]) / len(texts)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Metric(ACCURACY, value, (low, high))


def _likelihood(embed: Embed, task: Task, seed: int) -> Metric:
    texts = len(task.held_out.examples)
    nats, tokens = _checked(embed(task.held_out.examples), texts, task, "the network").T
    drawn = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=_RESAMPLES[1])
    low, high = np.quantile(np.exp(-(drawn @ nats) / (drawn @ tokens)), (0.025, 0.975)).tolist()
    return Metric(LIKELIHOOD, float(np.exp(-nats.sum() / tokens.sum())), (low, high))


def probe_texts(task: Task, seed: int) -> list[tuple[Example, int]]:
    """Return the labelled examples that the probe is fitted on: all, or 4000 at random."""
    if len(task.labelled) <= MOST_PROBE_TEXTS:
        return list(task.labelled)
    chosen = np.random.default_rng(seed).permutation(len(task.labelled))[:MOST_PROBE_TEXTS]
    return [task.labelled[index] for index in sorted(chosen.tolist())]


def passage_pairs(passages: int, most: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the two sides of all pairs of distinct passages, or of ``most`` of them, drawn without replacement."""
    total = passages * (passages - 1) // 2
    if total <= most:
        first, second = np.triu_indices(passages, 1)
        return first.astype(np.int64), second.astype(np.int64)
    index = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    # Pair number k = b (b - 1) / 2 + a with a < b; the square root is mended where rounding put it one off.
    second = ((1 + np.sqrt(1 + 8 * index.astype(np.float64))) / 2).astype(np.int64)
    second -= second * (second - 1) // 2 > index
    second += (second + 1) * second // 2 <= index
    return index - second * (second - 1) // 2, second


def cosine(embeddings: Array, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> Array:
    """Return the cosine similarity of each pair of rows; 0 where a row is all zeros.

    Parameters
    ----------
    embeddings : array (rows, width)
    first, second : array (pairs,)
        Indices of rows.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1.0)
    result = np.empty(len(first))
    for start in range(0, len(first), 8192):  # the gathered rows of all pairs at once would be large
        part = slice(start, start + 8192)
        result[part] = np.einsum("ij,ij->i", unit[first[part]], unit[second[part]])
    return result


def spearman(x: Array, y: Array) -> float:
    """Return the Spearman correlation; 0 where one side is constant, since it then orders nothing."""
    from scipy import stats

    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


@dataclass(frozen=True)
class Ordering:
    """Values in order, sorted once for many resamples.

    Parameters
    ----------
    order : array (points,)
        The points from the least value to the greatest.
    starts : array (distinct values,)
        Where in that order each distinct value begins.
    group : array (points,)
        Which distinct value each point has.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: Array) -> Ordering:
        """Sort values (points,)."""
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        group = np.empty(len(values), dtype=np.int64)
        group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
        return cls(order, starts, group)

    def ranks(self, weights: Array) -> Array:
        """Return the average ranks (resamples, points) of values repeated as ``weights`` says; ties share a rank."""
        members = np.take(weights, self.order, axis=1)
        if len(self.starts) < len(self.order):
            members = np.add.reduceat(members, self.starts, axis=1)
        ranks = np.cumsum(members, axis=1)
        ranks -= (members - 1) / 2
        return np.asarray(np.take(ranks, self.group, axis=1), dtype=np.float64)


def weighted_spearman(x: Ordering, y: Ordering, weights: Array) -> Array:
    """Return the Spearman correlation of each resample, exactly that of the sample with its points repeated.

    Parameters
    ----------
    x, y : Ordering
        Of the two sides of the points.
    weights : array (resamples, points)
        How often each point is in each resample.

    Returns
    -------
    array (resamples,)
        NaN where one side of the resample is constant.
    """
    # All ranks of a resample have the same mean, whatever its ties.
    mean = (weights.sum(axis=1, keepdims=True) + 1) / 2
    ours, theirs = x.ranks(weights) - mean, y.ranks(weights) - mean
    ours_weighted = ours * weights
    covariance = np.einsum("rp,rp->r", ours_weighted, theirs)
    variance = np.einsum("rp,rp->r", ours_weighted, ours)
    theirs_variance = np.einsum("rp,rp->r", weights * theirs, theirs)
    # A side with two distinct values has a variance of a half or more; less is a constant side and rounding.
    defined = (variance > 0.1) & (theirs_variance > 0.1)
    result = np.full(len(weights), np.nan)
    result[defined] = covariance[defined] / np.sqrt(variance[defined] * theirs_variance[defined])
    return result


def _interval(
    x: Array, y: Array, value: float, resample: Callable[[np.random.Generator, int], Array], seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a Spearman correlation over weighted resamples."""
    rng = np.random.default_rng(seed)
    count = int(np.clip(_WORK // len(x), *_RESAMPLES))
    batch = max(1, 200_000 // len(x))  # so that a batch of ranks stays in the processor's cache
    orderings = Ordering.of(x), Ordering.of(y)
    values = [
        weighted_spearman(*orderings, resample(rng, min(batch, count - start))) for start in range(0, count, batch)
    ]
    drawn = np.concatenate(values)
    drawn = drawn[np.isfinite(drawn)]  # a resample of one point repeated has no correlation
    if not len(drawn):
        return value, value
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high


def _checked(outputs: npt.NDArray[np.floating], rows: int, task: Task, whose: str) -> Array:
    array = np.asarray(outputs, dtype=np.float64)
    if array.ndim != 2 or len(array) != rows:
        raise BadInput(
            f"{task.name}: {whose} gives an array of shape {array.shape} for {rows} examples; give (examples, width)"
        )
    if not np.isfinite(array).all():
        raise BadInput(f"{task.name}: {whose} gives embeddings that are not finite; look for NaN in its weights")
    return array
