"""Micro-benchmarks run in an engine: seconds of each probe, with cold weights and warm inputs, as within a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from isthmus.cost.roofline.probes import Probe
from isthmus.errors import unknown

ENGINES = ("openvino", "torch")
DTYPES = ("float32", "bfloat16")


AT_ONCE = 8  # rounds after which an engine's counters start anew


class Bench(Protocol):
    """Probes made ready in an engine."""

    def rounds(self, count: int) -> list[list[float]]:
        """Run every probe ``count`` times and return the seconds of each, by run."""
        ...


def time_probes(
    probes: Sequence[Probe],
    engine: str,
    dtype: str = "float32",
    *,
    rounds: int = 32,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Probe, float]:
    """Time operators in an engine, all of them in turn in every round.

    Parameters
    ----------
    probes : sequence of Probe
    engine : {"openvino", "torch"}
    dtype : {"float32", "bfloat16"}
        What the engine computes in.
    rounds : int
        How often each is timed.
    threads : int, optional
        Of the engine; as many as there are cores when None.
    progress : callable, optional
        Called with the rounds done and the rounds in all.

    Returns
    -------
    dict of Probe to float
        Seconds: the mean of the fastest sixteenth of the rounds.

    Raises
    ------
    BadInput
        If the engine or the element type is unknown.
    """
    check_probing(engine, dtype)
    bench: Bench
    if engine == "openvino":
        from isthmus.export.probing_openvino import OpenVinoBench

        bench = OpenVinoBench(probes, dtype, threads)
    else:
        from isthmus.export.probing_torch import TorchBench

        bench = TorchBench(probes, dtype, threads)
    rows: list[list[float]] = []
    while len(rows) < rounds:
        rows += bench.rounds(min(AT_ONCE, rounds - len(rows)))
        progress(len(rows), rounds)
    return dict(zip(probes, low_mean(np.array(rows)).tolist(), strict=True))


def check_probing(engine: str, dtype: str) -> None:
    """Refuse an engine or an element type that is not probed.

    Raises
    ------
    BadInput
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if dtype not in DTYPES:
        raise unknown("element type", dtype, DTYPES)


def low_mean(times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of the fastest sixteenth of the rounds (the first axis), and of three at least.

    Disturbance only ever adds time, so slow rounds are left out; a mean is finer than the ticks of an engine's
    counters, which a minimum or a median is not.
    """
    count = max(min(3, times.shape[0]), times.shape[0] // 16)
    return np.asarray(np.sort(times, axis=0)[:count].mean(axis=0))
