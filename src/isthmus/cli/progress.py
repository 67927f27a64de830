"""Progress on the terminal: a bar with the time left, or one line a stage where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isthmus.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Progress]:
    """Give a progress function to hand to the flow.

    On a terminal it draws bars on stderr; otherwise it writes a line when a stage starts and one when it ends.
    With ``quiet`` it says nothing.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        yield _Lines()


class _Lines:
    """A line on stderr as each stage starts and ends."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._ended: set[str] = set()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if stage in self._ended:
            return
        if stage not in self._started:
            self._started[stage] = time.monotonic()
            if done < total:
                print(f"{stage} ...", file=sys.stderr, flush=True)
        if done >= total:
            self._ended.add(stage)
            seconds = time.monotonic() - self._started[stage]
            print(f"{stage}: done in {seconds:.1f} s{f' ({note})' if note else ''}", file=sys.stderr, flush=True)


class _Bars:
    """One bar a stage, added when the stage is first heard of."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._bars: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if stage not in self._bars:
            self._bars[stage] = self._display.add_task(stage, total=total, note="")
        self._display.update(self._bars[stage], completed=min(done, total), total=total, note=note)


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Display(*columns, console=Console(stderr=True), refresh_per_second=4) as display:
        yield _Bars(display)
