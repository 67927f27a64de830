"""Latency: the wall time of one batch in the engine that will run the network, on this machine.

A batch is ``batch`` of the task's real sentences in their given order, padded to the longest among them. Networks that
are compared are timed in one run, turn by turn, so that whatever else the machine does hits all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Batch = Mapping[str, Any]
Runner = Callable[[Batch], object]


@dataclass(frozen=True)
class Latency:
    """The wall time of one batch in ms, with its quartiles over the rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


def measure_latency(
    runners: Mapping[str, Runner],
    batches: Sequence[Batch] | Mapping[str, Sequence[Batch]],
    *,
    rounds: int = 7,
    warmup: int = 1,
    stretch: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time networks turn by turn: a few batches through every network before the next few.

    Parameters
    ----------
    runners : mapping of str to callable
        By network, what runs one batch.
    batches : sequence of batches, or a mapping from network to one
        The batches that every network runs; by network where their tokenizers differ. As many for each.
    rounds : int
        How often every batch is timed.
    warmup : int
        Rounds run beforehand that do not count: an engine compiles for each shape when it first meets it.
    stretch : int
        Batches that a network runs in a row before the next has its turn. With one, every batch would start with the
        caches full of another network's weights, which never happens to a network in use and costs a small one most.
    progress : callable, optional
        Called with the rounds done and the rounds in all.

    Returns
    -------
    dict of str to Latency
        For each batch the median over the rounds is taken, then the mean over the batches; likewise the quartiles.

    Raises
    ------
    ValueError
        If there is nothing to run.
    """
    names = list(runners)
    given = {name: batches[name] if isinstance(batches, Mapping) else batches for name in names}
    count = len(given[names[0]]) if names else 0
    if not count or any(len(own) != count for own in given.values()) or rounds < 1:
        raise ValueError("latency needs at least one network, one round and as many batches for every network")
    times = np.zeros((len(names), count, rounds))
    for turn in range(-warmup, rounds):
        for first in range(0, count, stretch):
            # Whoever goes first changes, so that no network always runs right after the same other one.
            for step in range(len(names)):
                which = (step + first // stretch + turn) % len(names)
                runner, own = runners[names[which]], given[names[which]]
                for index in range(first, min(first + stretch, count)):
                    start = time.perf_counter()
                    runner(own[index])
                    if turn >= 0:
                        times[which, index, turn] = time.perf_counter() - start
        if progress is not None:
            progress(turn + warmup + 1, rounds + warmup)
    low, median, high = (np.quantile(times, at, axis=2).mean(axis=1) * 1e3 for at in (0.25, 0.5, 0.75))
    return {name: Latency(float(median[i]), float(low[i]), float(high[i]), rounds) for i, name in enumerate(names)}
