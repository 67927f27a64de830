"""Verify: measure the finished artifact against the budget and the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.budget import Budget
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.examples import Example, shown, texts_of
from isthmus.export.bench import bench_networks
from isthmus.export.engines import load_runner, runner_embed
from isthmus.export.quantized import FLOAT
from isthmus.export.saved import exported, precision_of
from isthmus.flow.caching import measure_cache, planned
from isthmus.flow.suiting import check_suits
from isthmus.network import Network, embed
from isthmus.progress import Progress, silent
from isthmus.storage.weights import predicted_bytes, saved_shapes, weight_bytes
from isthmus.tasks import Metric, Task, evaluate
from isthmus.tasks.recall import SHORTEST as SHORTEST_RECALL
from isthmus.tasks.recall import recalled
from isthmus.tasks.task import LIKENESS


def measure_quality(
    networks: Sequence[Network],
    task: Task,
    *,
    engine: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Metric]:
    """Measure every network on what the task holds out; the first is the original.

    Parameters
    ----------
    engine : str, optional
        Where an artifact holds a file for this engine in another precision than float32, that file is what is measured.

    Raises
    ------
    BadInput
        If a classifier's classes are not those of the task.
    """
    reference = None
    metrics = []
    for number, network in enumerate(networks):
        progress("quality", number, len(networks), network.name)

        run = _embedder(network, engine)

        logits = network.pooling == "logits"
        if logits:
            check_labels(network, task)
        metrics.append(evaluate(run, task, reference, logits=logits, seed=seed))
        if number == 0 and task.metric_name == LIKENESS and len(networks) > 1:
            reference = run(task.held_out.examples)
    progress("quality", len(networks), len(networks))
    return metrics


def _embedder(network: Network, engine: str | None) -> Callable[[Sequence[Example]], Any]:
    if engine is None or precision_of(network, engine) == FLOAT:
        return lambda examples: embed(network, examples, batch_size=64)
    return runner_embed(network, load_runner(engine, exported(network, engine, "")))


def check_labels(network: Network, task: Task) -> None:
    """Refuse a classifier whose classes stand in another order than the task's: its score would mean nothing."""
    names = getattr(network.model.config, "id2label", None)
    if not task.label_names or not names:
        return
    own = [str(names[index]) for index in range(len(names))]
    placeholders = all(name.startswith("LABEL_") for name in own)
    if not placeholders and sorted(own) == sorted(task.label_names) and own != list(task.label_names):
        raise BadInput(
            f"network {network.name}: its classes are {', '.join(own)} and the task's {', '.join(task.label_names)}; "
            "give the labels as numbers in the network's order"
        )


