"""The page of a network's formats: which is recommended for what, and all that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isthmus.report.figures import Section, render_figures
from isthmus.report.numbers import metric, nats, percent, plain, si
from isthmus.report.siteviews import SiteTable


def render_formats(data: Mapping[str, Any]) -> str:
    """Render a table of formats, as plain data, as one HTML page that asks nothing of the network."""
    facts = (
        ("Task", str(data["task"])),
        (str(data["metric_name"]), metric(data["metric"])),
        ("Weight file", si(data["bytes"], "B")),
    )
    left = tuple((name, reason) for name, reason in data["left"].items())
    sections = [
        Section("Recommended here", tuple(advice(data))),
        Section("All formats", tuple(data["notes"]), table=format_table(data)),
    ]
    if left:
        sections.append(Section("Left out", table=SiteTable(("format", "because"), left)))
    return render_figures(f"Formats of {data['network']}", "formats", facts, sections)


def advice(data: Mapping[str, Any]) -> list[str]:
    """Say in a sentence for each use which format is recommended, and what it brings."""
    return [_advice(use, name, data) for use, name in data["recommended"].items()]


def _advice(use: str, name: str | None, data: Mapping[str, Any]) -> str:
    batch = data["uses"][use]["batch"]
    where = f"{use} ({batch} at once)"
    if name is None:
        return f"{where}: no format keeps {percent(data['keep'])} of the {data['metric_name']}"
    row = next(one for one in data["rows"] if one["name"] == name)
    milliseconds = row["latency"][use]["median_ms"]
    slowest = max(data["rows"], key=lambda one: one["latency"][use]["median_ms"])
    rate = f"{plain(1000 * batch / milliseconds)} a second"
    return (
        f"{where}: {name}, {plain(milliseconds)} ms ({rate}; {slowest['name']} takes "
        f"{plain(slowest['latency'][use]['median_ms'])} ms), {percent(row['relative'])} of the {data['metric_name']}, "
        f"{si(row['bytes'], 'B')}"
    )


def format_table(data: Mapping[str, Any]) -> SiteTable:
    """Return all formats with their figures as text."""
    uses = {use: f"{use}, {one['batch']} at once [quartiles]" for use, one in data["uses"].items()}
    columns = (
        "format", "bytes", f"{data['metric_name']} [95 %]", "of the network's", "output cosine", "divergence",
        *uses.values(),
    )  # fmt: skip
    return SiteTable(columns, tuple(_cells(row, list(uses)) for row in data["rows"]))


def _cells(row: Mapping[str, Any], uses: Sequence[str]) -> tuple[str, ...]:
    low, high = row["ci95"]
    times = (row["latency"][use] for use in uses)
    return (
        row["name"], si(row["bytes"], "B"), f"{metric(row['metric'])} [{metric(low)}, {metric(high)}]",
        percent(row["relative"]), f"{row['similarity']:.4f}", nats(row["nats"]),
        *(f"{plain(one['median_ms'])} ms [{plain(one['low_ms'])}, {plain(one['high_ms'])}]" for one in times),
    )  # fmt: skip
