"""The page of an information plane: the path of each layer through it, and both values over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isthmus.errors import BadInput
from isthmus.information.plane_points import PlanePoint
from isthmus.information.result import Information
from isthmus.report.auditcharts import Chart, chart
from isthmus.report.figures import Section, render_figures
from isthmus.report.numbers import NONE, plain
from isthmus.report.page import write_page
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
    lead = "X is the input, T a layer with the noise that the table names, Y the label."
    if withheld:
        lead += f" {withheld} values could not be estimated; they are not drawn, and the table says why."
    facts = (
        ("Samples", str(points[0].input.samples)), ("Layers", str(len(paths))), ("Points", str(len(points))),
        ("Estimators", _estimators(points)),
    )  # fmt: skip
    sections = (
        Section("What layers carry while training", (lead, *narrated(points)), tuple(charts)),
        Section("All figures", table=_table(points)),
    )
    return render_figures(title, "information plane", facts, sections)


def write_plane(points: Sequence[PlanePoint], path: str | Path, *, title: str = "Information plane") -> None:
    """Render recorded points and write the page whole or not at all.

    Raises
    ------
    BadInput
        If there are no points or the page cannot be written there.
    """
    write_page(render_plane(points, title=title), Path(path))


def narrated(points: Sequence[PlanePoint]) -> list[str]:
    """Say in a sentence for each layer how both values went: from the first step over the highest to the last.

    A value that fell is called compressed only where the interval of the last step lies below that of the highest.
    """
    said = []
    for path in dict.fromkeys(point.path for point in points):
        own = sorted((one for one in points if one.path == path), key=lambda one: one.step)
        label = _told("I(T; Y)", [(one.step, one.label) for one in own])
        said.append(f"{path}: {label}; {_told('I(X; T)', [(one.step, one.input) for one in own])}")
    return said


def _told(name: str, rows: Sequence[tuple[int, Information]]) -> str:
    known = [(step, found, found.nats) for step, found in rows if found.nats is not None]
    if not known:
        return f"{name} not estimable at any of {len(rows)} steps"
    (_, _, start), (end, last, value) = known[0], known[-1]
    step, high, most = max(known, key=lambda one: one[2])
    gaps = "" if len(known) == len(rows) else f" (estimable at {len(known)} of {len(rows)} steps)"
    if len(known) == 1:
        return f"{name} {plain(value)} nats{gaps}"
    fell = step != end and high.interval is not None and last.interval is not None
    if fell and last.interval[1] < high.interval[0]:  # type: ignore[index]
        course = f"{plain(start)} nats, {plain(most)} at step {step}, then compressed to {plain(value)} at step {end}"
    else:
        course = f"{plain(start)} to {plain(value)} nats at step {end}"
    return f"{name} {course}{gaps}"


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
