"""Pipelines: where the time of a network in service goes, the network itself being one stage of several.

What is not the network bounds what compressing it can bring (Amdahl's law): with a share ``m`` of the time in the
model, the whole gets at most ``1 / (1 - m)`` times faster, however small the model becomes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.errors import BadInput

Stage = Callable[[Any], Any]
MODEL = "model"
LITTLE = 1.1
"""Where the whole cannot become more than this many times faster, compressing the model is said not to pay."""


@dataclass(frozen=True)
class Share:
    """One stage: seconds of work in all, and its share of the wall time.

    In a queued pipeline ``starved`` are the seconds that it waited for something to do (also after its last item), and
    ``blocked`` those that it waited for room in the queue behind it.
    """

    name: str
    seconds: float
    share: float
    starved: float = 0.0
    blocked: float = 0.0


@dataclass(frozen=True)
class PipelineProfile:
    """Where the time of a pipeline went.

    Parameters
    ----------
    stages : tuple of Share
        In order.
    wall : float
        Seconds from the first item's start to the last one's end.
    items : int
    model : str
        The stage that compressing would make faster.
    bound : float
        How many times faster the whole gets if the model takes no time at all; infinite where there is nothing else.
    warnings : tuple of str
        What compressing cannot do here.
    """

    stages: tuple[Share, ...]
    wall: float
    items: int
    model: str
    bound: float
    warnings: tuple[str, ...] = ()

    @property
    def accounted(self) -> float:
        """The share of the wall time that the stages' shares add up to."""
        return sum(stage.share for stage in self.stages)

    def speedup(self, model: float) -> float:
        """Return how many times faster the whole gets when the model gets ``model`` times faster (Amdahl's law)."""
        if not model > 0:
            raise BadInput(f"pipeline: a model cannot get {model} times faster; give a number above zero")
        share = 1 - 1 / self.bound
        return 1 / (1 - share + share / model)


def profile_pipeline(
    stages: Mapping[str, Stage], items: Sequence[Any], *, model: str = MODEL, rounds: int = 3, warmup: int = 1
) -> PipelineProfile:
    """Time a pipeline stage by stage, each item going through all stages before the next.

    Parameters
    ----------
    stages : mapping of str to callable
        In order; each takes what the one before it returned, the first an item.
    items : sequence
        What is served: texts, encoded images, batches of either.
    model : str
        The name of the stage that holds the network.
    rounds, warmup : int
        How often all items are served; of the rounds the fastest counts. Rounds beforehand that do not count.

    Returns
    -------
    PipelineProfile
        Shares of the wall time; what they lack to one is the clock's own time.

    Raises
    ------
    BadInput
        If there are no stages or items, or no stage of the model's name.
    """
    _check(stages, items, model)
    if rounds < 1 or warmup < 0:
        raise BadInput(f"pipeline: {rounds} rounds after {warmup} to warm up; give at least one, and none or more")
    best: tuple[float, list[float]] | None = None
    for turn in range(-warmup, rounds):
        seconds = [0.0] * len(stages)
        start = before = time.perf_counter()
        for item in items:
            value = item
            for index, run in enumerate(stages.values()):
                value = run(value)
                now = time.perf_counter()
                seconds[index] += now - before
                before = now
        wall = before - start
        if turn >= 0 and (best is None or wall < best[0]):
            best = wall, seconds
    assert best is not None
    wall, seconds = best
    wall = max(wall, 1e-12)
    shares = tuple(Share(name, spent, spent / wall) for name, spent in zip(stages, seconds, strict=True))
    share = next(stage.share for stage in shares if stage.name == model)
    bound = 1 / (1 - share) if share < 1 else float("inf")
    return PipelineProfile(shares, wall, len(items), model, bound, _warnings(shares, model, bound))


