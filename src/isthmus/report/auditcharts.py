"""The charts of an audit's page, as coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.report.auditdata import AuditData
from isthmus.report.charts import Frame, LineChart, framed, series_of
from isthmus.report.data import Curve
from isthmus.report.scales import Scale, linear


@dataclass(frozen=True)
class Chart:
    """A line chart with the names of its axes, and whether its diagonal is drawn."""

    chart: LineChart
    x_name: str
    diagonal: bool


def chart(
    title: str, x_name: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, diagonal: bool = False,
    unit: bool = False,
) -> tuple[Chart, ...]:  # fmt: skip
    """Return a chart of named curves, or nothing where there are no points; ``unit`` makes both axes 0 to 1."""
    points = [point for _, curve in curves for point in curve]
    if not points:
        return ()
    whole = Scale(0.0, 1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    x = whole if unit else linear([across for across, _ in points])
    y = whole if unit else linear([value for _, value in points])
    frame: Frame = framed(340, 260 if unit else 210, 44, x, y)
    series = tuple(
        series_of(Curve(name=name, points=list(curve)), name, frame, x, y) for name, curve in curves if curve
    )
    words = "; ".join(f"{line.name} from {line.first} to {line.last}" for line in series)
    return (Chart(LineChart(title, "", frame, series, f"{title} over {x_name}: {words}"), x_name, diagonal),)


def reliability_chart(data: AuditData) -> tuple[Chart, ...]:
    """Return the chart of accuracy by confidence, if there is one."""
    curves = [(one.name, [(part.confidence, part.accuracy) for part in one.curve]) for one in data.calibration]
    return chart("Accuracy", "confidence", curves, diagonal=True, unit=True)


def coverage_chart(data: AuditData) -> tuple[Chart, ...]:
    """Return the chart of risk by coverage, if there is one."""
    return chart("Risk", "coverage", [(one.name, one.curve) for one in data.selective])


def position_chart(data: AuditData) -> tuple[Chart, ...]:
    """Return the chart of score by position, if there is one."""
    if not data.position:
        return ()
    curves = [("original", data.position[0].original), *((bias.name, bias.narrowed) for bias in data.position)]
    points = [(name, [(float(place + 1), one.value) for place, one in enumerate(curve)]) for name, curve in curves]
    return chart("Score", "place of the deciding part", points)
