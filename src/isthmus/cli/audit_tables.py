"""The tables of an audit on the terminal."""

from __future__ import annotations

from isthmus.audit.damage import SliceDamage
from isthmus.audit.resampling import Estimate
from isthmus.cli.tables import show_table
from isthmus.report import AuditData
from isthmus.report.numbers import metric, percent, plain, si

_MOST_SLICES = 12
_MOST_EXEMPLARS = 8
_TEXT = 60


def ranged(estimate: Estimate | None) -> str:
    """Write a value with its interval."""
    if estimate is None:
        return ""
    return f"{metric(estimate.value)} [{metric(estimate.low)}, {metric(estimate.high)}]"


def show_audit(data: AuditData) -> None:
    """Print what an audit found, the shortest tables of it; the page has all."""
    show_table(
        f"{data.title} on {data.task}, {data.examples:,} examples",
        ("network", "", "params", "bytes", f"{data.loss_name} [95 %]"),
        [
            (
                one.name,
                "original" if one.original else "narrowed",
                si(one.params),
                si(one.bytes, "B"),
                ranged(one.loss),
            )
            for one in data.networks
        ],
        words=2,
    )
    _show_exemplars(data)
    _show_slices(data)
    _show_measures(data)
    _show_transfer(data)
    for warning in data.warnings:
        print(f"note: {warning}")


def _show_exemplars(data: AuditData) -> None:
    found = data.exemplars
    if found is None:
        return
    line = f"exemplars: the networks disagree on {found.count} of {found.of} examples ({percent(found.share.value)})"
    if found.accuracy is not None and found.accuracy_all is not None:
        line += (
            f"; the originals are right on {percent(found.accuracy.value)} of them and on "
            f"{percent(found.accuracy_all.value)} of all"
        )
    print(line)
    if found.rows:
        rows = [
            (row.text[:_TEXT], row.text2[:_TEXT], row.label[:20], row.original[:20], row.narrowed[:20], plain(row.nats))
            for row in found.rows[:_MOST_EXEMPLARS]
        ]
        show_table("", ("example", "", "label", "original", "narrowed", "nats"), rows, words=5)


def _slice_rows(rows: tuple[SliceDamage, ...]) -> list[tuple[str, ...]]:
    return [
        (
            row.name,
            f"{row.count:,}",
            metric(row.original),
            metric(row.narrowed),
            ranged(row.damage),
            metric(row.excess),
            plain(row.p_value),
        )
        for row in rows[:_MOST_SLICES]
    ]


def _show_slices(data: AuditData) -> None:
    columns = ("slice", "examples", "original", "narrowed", "damage [95 %, all slices]", "excess", "p")
    if data.damage is not None:
        print(f"damage ({data.loss_name}): {ranged(data.damage.overall)}")
        more = f", {_MOST_SLICES} of {len(data.damage.rows)}" if len(data.damage.rows) > _MOST_SLICES else ""
        show_table(f"slices{more}", columns, _slice_rows(data.damage.rows))
    if data.discovered is not None:
        tested = tuple(row for row in data.discovered.tested.rows if row.found)
        print(f"discovered: {len(tested)} slices, of {data.discovered.searched:,} searched, judged on the other half")
        if tested:
            show_table("", columns, _slice_rows(tested))
    apart = [] if data.disagreement is None else [row for row in data.disagreement.rows if row.found]
    for row in apart:
        print(
            f"exemplars are common where: {row.name} ({percent(row.narrowed)} of {row.count:,}; p {plain(row.p_value)})"
        )
    amplified = data.amplification
    if amplified is not None and amplified.correlation is not None:
        print(
            f"amplification: rank correlation with a slice's share of the examples {metric(amplified.correlation)} "
            f"(p {plain(amplified.p_value)}); below 0 rare slices are hurt more"
        )


def _show_measures(data: AuditData) -> None:
    if data.calibration:
        show_table(
            "calibration",
            (
                "network",
                "accuracy",
                "confidence",
                "RMS error, debiased",
                "Brier",
                "nats",
                "temperature",
                "nats, scaled",
            ),
            [
                (
                    one.name,
                    metric(one.accuracy),
                    metric(one.confidence),
                    ranged(one.rms_debiased),
                    ranged(one.brier),
                    metric(one.nll),
                    plain(one.temperature),
                    metric(one.nll_scaled),
                )
                for one in data.calibration
            ],
        )
    if data.selective:
        shares = [f"at {percent(coverage)}" for coverage, _ in data.selective[0].accuracy]
        show_table(
            "selective accuracy, keeping the surest",
            ("network", "area under risk", *shares),
            [
                (one.name, ranged(one.area), *(metric(accuracy) for _, accuracy in one.accuracy))
                for one in data.selective
            ],
        )
    if data.robustness is not None:
        show_table(
            f"robustness: increase of {data.loss_name}",
            ("corruption", "strength", "original", "narrowed", "narrowed more"),
            [
                (row.kind, plain(row.strength), ranged(row.original), ranged(row.narrowed), ranged(row.extra))
                for row in data.robustness.rows
            ],
        )
    for one in data.neighbours:
        print(
            f"neighbours: {one.name} keeps {percent(one.overlap.value)} of the {one.k} nearest "
            f"({percent(one.same_first)} the same first; by chance {percent(one.chance)})"
        )
    for bias in data.position:
        print(
            f"position: {bias.name}: from first to last place {ranged(bias.slope_original)} before, "
            f"{ranged(bias.slope_narrowed)} after, change {ranged(bias.slope_change)}"
        )


def _show_transfer(data: AuditData) -> None:
    if data.transfer is None:
        return
    show_table(
        "transfer",
        ("set", "column", "network", "value [95 %]", "change [95 %]"),
        [
            (cell.dataset, cell.column, cell.network, ranged(cell.value), ranged(cell.change))
            for cell in sorted(data.transfer.cells, key=lambda cell: (cell.dataset, cell.column))
        ],
        words=3,
    )
    for row in data.transfer.correlations:
        print(f"{row.dataset}, {row.column}: rank correlation with the score {metric(row.correlation)}")
