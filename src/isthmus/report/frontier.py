"""The frontier: the plans that the solver found, from small and lossy to large and faithful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.report.charts import Bar, Frame, Tick, framed
from isthmus.report.data import FrontierPoint, Saving
from isthmus.report.numbers import NONE, bits, nats, percent, si, tick
from isthmus.report.scales import close, finite, linear, portion, spans_decades


@dataclass(frozen=True)
class Dot:
    """A plan in the chart: where it is, and its figures."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Stop:
    """A plan at which the slider stops: its dot, its name, its figures and its bars."""

    dot: Dot
    title: str
    figures: tuple[tuple[str, str], ...]
    kept: tuple[Bar, ...]
    coders: tuple[Bar, ...]

    def shown(self) -> dict[str, float | str | list[str] | list[float]]:
        """Return what the script puts on the page, in the order in which the template draws it."""
        bars = (*self.kept, *self.coders)
        return {
            "x": self.dot.x,
            "y": self.dot.y,
            "texts": [self.title, *(text for _, text in self.figures), *(bar.text for bar in bars)],
            "bars": [round(bar.length, 2) for bar in bars],
            "spoken": ", ".join([self.title, *(f"{text} {name}" for name, text in self.figures)]),
        }


@dataclass(frozen=True)
class Frontier:
    """The line of predicted distortion against bytes, with the stops of the slider along it.

    ``start`` is the stop shown first, ``chosen`` that of the plan itself (None: not known); ``limit`` is None where
    there is none or where it lies far from all plans.
    """

    frame: Frame
    path: str
    stops: tuple[Stop, ...]
    dominated: tuple[Dot, ...]
    start: int
    chosen: int | None
    limit: Tick | None
    clamped: bool

    def shown(self) -> list[dict[str, float | str | list[str] | list[float]]]:
        """Return what the script reads, one entry a stop."""
        return [stop.shown() for stop in self.stops]


def undominated(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points to which no other is preferable, by rising bytes and so by falling distortion.

    Of points with the same bytes and distortion the first stays.
    """
    stay: list[FrontierPoint] = []
    for point in sorted(points, key=lambda point: (point.bytes, point.distortion)):
        if not stay or point.distortion < stay[-1].distortion:
            stay.append(point)
    return stay


def chosen(points: Sequence[FrontierPoint], saving: Saving | None) -> int | None:
    """Return which point is the plan itself.

    Of the points within the limit on bytes (of all, where there is no limit or none is within) it is the one nearest to
    the plan's bytes by ratio; the one of least distortion, where only the limit is known; None where neither is.

    Parameters
    ----------
    points : sequence of FrontierPoint
        With bytes above zero.
    saving : Saving or None
        The row of the currency ``bytes``.
    """
    if saving is None:
        return None
    limit = saving.limit
    within = [index for index, point in enumerate(points) if limit is None or point.bytes <= limit]
    reached = next((size for size in finite([saving.predicted, saving.narrowed]) if size > 0), None)
    if reached is not None:
        return min(within or range(len(points)), key=lambda index: abs(math.log(points[index].bytes / reached)))
    return min(within, key=lambda index: points[index].distortion) if within and limit is not None else None


def _kinds(points: Sequence[FrontierPoint]) -> tuple[list[str], list[str]]:
    """Return the kinds of site and the coders in the order in which they first appear."""
    kept = dict.fromkeys(kind for point in points for kind in point.kept)
    coders = dict.fromkeys(coder for point in points for coder in point.coders)
    return list(kept), list(coders)


def _tip(point: FrontierPoint, title: str) -> str:
    return f"{title}\n{si(point.bytes, 'B')} on disk\n{nats(point.distortion)} predicted"


def _stops(points: Sequence[FrontierPoint], places: Sequence[tuple[float, float]], plan: int | None) -> list[Stop]:
    kinds, coders = _kinds(points)
    most = max((count for point in points for count in point.coders.values()), default=0)
    stops = []
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        title = f"Plan {index + 1} of {len(points)}" + (", the one chosen" if index == plan else "")
        figures = (
            ("on disk", si(point.bytes, "B")),
            ("predicted", nats(point.distortion)),
            ("of the parameters", percent(point.params_share)),
            ("bits a weight", bits(point.bits)),
        )
        kept = tuple(Bar(kind, percent(point.kept.get(kind)), portion(point.kept.get(kind), 1.0)) for kind in kinds)
        counts = tuple(
            Bar(coder, f"{point.coders[coder]:,}" if coder in point.coders else NONE,
                portion(point.coders.get(coder), most))
            for coder in coders
        )  # fmt: skip
        stops.append(Stop(Dot(x, y, _tip(point, title)), title, figures, kept, counts))
    return stops


def frontier(points: Sequence[FrontierPoint], saving: Saving | None) -> Frontier | None:
    """Return the chart of the plans, both axes by logarithm where that shows more, or None where there are none.

    Parameters
    ----------
    points : sequence of FrontierPoint
        In any order. Points whose bytes or distortion is no number are left out; dominated ones are drawn apart from
        the line and have no stop.
    saving : Saving or None
        The row of the currency ``bytes``, which says where the plan itself is and what its limit is.
    """
    known = [point for point in points if math.isfinite(point.distortion) and 0 < point.bytes < math.inf]
    if not known:
        return None
    best = undominated(known)
    sizes, losses = [point.bytes for point in known], [point.distortion for point in known]
    limit = next(iter(finite([saving.limit if saving else None])), None)
    if limit is not None and not min(sizes) / 2 < limit < 2 * max(sizes):
        limit = None
    x = close(sizes if limit is None else [*sizes, limit])
    y = close(losses) if spans_decades(losses, 10) else linear(losses, zero=True)
    frame = framed(440, 320, 56, x, y, top=28.0, x_write=lambda value: tick(value, "B"))

    def place(point: FrontierPoint) -> tuple[float, float]:
        return (
            round(frame.left + x.at(point.bytes) * (frame.right - frame.left), 1),
            round(frame.bottom - y.at(point.distortion) * (frame.bottom - frame.top), 1),
        )

    places = [place(point) for point in best]
    plan = chosen(best, saving)
    stay = {id(point) for point in best}
    return Frontier(
        frame=frame,
        path="M" + "L".join(f"{across:g} {down:g}" for across, down in places) if len(places) > 1 else "",
        stops=tuple(_stops(best, places, plan)),
        dominated=tuple(Dot(*place(one), _tip(one, "Dominated")) for one in known if id(one) not in stay),
        start=len(best) // 2 if plan is None else plan,
        chosen=plan,
        limit=None
        if limit is None
        else Tick(round(frame.left + x.at(limit) * (frame.right - frame.left), 1), si(limit, "B")),
        clamped=y.log and min(losses) < y.low,
    )
