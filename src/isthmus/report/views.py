"""What the template draws: the report's data put into words, shares and places."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from isthmus.report.charts import Bar, LineChart, QualityPlot, Scatter, line_charts, quality_plot, scatter
from isthmus.report.codeviews import Coding, coding
from isthmus.report.data import Distortion, EngineRow, Example, ReportData, Saving
from isthmus.report.frontier import Frontier, frontier
from isthmus.report.layerviews import LayerView, layer_view
from isthmus.report.numbers import metric, nats, percent, plain, si, times
from isthmus.report.scales import Scale, finite, linear, portion
from isthmus.report.siteviews import Map, Partition, PlanView, SiteTable, partition, plan_view, site_map, site_table

#: Longer texts are cut for the page; the data keeps them whole.
TEXT = 420

_LABELS = {
    "params": ("Parameters", "parameters", "fewer", "more"),
    "bytes": ("Bytes on disk", "on disk", "smaller", "larger"),
    "macs": ("MACs", "MACs", "fewer", "more"),
    "latency": ("Latency", "latency", "faster", "slower"),
    "cache": ("Key-value cache", "of cache", "smaller", "larger"),
    "peak": ("Peak memory", "of peak memory", "smaller", "larger"),
}


@dataclass(frozen=True)
class Card:
    """One currency's card. ``state`` is measured, predicted or original; shares are percent of the longest bar."""

    label: str
    figure: str
    original: str
    state: str
    multiple: str
    share: str
    bar: float
    original_bar: float
    limit_at: float | None
    verdict: str
    kept: bool
    prediction: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The page's one sentence: a figure, of what, and what is left of the quality."""

    figure: str
    words: str
    quality: str
    quality_words: str


@dataclass(frozen=True)
class ExampleView:
    """An example with the places of its values on the shared axis, in percent."""

    text: str
    text2: str
    original: str
    narrowed: str
    label: str
    change: str
    original_at: float
    narrowed_at: float
    label_at: float | None


@dataclass(frozen=True)
class Timing:
    """One network's latency in one engine: its bar and its spread, in percent of the row."""

    name: str
    text: str
    spread: str
    length: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EngineView:
    """A row of the engines: where it was measured and what came out."""

    engine: str
    setting: str
    multiple: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Entry:
    """An entry of the record: plain text, a table of names and texts, or JSON."""

    name: str
    text: str
    pairs: tuple[tuple[str, str], ...]
    json: str


@dataclass(frozen=True)
class Page:
    """Everything the template draws; what is empty or None is left out."""

    headline: Headline | None
    planned: bool
    cards: tuple[Card, ...]
    partition: Partition | None
    map: Map | None
    plan: PlanView | None
    table: SiteTable | None
    layers: LayerView | None
    coding: Coding | None
    frontier: Frontier | None
    quality: QualityPlot | None
    distortion: tuple[Bar, ...]
    scatter: Scatter | None
    curves: tuple[LineChart, ...]
    examples: tuple[ExampleView, ...]
    example_ends: tuple[str, str]
    engines: tuple[EngineView, ...]
    record: tuple[Entry, ...]


def page(data: ReportData) -> Page:
    """Put a report's data into what the template draws."""
    changed = data.kind == "narrow"
    example_scale = _example_scale(data.examples)
    return Page(
        headline=_headline(data),
        planned=changed and bool(data.savings) and all(saving.narrowed is None for saving in data.savings),
        cards=tuple(_card(saving, changed) for saving in data.savings),
        partition=partition(data.sites, {saving.currency: saving.original for saving in data.savings}),
        map=site_map(data.sites),
        plan=plan_view(data.sites),
        table=site_table(data.sites),
        layers=layer_view(data.layers, data.profiles),
        coding=coding(data.codes),
        frontier=frontier(data.frontier, next((one for one in data.savings if one.currency == "bytes"), None)),
        quality=quality_plot(data.quality) if data.quality else None,
        distortion=_distortion(data.distortion),
        scatter=scatter(data.sites),
        curves=line_charts(data.curves),
        examples=_examples(data.examples, example_scale),
        example_ends=(plain(example_scale.low), plain(example_scale.high)),
        engines=tuple(_engine(row) for row in data.engines),
        record=tuple(entry(name, value) for name, value in data.record.items()),
    )


def _reached(saving: Saving) -> float | None:
    return saving.narrowed if saving.narrowed is not None else saving.predicted


def _headline(data: ReportData) -> Headline | None:
    """Speak of the first currency that the budget limits, or of the first there is."""
    if not data.savings:
        return None
    saving = next((saving for saving in data.savings if saving.limit is not None), data.savings[0])
    original, reached, word = si(saving.original, saving.unit), _reached(saving), _LABELS[saving.currency][1]
    if data.kind == "inspect" or reached is None:
        sites = f" in {len(data.sites)} sites" if data.sites else ""
        return Headline(original, f"{word}{sites}", "", "")
    relative = data.quality.relative if data.quality else None
    kept = percent(relative) if relative is not None else ""
    return Headline(si(reached, saving.unit), f"of {original} {word}", kept, "of the quality kept" if kept else "")