def profile_queued(
    stages: Mapping[str, Stage], items: Sequence[Any], *, model: str = MODEL, size: int = 4
) -> PipelineProfile:
    """Time a pipeline whose stages run at once, each in a thread of its own with a bounded queue before it.

    The slowest stage sets the rate; the others wait for it. Stages that hold Python's lock do not really run at once,
    which then is seen as it is.

    Parameters
    ----------
    stages, items, model
        As in `profile_pipeline`.
    size : int
        How many values a queue holds.

    Returns
    -------
    PipelineProfile
        A stage's share is that of its work, its waiting beside it; the three add up to the wall time. ``bound`` is
        wall time over the work of the busiest other stage, but at least one.

    Raises
    ------
    BadInput
        As in `profile_pipeline`, or if a queue could hold nothing.
    Exception
        What a stage raises is raised here, once all threads have ended.
    """
    _check(stages, items, model)
    if size < 1:
        raise BadInput(f"pipeline: queues of {size}; a queue holds at least one value")
    run = _Queued(list(stages.items()), size)
    wall = run.serve(items)
    shares = tuple(
        Share(name, work, work / wall, starved, blocked)
        for name, (work, starved, blocked) in zip(stages, run.times, strict=True)
    )
    others = max((stage.seconds for stage in shares if stage.name != model), default=0.0)
    bound = max(1.0, wall / others) if others > 0 else float("inf")
    return PipelineProfile(shares, wall, len(items), model, bound, _warnings(shares, model, bound))


_END = object()


class _Queued:
    """Threads between queues; the first failure stops all of them."""

    def __init__(self, stages: Sequence[tuple[str, Stage]], size: int) -> None:
        self.stages = stages
        self.queues: list[queue.Queue[Any]] = [queue.Queue(size) for _ in stages]
        self.times = [[0.0, 0.0, 0.0] for _ in stages]
        self.ends = [0.0] * len(stages)
        self.stopped = threading.Event()
        self.failure: BaseException | None = None

    def serve(self, items: Iterable[Any]) -> float:
        threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(len(self.stages))]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for item in items:
            if not self._put(0, item):
                break
        self._put(0, _END)
        for thread in threads:
            thread.join()
        end = time.perf_counter()
        if self.failure is not None:
            raise self.failure
        for times, ended in zip(self.times, self.ends, strict=True):
            times[1] += end - ended  # nothing comes any more while later stages are at it
        return max(end - start, 1e-12)

    def _run(self, index: int) -> None:
        times, run = self.times[index], self.stages[index][1]
        while True:
            start = time.perf_counter()
            value = self._get(index)
            taken = time.perf_counter()
            times[1] += taken - start
            if value is _END:
                self._put(index + 1, _END)
                self.ends[index] = time.perf_counter()
                times[2] += self.ends[index] - taken
                return
            try:
                value = run(value)
            except BaseException as error:  # handed to whoever called, and nobody is left waiting
                self.failure = self.failure or error
                self.stopped.set()
                return
            done = time.perf_counter()
            times[0] += done - taken
            if not self._put(index + 1, value):
                return
            times[2] += time.perf_counter() - done

    def _put(self, index: int, value: Any) -> bool:
        if index == len(self.queues):
            return True
        while not self.stopped.is_set():
            try:
                self.queues[index].put(value, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def _get(self, index: int) -> Any:
        while not self.stopped.is_set():
            try:
                return self.queues[index].get(timeout=0.05)
            except queue.Empty:
                continue
        return _END


def _check(stages: Mapping[str, Stage], items: Sequence[Any], model: str) -> None:
    if not stages:
        raise BadInput("pipeline: no stages; give at least the model")
    if model not in stages:
        raise BadInput(f"pipeline: no stage is called {model!r}; the stages are {', '.join(stages)}; name the model's")
    if not items:
        raise BadInput("pipeline: nothing to serve; give at least one item")


def _warnings(shares: Sequence[Share], model: str, bound: float) -> tuple[str, ...]:
    others = [stage for stage in shares if stage.name != model]
    found = []
    if bound <= LITTLE and others:
        most = max(others, key=lambda stage: stage.seconds)
        found.append(
            f"compressing the model cannot pay: without it the whole would be {bound:.2f} times as fast; "
            f"{most.name} takes {most.share:.0%} of the time"
        )
    return tuple(found)


def text_stages(tokenize: Stage, model: Stage, pool: Stage) -> dict[str, Stage]:
    """Return the stages of a text encoder in service: ``tokenize``, ``model``, ``pool``."""
    return {"tokenize": tokenize, MODEL: model, "pool": pool}


def image_stages(decode: Stage, resize: Stage, normalise: Stage, model: Stage) -> dict[str, Stage]:
    """Return the stages of an image network in service: ``decode``, ``resize``, ``normalise``, ``model``.

    Any library that reads images may stand behind the first two.
    """
    return {"decode": decode, "resize": resize, "normalise": normalise, MODEL: model}