def compare_networks(
    networks: Sequence[Network],
    task: Task,
    *,
    engine: str,
    seed: int = 0,
    macs_length: int | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Measure networks side by side, in one interleaved run.

    Returns
    -------
    list of dict
        For each network ``name, params, bytes, macs, latency_ms, engine, batch, length, peak_bytes, metric_name,
        metric, ci95, relative``, and ``notes`` on what was done to the task's data; of language models also
        ``perplexity`` and ``recall``, and what `isthmus.flow.caching.measure_cache` finds where the cache of one is
        planned.
    """
    names = [network.name for network in networks]
    notes = [check_suits(network, task) for network in networks]
    if len(set(names)) != len(names):
        raise BadInput(f"compare: two networks are called {max(names, key=names.count)}; give different folders")
    rows = bench_networks(networks, task.held_out.passages, engine=engine, macs_length=macs_length, progress=progress)
    metrics = measure_quality(networks, task, engine=engine, seed=seed, progress=progress)
    first = metrics[0].value
    for row, network, metric, own in zip(rows, networks, metrics, notes, strict=True):
        row["notes"] = list(own)
        row["bytes"] = bytes_on_disk(network)
        row["metric_name"], row["metric"], row["ci95"] = metric.name, metric.value, list(metric.ci95)
        row["relative"] = metric.value / first if first else float("nan")
        row["latency_spread"] = list(row["latency_spread"])
        if network.continues:
            row["perplexity"] = 1 / metric.value
            row["recall"] = recall_of(network, task, seed)
    if any(planned(network) for network in networks):
        texts = texts_of(task.held_out.examples, task.name)
        for row, network in zip(rows, networks, strict=True):
            progress("cache", 0, 1, network.name)
            row.update(measure_cache(network, texts, seed=seed))
    return rows


def recall_of(network: Network, task: Task, seed: int) -> dict[str, float]:
    """Return the share of what a language model recalls of texts made for that, by kind: needles, pairs, copies.

    The texts are as long as its window; where that, or the held-out text that needles lie in, is short, none are made.
    """
    texts = texts_of(task.held_out.examples, task.name)
    ids = network.tokenizer(" ".join(texts), return_attention_mask=False, verbose=False)["input_ids"]
    if min(len(ids), network.max_length) < SHORTEST_RECALL:
        return {}
    length = min(len(ids), network.max_length)
    return recalled(network.model, network.tokenizer, length, np.asarray(ids, dtype=np.int32), seed=seed)


def bytes_on_disk(network: Network) -> int:
    """Return the bytes of a network's weight files; of one that was never saved, those it would have."""
    if network.source is not None and any(Path(network.source).glob("*.safetensors")):
        return weight_bytes(network.source)
    return predicted_bytes(saved_shapes(network.model))


@dataclass(frozen=True)
class Verdict:
    """Whether the finished artifact keeps the budget, and the amounts it was held against."""

    limits: Mapping[str, float]
    measured: Mapping[str, float]


def hold_budget(budget: Budget, original: Mapping[str, Any], narrowed: Mapping[str, Any]) -> Verdict:
    """Hold measured rows against a budget.

    Raises
    ------
    UnreachableBudget
        If a limit is exceeded; the message names what was reached.
    """
    keys = {"params": "params", "bytes": "bytes", "macs": "macs", "latency": "latency_ms", "cache": "cache_bytes"}
    limits: dict[str, float] = {}
    measured: dict[str, float] = {}
    for limit in budget.limits:
        key = keys[limit.currency]
        limits[limit.currency] = limit.amount(float(original[key]))
        measured[limit.currency] = float(narrowed[key])
        if measured[limit.currency] > limits[limit.currency] * (1 + 1e-9):
            asked, reached = (value / float(original[key]) for value in (limits[limit.currency], narrowed[key]))
            raise UnreachableBudget(
                f"budget {limit}: the finished network measures {limit.currency}={reached:.1%} of the original; "
                f"run again with {limit.currency}={max(0.01, 2 * asked - reached):.1%}"
            )
    return Verdict(limits, measured)


def changed_most(original: Network, narrowed: Network, task: Task, count: int = 10) -> list[dict[str, Any]]:
    """Return the held-out examples whose likeness (or class) the narrowed network sees most differently.

    Returns
    -------
    list of dict
        ``text, text2`` (of images their names), ``original, narrowed, label``: cosine similarities of a pair, the
        probability of the true class for a classifier, or of a next token for a language model.
    """
    held = task.held_out
    if original.continues:
        return _changed_texts(original, narrowed, texts_of(held.examples, task.name), count)
    left: Sequence[Example]
    right: Sequence[Example] | None
    if original.pooling == "logits" and held.labels:
        before, after = (_probability(network, held.examples, held.labels) for network in (original, narrowed))
        left, right, truth = held.examples, None, [1.0] * len(held.examples)
    else:
        left, right = (held.left, held.right) if held.left else _neighbours(held.examples)
        before, after = (_cosines(network, left, right) for network in (original, narrowed))
        truth = list(held.scores) if held.left else [None] * len(left)  # type: ignore[list-item]
    order = np.argsort(-np.abs(before - after))[:count]
    return [
        {
            "text": shown(left[index]),
            "text2": None if right is None else shown(right[index]),
            "original": float(before[index]),
            "narrowed": float(after[index]),
            "label": truth[index],
        }
        for index in order
    ]


def _changed_texts(
    original: Network, narrowed: Network, texts: Sequence[str], count: int, most: int = 300
) -> list[dict[str, Any]]:
    """Return the texts whose tokens changed most in probability, in the geometric mean; ``most`` characters of each."""
    before, after = (np.exp(-nats / tokens) for nats, tokens in (embed(one, texts).T for one in (original, narrowed)))
    order = np.argsort(-np.abs(before - after))[:count]
    return [
        {
            "text": texts[index][:most],
            "text2": None,
            "original": float(before[index]),
            "narrowed": float(after[index]),
            "label": None,
        }
        for index in order
    ]


def _neighbours(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Pair each passage with a following one: passages of one source stand together."""
    chosen = examples[:1000]
    return tuple(chosen[:-1]), tuple(chosen[1:])


def _cosines(network: Network, left: Sequence[Example], right: Sequence[Example] | None) -> np.ndarray[Any, Any]:
    # A neighbour is on the left of one pair and on the right of the next: every example is embedded once.
    place = {example: row for row, example in enumerate(dict.fromkeys((*left, *(right or ()))))}
    vectors = embed(network, list(place), batch_size=64)
    first, second = (vectors[[place[example] for example in side]] for side in (left, right or ()))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(1) / np.maximum(norms, 1e-12))


def _probability(network: Network, examples: Sequence[Example], labels: Sequence[int]) -> np.ndarray[Any, Any]:
    logits = embed(network, examples, batch_size=64).astype(float)
    logits -= logits.max(1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.asarray(shares[np.arange(len(labels)), np.asarray(labels)])