def _multiple(original: float, reached: float, less: str, more: str) -> str:
    if not (original > 0 and reached > 0):
        return ""
    ratio = original / reached
    if abs(ratio - 1) < 0.005:
        return "unchanged"
    return f"{times(ratio)} {less}" if ratio > 1 else f"{times(1 / ratio)} {more}"


def _card(saving: Saving, changed: bool) -> Card:
    label, _, less, more = _LABELS[saving.currency]
    reached = _reached(saving) if changed else None
    original = si(saving.original, saving.unit)
    longest = max(finite([saving.original, reached, saving.limit]), default=0.0) or 1.0
    verdict, kept, prediction = "", True, ""
    if saving.limit is not None and reached is not None:
        kept = reached <= saving.limit
        verdict = f"{'within' if kept else 'over'} the limit of {si(saving.limit, saving.unit)}"
    if saving.narrowed is not None and saving.predicted is not None and reached is not None:
        same = math.isclose(saving.predicted, reached, rel_tol=5e-4)
        prediction = "as predicted" if same else f"predicted {si(saving.predicted, saving.unit)}"
    state = "original" if reached is None else "measured" if saving.narrowed is not None else "predicted"
    return Card(
        label=label,
        figure=original if reached is None else si(reached, saving.unit),
        original=original,
        state=state,
        multiple="" if reached is None else _multiple(saving.original, reached, less, more),
        share="" if reached is None or not saving.original else percent(reached / saving.original),
        bar=portion(reached, longest),
        original_bar=portion(saving.original, longest),
        limit_at=None if saving.limit is None or not changed else portion(saving.limit, longest),
        verdict=verdict,
        kept=kept,
        prediction=prediction,
        note=saving.note or "",
    )


def _distortion(distortion: Distortion | None) -> tuple[Bar, ...]:
    if distortion is None:
        return ()
    rows = [
        ("predicted", distortion.predicted),
        ("measured after the cut", distortion.measured_before_recovery),
        ("measured after recovery", distortion.measured_after_recovery),
    ]
    longest = max(finite([value for _, value in rows]), default=0.0) or 1.0
    return tuple(Bar(name, nats(value), portion(value, longest)) for name, value in rows if value is not None)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1].rstrip() + "…"


def _example_scale(examples: Sequence[Example]) -> Scale:
    values = finite([value for row in examples for value in (row.original, row.narrowed, row.label)])
    return linear(values or [0.0])


def _examples(examples: Sequence[Example], scale: Scale) -> tuple[ExampleView, ...]:
    """Place every example on one axis."""

    def view(row: Example) -> ExampleView:
        """Put one example into words and places."""
        change = row.narrowed - row.original
        sign = "+" if change > 0 else ""
        return ExampleView(
            _cut(row.text),
            _cut(row.text2 or ""),
            metric(row.original),
            metric(row.narrowed),
            plain(row.label) if row.label is not None else "",
            sign + metric(change),
            100 * scale.at(row.original),
            100 * scale.at(row.narrowed),
            100 * scale.at(row.label) if row.label is not None else None,
        )

    return tuple(view(row) for row in examples)


def _engine(row: EngineRow) -> EngineView:
    rows = [("original", row.original_ms, row.spread_original), ("narrowed", row.narrowed_ms, row.spread_narrowed)]
    ends = [end for *_, spread in rows for end in spread or ()]
    longest = max(finite([row.original_ms, row.narrowed_ms, *ends]), default=0.0) or 1.0
    timings = tuple(
        Timing(
            name,
            si(value, "ms"),
            f"{si(spread[0], 'ms')} to {si(spread[1], 'ms')}" if spread else "",
            portion(value, longest),
            portion(spread[0], longest) if spread else None,
            portion(spread[1], longest) if spread else None,
        )
        for name, value, spread in rows
        if value is not None
    )
    multiple = _multiple(row.original_ms, row.narrowed_ms, "faster", "slower") if row.narrowed_ms is not None else ""
    return EngineView(row.engine, f"batch {row.batch} · {row.of or f'length {row.length}'}", multiple, timings)


def _scalar(value: JsonValue) -> str | None:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, int | str):
        return str(value)
    return None


def entry(name: str, value: JsonValue) -> Entry:
    """Put one entry of a record into text, pairs or JSON."""
    text = _scalar(value)
    if text is not None:
        return Entry(name, text, (), "")
    if isinstance(value, list):
        items = [_scalar(item) for item in value]
        if all(item is not None for item in items):
            return Entry(name, ", ".join(str(item) for item in items) or "none", (), "")
    if isinstance(value, dict):
        pairs = [(key, _scalar(inner)) for key, inner in value.items()]
        if pairs and all(inner is not None for _, inner in pairs):
            return Entry(name, "", tuple((key, inner) for key, inner in pairs if inner is not None), "")
    return Entry(name, "", (), json.dumps(value, indent=1, ensure_ascii=False))
