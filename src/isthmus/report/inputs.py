"""The page of networks on compressed images: accuracy over bytes, what distances tell, all figures."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.audit.inputs import InputCurve
from isthmus.audit.resampling import Estimate
from isthmus.report.auditcharts import Chart, chart
from isthmus.report.figures import Section, render_figures
from isthmus.report.numbers import metric, percent, plain, si
from isthmus.report.siteviews import SiteTable

KEPT = 0.99
"""Of the accuracy: down to how many bytes it is kept is said of every codec."""


def render_inputs(
    curves: Sequence[InputCurve], *, task: str, images: int, features: str, notes: Sequence[str] = ()
) -> str:
    """Render curves as one HTML page that asks nothing of the network."""
    facts = (("Task", task), ("Images", f"{images:,}"), ("Deep features", features))
    sections = [
        Section("Accuracy over bytes sent", (*said(curves), *notes), tuple(_charts(curves))),
        Section("Which distance tells what is lost", (_MEANING,), table=told_table(curves)),
        Section("All figures", table=sent_table(curves)),
    ]
    return render_figures(f"{', '.join(one.name for one in curves)} on compressed images", "inputs", facts, sections)


_MEANING = (
    "Rank correlations. Over settings: of the mean distance of images and the drop of accuracy. Over images: of an "
    "image's distance and the increase of its loss, the mean over settings."
)


def said(curves: Sequence[InputCurve]) -> list[str]:
    """Say for each network and codec down to how many bytes nearly all of the accuracy is kept."""
    lines = []
    for curve in curves:
        for codec in dict.fromkeys(row.codec for row in curve.rows):
            row = curve.least_bytes(codec, KEPT)
            if row is None:
                told = f"keeps {percent(KEPT)} of the accuracy at no quality"
            else:
                told = (
                    f"keeps {percent(KEPT)} of the accuracy down to {si(row.bytes, 'B')} an image (quality "
                    f"{row.quality}; pixels take {si(curve.raw_bytes, 'B')})"
                )
            lines.append(f"{curve.name}, {codec}: {told}")
    return lines


def _charts(curves: Sequence[InputCurve]) -> list[Chart]:
    charts: list[Chart] = []
    for codec in dict.fromkeys(row.codec for curve in curves for row in curve.rows):
        lines = [
            (curve.name, sorted((row.bytes, row.accuracy.value) for row in curve.rows if row.codec == codec))
            for curve in curves
        ]
        charts += chart(f"Accuracy, {codec}", "bytes of an image", lines)
    return charts


def told_table(curves: Sequence[InputCurve]) -> SiteTable:
    """Return the correlations as text."""
    rows = tuple(
        (curve.name, one.distance, ranged(one.settings), ranged(one.images)) for curve in curves for one in curve.told
    )
    return SiteTable(("network", "distance", "over settings [95 %]", "over images [95 %]"), rows)


def sent_table(curves: Sequence[InputCurve]) -> SiteTable:
    """Return every setting with its figures as text."""
    columns = ("network", "codec", "quality", "bytes", "accuracy [95 %]", "drop [95 %]", "loss, nats more", "PSNR, dB",
               "deep distance")  # fmt: skip
    rows = []
    for curve in curves:
        rows.append((curve.name, "pixels", "", si(curve.raw_bytes, "B"), ranged(curve.accuracy), "", "", "", ""))
        rows += [
            (
                curve.name, row.codec, str(row.quality), si(row.bytes, "B"), ranged(row.accuracy), ranged(row.drop),
                plain(row.nats.value), plain(row.psnr), plain(row.deep),
            )
            for row in curve.rows
        ]  # fmt: skip
    return SiteTable(columns, tuple(rows))


def ranged(estimate: Estimate) -> str:
    """Write a value with its interval."""
    return f"{metric(estimate.value)} [{metric(estimate.low)}, {metric(estimate.high)}]"
