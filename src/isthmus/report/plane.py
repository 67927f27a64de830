"""The page of an information plane: the path of each layer through it, and both values over steps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from isthmus.errors import BadInput
from isthmus.information.plane_points import PlanePoint
from isthmus.information.result import Information
from isthmus.report.auditcharts import Chart, chart
from isthmus.report.numbers import NONE, plain
from isthmus.report.page import environment, write_page
from isthmus.report.siteviews import SiteTable


def render_plane(points: Sequence[PlanePoint], *, title: str = "Information plane") -> str:
    """Render recorded points as one HTML page that asks nothing of the network.

    Steps at which a value is not estimable are left out of the charts and have their reason in the table.

    Raises
    ------
    BadInput
        If there are no points.
    """
    if not points:
        raise BadInput("information plane: no points; record a step first")
    paths = list(dict.fromkeys(point.path for point in points))
    charts = [one for start in range(0, len(paths), 4) for one in _charts(points, paths[start : start + 4])]
    withheld = sum(one.nats is None for point in points for one in (point.input, point.label))
    return environment().get_template("plane.html.j2").render(
        title=title, charts=charts, table=_table(points), points=len(points), paths=len(paths), withheld=withheld,
        samples=points[0].input.samples, estimators=_estimators(points), version=version("isthmus"),
    )  # fmt: skip


def write_plane(points: Sequence[PlanePoint], path: str | Path, *, title: str = "Information plane") -> None:
    """Render recorded points and write the page whole or not at all.

    Raises
    ------
    BadInput
        If there are no points or the page cannot be written there.
    """
    write_page(render_plane(points, title=title), Path(path))


def _charts(points: Sequence[PlanePoint], paths: Sequence[str]) -> list[Chart]:
    """Return the charts of at most four layers: there are four kinds of line."""
    own = {path: sorted((one for one in points if one.path == path), key=lambda one: one.step) for path in paths}
    plane = [
        (path, [(x, y) for one in rows if (x := one.input.nats) is not None and (y := one.label.nats) is not None])
        for path, rows in own.items()
    ]
    inputs = [(path, _over_steps([(one.step, one.input) for one in rows])) for path, rows in own.items()]
    labels = [(path, _over_steps([(one.step, one.label) for one in rows])) for path, rows in own.items()]
    return [
        *chart("I(T; Y), nats; dots at the last step", "I(X; T), nats", plane),
        *chart("I(X; T), nats", "step", inputs),
        *chart("I(T; Y), nats", "step", labels),
    ]


def _over_steps(rows: Sequence[tuple[int, Information]]) -> list[tuple[float, float]]:
    return [(float(step), one.nats) for step, one in rows if one.nats is not None]


def _table(points: Sequence[PlanePoint]) -> SiteTable:
    columns = ("step", "layer", "I(X; T), nats", "95 %", "I(T; Y), nats", "95 %", "noise", "not estimable, because")
    rows = tuple(
        (
            str(one.step), one.path, plain(one.input.nats), _interval(one.input), plain(one.label.nats),
            _interval(one.label), plain(one.noise),
            "; ".join(filter(None, (one.input.not_estimable, one.label.not_estimable))) or NONE,
        )
        for one in points
    )  # fmt: skip
    return SiteTable(columns, rows)


def _interval(found: Information) -> str:
    return NONE if found.interval is None else f"{plain(found.interval[0])} to {plain(found.interval[1])}"


def _estimators(points: Sequence[PlanePoint]) -> str:
    names = {(one.input.estimator, one.label.estimator) for one in points}
    return "; ".join(f"{first} for the input, {second} for the label" for first, second in sorted(names))
