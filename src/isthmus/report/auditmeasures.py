"""The tables of an audit's page: calibration, selection, neighbours, position and transfer."""

from __future__ import annotations

from isthmus.report.auditcells import Cell, Table, estimates, number, word
from isthmus.report.auditdata import AuditData
from isthmus.report.numbers import metric, percent


def calibration_table(data: AuditData) -> Table | None:
    """Return the table of calibration."""
    rows = data.calibration
    if not rows:
        return None
    errors, briers = estimates([one.rms_debiased for one in rows]), estimates([one.brier for one in rows])
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
                word(one.name),
                number(one.accuracy),
                number(one.confidence),
                number(one.ece),
                error,
                brier,
                number(one.nll),
                number(one.temperature, "plain"),
                number(one.nll_scaled),
            )
            for one, error, brier in zip(rows, errors, briers, strict=True)
        ),
    )


def selective_table(data: AuditData) -> Table | None:
    """Return the table of selective accuracy."""
    rows = data.selective
    if not rows:
        return None
    areas = estimates([one.area for one in rows])
    return Table(
        "selected",
        "selective accuracy",
        ("network", "area under risk", *(f"at {percent(coverage)}" for coverage, _ in rows[0].accuracy)),
        tuple(
            (word(one.name), area, *(number(accuracy) for _, accuracy in one.accuracy))
            for one, area in zip(rows, areas, strict=True)
        ),
    )


def neighbours_tables(data: AuditData) -> tuple[Table, ...]:
    """Return the tables of examples whose neighbours changed."""
    return tuple(
        Table(
            f"moved-{place}",
            f"{one.name}: the {len(one.rows)} examples whose neighbours changed most",
            ("example", "nearest before", "nearest now", "kept"),
            tuple(
                (
                    *(
                        word(name, picture=data.pictures.get(name, ""))
                        for name in (row.text, row.before[0], row.after[0])
                    ),
                    number(row.overlap, "percent"),
                )
                for row in one.rows
            ),
            words=3,
            filtered=True,
        )
        for place, one in enumerate(data.neighbours)
        if one.rows
    )


def position_table(data: AuditData) -> Table | None:
    """Return the table of position bias."""
    if not data.position:
        return None
    cells = estimates(
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
        tuple((word(bias.name), *cells[4 * place : 4 * place + 4]) for place, bias in enumerate(data.position)),
    )


def transfer_table(data: AuditData) -> Table | None:
    """Return the table of the transfer card."""
    if data.transfer is None or not data.transfer.cells:
        return None
    cells = sorted(data.transfer.cells, key=lambda cell: (cell.dataset, cell.column))
    changes = estimates([cell.change for cell in cells])
    return Table(
        "transferred",
        f"{len(cells)} figures",
        ("set", "column", "network", "value", "change"),
        tuple(
            (
                word(cell.dataset),
                word(cell.column),
                word(cell.network),
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
                word(row.dataset),
                word(row.column),
                number(row.correlation),
                Cell(str(row.networks), str(row.networks)),
            )
            for row in data.transfer.correlations
        ),
        words=2,
    )
