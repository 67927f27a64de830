"""Charts as coordinates: the template only draws what is computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.report import numbers
from isthmus.report.data import Curve, Quality, SiteRow
from isthmus.report.scales import Scale, finite, linear, logarithmic, spans_decades

#: Points drawn of a curve; a longer one keeps the lowest and highest of each stretch, so that no spike is lost.
POINTS = 320


@dataclass(frozen=True)
class Tick:
    """A tick: where on the axis (in the chart's coordinates) and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """The plotting area inside a chart of ``width`` by ``height``, with its ticks."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Series:
    """One line: its name, its path, where it ends and what it says in words."""

    name: str
    path: str
    end: tuple[float, float]
    first: str
    last: str


@dataclass(frozen=True)
class LineChart:
    """Lines over steps that share a unit."""

    title: str
    unit: str
    frame: Frame
    series: tuple[Series, ...]
    label: str


@dataclass(frozen=True)
class Bar:
    """A labelled bar: its length in percent and what it says."""

    name: str
    text: str
    length: float


def framed(
    width: float, height: float, left: float, x: Scale, y: Scale, *, top: float = 10.0,
    x_write: Callable[[float], str] = numbers.plain,
) -> Frame:  # fmt: skip
    """Return the plotting area for two scales, with room for what is written beside it."""
    right, bottom = width - 14.0, height - 26.0
    return Frame(
        width, height, left, top, right, bottom,
        tuple(Tick(left + x.at(tick) * (right - left), x_write(tick)) for tick in x.ticks),
        tuple(Tick(bottom - y.at(tick) * (bottom - top), numbers.plain(tick)) for tick in y.ticks),
    )  # fmt: skip


def thinned(points: Sequence[tuple[float, float]], limit: int = POINTS) -> list[tuple[float, float]]:
    """Return at most about ``limit`` points that keep the curve's lowest and highest values."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept: list[tuple[float, float]] = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def series_of(curve: Curve, name: str, frame: Frame, x: Scale, y: Scale) -> Series:
    """Place a curve's points in a frame."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            round(frame.left + x.at(point[0]) * (frame.right - frame.left), 1),
            round(frame.bottom - y.at(point[1]) * (frame.bottom - frame.top), 1),
        )

    known = [point for point in curve.points if math.isfinite(point[1]) and math.isfinite(point[0])]
    places = [place(point) for point in thinned(known)]
    path = "M" + "L".join(f"{across:g} {down:g}" for across, down in places)
    return Series(name, path, places[-1], numbers.plain(known[0][1]), numbers.plain(known[-1][1]))


def line_charts(curves: Sequence[Curve]) -> tuple[LineChart, ...]:
    """Return a chart for each stage and unit, with the curves named ``stage: series`` of one stage together."""
    groups: dict[tuple[str, str], list[tuple[str, Curve]]] = {}
    for curve in curves:
        if not finite(value for _, value in curve.points):
            continue
        stage, separator, name = curve.name.partition(":")
        key = (stage.strip(), curve.unit)
        groups.setdefault(key, []).append((name.strip() if separator else stage.strip(), curve))
    return tuple(_line_chart(stage, unit, members) for (stage, unit), members in groups.items())


def _span(steps: Sequence[float]) -> Scale:
    """Return the scale of the steps: it ends where they end, with round ticks inside."""
    scale = linear(steps, count=4)
    low, high = min(steps), max(steps)
    if low == high:
        return scale
    return Scale(low, high, ticks=tuple(tick for tick in scale.ticks if low <= tick <= high))


