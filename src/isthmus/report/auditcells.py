"""The cells of an audit's tables: words, numbers, and intervals drawn on one axis a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.audit.resampling import Estimate
from isthmus.report.numbers import metric, percent, plain, si
from isthmus.report.scales import finite, linear

_TEXT = 300


@dataclass(frozen=True)
class Plotted:
    """An interval in percent of the column's axis, and where its zero is."""

    low: float
    at: float
    high: float
    zero: float


@dataclass(frozen=True)
class Cell:
    """A cell: what it says, what it is sorted by, its second line, a drawn interval, and a picture (a data URI)."""

    text: str
    key: str
    second: str = ""
    plot: Plotted | None = None
    picture: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first ``words`` columns are words; ``filtered`` gives it a field to filter rows with."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    filtered: bool = False


def word(text: str, second: str = "", picture: str = "") -> Cell:
    """Return a cell of words, cut where they are long; the second line is shown small, a picture above."""
    shown = text if len(text) <= _TEXT else text[: _TEXT - 1].rstrip() + "…"
    return Cell(
        shown, text.lower(), second if len(second) <= _TEXT else second[: _TEXT - 1].rstrip() + "…", picture=picture
    )


def number(value: float | None, write: str = "metric") -> Cell:
    """Return a cell of a number, written as a metric, percent, plain or si."""
    writers: dict[str, Callable[[float | None], str]] = {"metric": metric, "percent": percent, "plain": plain, "si": si}
    return Cell(writers[write](value), "" if value is None else repr(float(value)))


def estimates(estimates: Sequence[Estimate | None]) -> list[Cell]:
    """Return a column of values with their intervals drawn on one axis that holds zero."""
    values = finite([v for one in estimates if one is not None for v in (one.low, one.value, one.high)])
    scale = linear(values or [0.0], zero=True)

    def cell(one: Estimate | None) -> Cell:
        if one is None:
            return Cell("", "")
        low, at, high, zero = (100 * scale.at(value) for value in (one.low, one.value, one.high, 0.0))
        second = f"{metric(one.low)} to {metric(one.high)}"
        return Cell(metric(one.value), repr(one.value), second, Plotted(low, at, high, zero))

    return [cell(one) for one in estimates]
