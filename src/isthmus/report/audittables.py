"""The tables of an audit's page: cells that can be sorted, with intervals drawn on one axis a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.audit.damage import SliceDamage
from isthmus.audit.resampling import Estimate
from isthmus.report.auditdata import AuditData
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
    """A cell: what it says, what it is sorted by, its second line, and a drawn interval."""

    text: str
    key: str
    second: str = ""
    plot: Plotted | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first ``words`` columns are words; ``filtered`` gives it a field to filter rows with."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    filtered: bool = False


def _word(text: str, second: str = "") -> Cell:
    shown = text if len(text) <= _TEXT else text[: _TEXT - 1].rstrip() + "…"
    return Cell(shown, text.lower(), second if len(second) <= _TEXT else second[: _TEXT - 1].rstrip() + "…")


def _number(value: float | None, write: str = "metric") -> Cell:
    writers: dict[str, Callable[[float | None], str]] = {"metric": metric, "percent": percent, "plain": plain, "si": si}
    return Cell(writers[write](value), "" if value is None else repr(float(value)))


def _estimates(estimates: Sequence[Estimate | None]) -> list[Cell]:
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


def networks_table(data: AuditData) -> Table:
    """Return the table of the networks."""
    losses = _estimates([one.loss for one in data.networks])
    return Table(
        "networks",
        "the networks",
        ("network", "", "parameters", "bytes", data.loss_name),
        tuple(
            (
                _word(one.name),
                _word("original" if one.original else "narrowed"),
                _number(float(one.params), "si"),
                Cell(si(one.bytes, "B"), str(one.bytes)),
                loss,
            )
            for one, loss in zip(data.networks, losses, strict=True)
        ),
        words=2,
    )


def exemplars_table(data: AuditData) -> Table | None:
    """Return the table of the exemplars."""
    found = data.exemplars
    if found is None or not found.rows:
        return None
    labelled = found.accuracy_all is not None
    return Table(
        "exemplar-rows",
        f"{len(found.rows)} of {found.count} exemplars",
        ("example", *(["label"] if labelled else []), "original", "narrowed", "votes", "confidence", "nats"),
        tuple(
            (
                _word(row.text, row.text2),
                *([_word(row.label)] if labelled else []),
                _word(row.original),
                _word(row.narrowed),
                _number(row.votes, "percent"),
                _number(row.confidence),
                _number(row.nats, "plain"),
            )
            for row in found.rows
        ),
        words=4 if labelled else 3,
        filtered=True,
    )


def damage_table(name: str, rows: Sequence[SliceDamage]) -> Table:
    """Return the table of damage by slice."""
    damages = _estimates([row.damage for row in rows])
    return Table(
        name,
        f"{len(rows)} slices",
        ("slice", "examples", "original", "narrowed", "damage", "excess over the rest", "p, corrected"),
        tuple(
            (
                _word(row.name),
                Cell(f"{row.count:,}", str(row.count)),
                _number(row.original),
                _number(row.narrowed),
                damage,
                _number(row.excess),
                _number(row.p_value, "plain"),
            )
            for row, damage in zip(rows, damages, strict=True)
        ),
    )


def amplification_table(data: AuditData) -> Table:
    """Return the table of amplification by slice."""
    rows = data.amplification.rows if data.amplification else ()
    cells = _estimates([row.amplification for row in rows])
    return Table(
        "amplified",
        f"{len(rows)} slices",
        ("slice", "share of examples", "amplification"),
        tuple((_word(row.name), _number(row.rarity, "percent"), cell) for row, cell in zip(rows, cells, strict=True)),
    )


def robustness_table(data: AuditData) -> Table | None:
    """Return the table of what corruptions cost."""
    if data.robustness is None:
        return None
    rows = data.robustness.rows
    cells = _estimates([one for row in rows for one in (row.original, row.narrowed, row.extra)])
    return Table(
        "corruptions",
        f"{len(rows)} corruptions",
        ("corruption", "strength", "original", "narrowed", "narrowed more"),
        tuple(
            (_word(row.kind), _number(row.strength, "plain"), *cells[3 * number : 3 * number + 3])
            for number, row in enumerate(rows)
        ),
    )


def calibration_table(data: AuditData) -> Table | None:
    """Return the table of calibration."""
    rows = data.calibration
    if not rows:
        return None
    errors, briers = _estimates([one.rms_debiased for one in rows]), _estimates([one.brier for one in rows])
    return Table(
        "calibrated",
        "calibration",
        (
            "network",
            "accuracy",
            "confidence",
            "error",
            "RMS error, debiased",
            "Brier",
            "nats",
            "temperature",
            "nats, scaled",
        ),
        tuple(
            (
                _word(one.name),
                _number(one.accuracy),
                _number(one.confidence),
                _number(one.ece),
                error,
                brier,
                _number(one.nll),
                _number(one.temperature, "plain"),
                _number(one.nll_scaled),
            )
            for one, error, brier in zip(rows, errors, briers, strict=True)
        ),
    )


def selective_table(data: AuditData) -> Table | None:
    """Return the table of selective accuracy."""
    rows = data.selective
    if not rows:
        return None
    areas = _estimates([one.area for one in rows])
    return Table(
        "selected",
        "selective accuracy",
        ("network", "area under risk", *(f"at {percent(coverage)}" for coverage, _ in rows[0].accuracy)),
        tuple(
            (_word(one.name), area, *(_number(accuracy) for _, accuracy in one.accuracy))
            for one, area in zip(rows, areas, strict=True)
        ),
    )


def neighbours_tables(data: AuditData) -> tuple[Table, ...]:
    """Return the tables of examples whose neighbours changed."""
    return tuple(
        Table(
            f"moved-{number}",
            f"{one.name}: the {len(one.rows)} examples whose neighbours changed most",
            ("example", "nearest before", "nearest now", "kept"),
            tuple(
                (_word(row.text), _word(row.before[0]), _word(row.after[0]), _number(row.overlap, "percent"))
                for row in one.rows
            ),
            words=3,
            filtered=True,
        )
        for number, one in enumerate(data.neighbours)
        if one.rows
    )


def position_table(data: AuditData) -> Table | None:
    """Return the table of position bias."""
    if not data.position:
        return None
    cells = _estimates(
        [
            one
            for bias in data.position
            for one in (bias.slope_original, bias.slope_narrowed, bias.slope_change, bias.spread_change)
        ]
    )
    return Table(
        "positions",
        "position bias",
        ("network", "first to last, original", "first to last, narrowed", "change", "change of spread"),
        tuple((_word(bias.name), *cells[4 * number : 4 * number + 4]) for number, bias in enumerate(data.position)),
    )


def transfer_table(data: AuditData) -> Table | None:
    """Return the table of the transfer card."""
    if data.transfer is None or not data.transfer.cells:
        return None
    cells = sorted(data.transfer.cells, key=lambda cell: (cell.dataset, cell.column))
    changes = _estimates([cell.change for cell in cells])
    return Table(
        "transferred",
        f"{len(cells)} figures",
        ("set", "column", "network", "value", "change"),
        tuple(
            (
                _word(cell.dataset),
                _word(cell.column),
                _word(cell.network),
                Cell(
                    metric(cell.value.value),
                    repr(cell.value.value),
                    f"{metric(cell.value.low)} to {metric(cell.value.high)}",
                ),
                change,
            )
            for cell, change in zip(cells, changes, strict=True)
        ),
        words=3,
    )


def correlations_table(data: AuditData) -> Table | None:
    """Return the table of rank correlations of the transfer card."""
    if data.transfer is None or not data.transfer.correlations:
        return None
    return Table(
        "correlated",
        "rank correlation with the score on the task",
        ("set", "column", "correlation", "networks"),
        tuple(
            (
                _word(row.dataset),
                _word(row.column),
                _number(row.correlation),
                Cell(str(row.networks), str(row.networks)),
            )
            for row in data.transfer.correlations
        ),
        words=2,
    )
