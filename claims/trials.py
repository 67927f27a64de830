"""Trials: claims about measures and objectives, whose experiments are small trainings and estimates of their own.

A trial is an arm at a level with a seed, and gives figures. Each is on disk before the next begins.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims.coding import Point, judged, measure_missing, point_of
from claims.common import Ledger, Outcome, Say
from claims.data import why_not
from claims.vtrans import Part
from isthmus.errors import BadInput
from isthmus.flow.record import versions


@dataclass(frozen=True)
class Column:
    """A figure of every trial that the table shows: its key, its heading, and how a number is written."""

    key: str
    heading: str
    shown: str = "{:.3g}"


@dataclass(frozen=True)
class Trials:
    """A statement, the trials that test it and what is decided from them; the first part decides whether it fails.

    Parameters
    ----------
    arms : mapping of str to sequence of float
        The levels of each.
    seeds : tuple of int
    measure : callable
        From a point to its figures.
    parts : callable
        From all outcomes to what is decided.
    columns : tuple of Column
    level : str
        What a level is, as the heading of a column.
    recipe : mapping
        What the figures depend on besides; a result made by another recipe is refused.
    needs : tuple of str
        Files within the folder of data.
    data : callable
        From nothing to the fingerprint of the data.
    """

    slug: str
    claim: str
    experiment: str
    arms: Mapping[str, Sequence[float]]
    seeds: tuple[int, ...]
    measure: Callable[[Point], Mapping[str, Any]]
    parts: Callable[[Sequence[Outcome]], list[Part]]
    columns: tuple[Column, ...]
    level: str
    recipe: Mapping[str, Any]
    data: Callable[[], str]
    needs: tuple[str, ...] = ()

    def points(self, seeds: Sequence[int], *, quick: bool = False) -> list[Point]:
        """Return the points, seed by seed; a quick run takes both ends of each arm."""
        every = [
            Point(arm, float(level), seed)
            for seed in seeds
            for arm, levels in self.arms.items()
            for level in ((levels[0], levels[-1]) if quick else levels)
        ]
        return list(dict.fromkeys(every))

    def judge(self, outcomes: Sequence[Outcome], *, complete: bool) -> dict[str, Any]:
        """Return the parts and the verdict, as for every claim."""
        return judged(self.parts(outcomes), complete=complete)


def run(trials: Trials, out: Path, *, seeds: Sequence[int] | None = None, quick: bool = False, say: Say = print) -> str:
    """Run the trials that ``out`` lacks, each on disk before the next begins, and return the verdict.

    Raises
    ------
    BadInput
        If data is not there, or ``out`` holds trials that were made otherwise.
    IsthmusError
        At the end, if some trials failed.
    """
    if missing := why_not(*trials.needs) if trials.needs else None:
        raise BadInput(f"{trials.slug}: skipped, {missing}")
    drawn = tuple(seeds or (trials.seeds[:1] if quick else trials.seeds))
    wanted = set(trials.points(trials.seeds))
    head = {
        "slug": trials.slug, "kind": "trials", "claim": trials.claim, "experiment": trials.experiment,
        "level": trials.level, "columns": [vars(column) for column in trials.columns],
        "record": {"versions": versions(), "data": trials.data(), "recipe": dict(trials.recipe)},
    }  # fmt: skip
    ledger = Ledger(out, head, lambda found: trials.judge(found, complete={point_of(one) for one in found} >= wanted))

    def measure(point: Point) -> Outcome:
        started = time.monotonic()
        found = {"arm": point.arm, "level": point.level, "seed": point.seed, **trials.measure(point)}
        return {**found, "seconds": {"all": time.monotonic() - started}}

    def told(outcome: Outcome) -> str:
        return ", ".join(
            f"{column.heading} {column.shown.format(outcome[column.key])}"
            for column in trials.columns
            if outcome.get(column.key) is not None
        )

    return measure_missing(trials, ledger, trials.points(drawn, quick=quick), measure, told, say)


def of_arm(outcomes: Sequence[Outcome], arm: str, level: float | None, key: str) -> list[float]:
    """Return a figure of an arm (at a level) over seeds, in the order of the seeds."""
    found = [one for one in outcomes if one["arm"] == arm and level in (None, one["level"])]
    return [float(one[key]) for one in sorted(found, key=lambda one: int(one["seed"])) if one.get(key) is not None]


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and its standard error."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    spread = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    return statistics.fmean(gaps), spread