def _line_chart(stage: str, unit: str, members: Sequence[tuple[str, Curve]]) -> LineChart:
    points = [point for _, curve in members for point in curve.points if math.isfinite(point[1])]
    values = [value for _, value in points]
    x = _span([step for step, _ in points])
    log = min(values) > 0 and spans_decades(values, 100)
    y = logarithmic(values) if log else linear(values, zero=min(values) >= 0 and max(values) > 2 * min(values))
    frame = framed(340, 210, 44, x, y, x_write=numbers.tick)
    series = tuple(series_of(curve, name, frame, x, y) for name, curve in members)
    words = "; ".join(f"{line.name} from {line.first} to {line.last} {unit}".rstrip() for line in series)
    title = stage if len(series) > 1 or series[0].name == stage else f"{stage}: {series[0].name}"
    return LineChart(title, unit, frame, series, f"{title}, over {numbers.si(x.high)} steps: {words}")


@dataclass(frozen=True)
class Dot:
    """A site in the scatter: where it is, its shape, whether it was clamped to the edge, and its figures."""

    x: float
    y: float
    shape: int
    clamped: bool
    tip: str


@dataclass(frozen=True)
class Scatter:
    """Predicted against measured distortion, a dot for each site, with the diagonal where they agree."""

    frame: Frame
    dots: tuple[Dot, ...]
    kinds: tuple[str, ...]
    clamped: bool
    log: bool


def scatter(sites: Sequence[SiteRow]) -> Scatter | None:
    """Return the scatter of the sites whose distortion was both predicted and measured, or None for none."""
    pairs = [
        (site, site.predicted_distortion, site.measured_distortion)
        for site in sites
        if site.predicted_distortion is not None and site.measured_distortion is not None
    ]
    pairs = [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
    if not pairs:
        return None
    values = [value for _, *both in pairs for value in both]
    log = spans_decades(values, 20)
    scale = logarithmic(values) if log else linear(values, zero=True)
    frame = framed(380, 310, 52, scale, scale, top=28.0)
    kinds = tuple(dict.fromkeys(site.kind for site, _, _ in pairs))
    dots = tuple(
        Dot(
            round(frame.left + scale.at(predicted) * (frame.right - frame.left), 1),
            round(frame.bottom - scale.at(measured) * (frame.bottom - frame.top), 1),
            kinds.index(site.kind) % 5,
            min(predicted, measured) < scale.low,
            f"{site.name}\npredicted {numbers.nats(predicted)}\nmeasured {numbers.nats(measured)}",
        )
        for site, predicted, measured in pairs
    )
    return Scatter(frame, dots, kinds, any(dot.clamped for dot in dots), log)


@dataclass(frozen=True)
class Reading:
    """A value with its interval, as places in percent of the axis."""

    name: str
    text: str
    interval: str
    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class QualityPlot:
    """The metric of both networks on one axis, with the floor where one was asked for."""

    readings: tuple[Reading, ...]
    ticks: tuple[Tick, ...]
    floor: Tick | None


def quality_plot(quality: Quality) -> QualityPlot:
    """Place the metric's values and their 95 % intervals on an axis."""
    floor = quality.wanted * quality.original if quality.wanted is not None else None
    rows = [("original", quality.original, quality.ci95_original)]
    if quality.narrowed is not None:
        rows.append(("narrowed", quality.narrowed, quality.ci95_narrowed))
    values = finite([floor, *(value for _, value, _ in rows), *(end for *_, ci in rows for end in ci or ())])
    scale = linear(values or [0.0], count=4)

    def reading(name: str, value: float, ci: tuple[float, float] | None) -> Reading:
        ends = (100 * scale.at(ci[0]), 100 * scale.at(ci[1])) if ci else (None, None)
        interval = f"{numbers.metric(ci[0])} to {numbers.metric(ci[1])}" if ci else ""
        at = 100 * scale.at(value)
        return Reading(name, numbers.metric(value), interval, at, *ends)

    return QualityPlot(
        tuple(reading(*row) for row in rows),
        tuple(Tick(100 * scale.at(tick), numbers.plain(tick)) for tick in scale.ticks),
        Tick(100 * scale.at(floor), numbers.metric(floor)) if floor is not None else None,
    )
