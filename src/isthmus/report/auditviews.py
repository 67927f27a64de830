"""What the audit's template draws: sentences, tables and charts."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.audit.resampling import Estimate
from isthmus.report.auditcells import Table
from isthmus.report.auditcharts import Chart, coverage_chart, position_chart, reliability_chart
from isthmus.report.auditdata import AuditData
from isthmus.report.auditmeasures import (
    calibration_table,
    correlations_table,
    neighbours_tables,
    position_table,
    selective_table,
    transfer_table,
)
from isthmus.report.audittables import (
    amplification_table,
    damage_table,
    disagreement_table,
    exemplars_table,
    networks_table,
    robustness_table,
)
from isthmus.report.numbers import metric, percent, plain
from isthmus.report.views import Entry, entry


@dataclass(frozen=True)
class AuditPage:
    """Everything the template draws; what is empty is left out."""

    networks: Table
    headline: tuple[str, str]
    exemplar_lines: tuple[str, ...]
    exemplars: Table | None
    damage_line: str
    damage: Table | None
    discovered_line: str
    discovered: Table | None
    disagreement_line: str
    disagreement: Table | None
    amplification_line: str
    amplification: Table | None
    robustness: Table | None
    calibration: Table | None
    reliability: tuple[Chart, ...]
    selective: Table | None
    coverage: tuple[Chart, ...]
    neighbours: tuple[Table, ...]
    neighbour_lines: tuple[str, ...]
    position: Table | None
    position_charts: tuple[Chart, ...]
    transfer: Table | None
    correlations: Table | None
    record: tuple[Entry, ...]


def audit_page(data: AuditData) -> AuditPage:
    """Put an audit into what the template draws."""
    damage, found = data.damage, data.discovered
    tested = tuple(row for row in found.tested.rows if row.found) if found else ()
    amplified = data.amplification
    return AuditPage(
        networks=networks_table(data),
        headline=_headline(data),
        exemplar_lines=_exemplar_lines(data),
        exemplars=exemplars_table(data),
        damage_line=f"Overall {ranged(damage.overall)} in {data.loss_name}. {_sentence(damage.correction)}"
        if damage
        else "",
        damage=damage_table("damage", damage.rows) if damage and damage.rows else None,
        discovered_line=_discovered_line(data),
        discovered=damage_table("discovered", tested, data.pictures) if tested else None,
        disagreement_line=(
            f"Which slices the exemplars come from: {ranged(data.disagreement.overall)} of all examples are exemplars."
            if data.disagreement
            else ""
        ),
        disagreement=disagreement_table(data.disagreement.rows)
        if data.disagreement and data.disagreement.rows
        else None,
        amplification_line=_amplification_line(data),
        amplification=amplification_table(data) if amplified and amplified.rows else None,
        robustness=robustness_table(data),
        calibration=calibration_table(data),
        reliability=reliability_chart(data),
        selective=selective_table(data),
        coverage=coverage_chart(data),
        neighbours=neighbours_tables(data),
        neighbour_lines=_neighbour_lines(data),
        position=position_table(data),
        position_charts=position_chart(data),
        transfer=transfer_table(data),
        correlations=correlations_table(data),
        record=tuple(entry(name, value) for name, value in data.record.items()),
    )


def ranged(estimate: Estimate) -> str:
    """Write a value with its interval."""
    return f"{metric(estimate.value)} ({metric(estimate.low)} to {metric(estimate.high)})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _headline(data: AuditData) -> tuple[str, str]:
    found = data.exemplars
    if found is None:
        return "", ""
    return percent(found.share.value), f"of {found.of:,} examples are seen otherwise after narrowing"


def _exemplar_lines(data: AuditData) -> tuple[str, ...]:
    found = data.exemplars
    if found is None:
        return ()
    lines = []
    if found.accuracy is not None and found.accuracy_all is not None and found.gap is not None:
        lines.append(
            f"On them the original is right {percent(found.accuracy.value)} of the time, against "
            f"{percent(found.accuracy_all.value)} on all examples: {ranged(found.gap)} apart."
        )
    if found.accuracy_narrowed is not None:
        lines.append(f"The narrowed network is right on {percent(found.accuracy_narrowed.value)} of them.")
    lines.append(
        f"The divergence is {ranged(found.nats)} nats on average; the tenth of examples that changed most has "
        f"{percent(found.top_share)} of it."
    )
    return tuple(lines)


def _amplification_line(data: AuditData) -> str:
    amplified = data.amplification
    if amplified is None:
        return ""
    if not amplified.rows:
        return _sentence(amplified.warnings[0]) if amplified.warnings else ""
    line = "The damage of each slice as a multiple of the mean damage."
    if amplified.correlation is not None:
        line += (
            f" Its rank correlation with the share of the examples is {metric(amplified.correlation)} "
            f"(p {plain(amplified.p_value)}): below zero, rare slices are hurt more."
        )
    return line


def _discovered_line(data: AuditData) -> str:
    found = data.discovered
    if found is None:
        return ""
    count = len(found.names)
    return (
        f"{found.searched:,} slices and pairs of slices were searched on one half of the examples, the best "
        f"{len(found.tested.rows)} judged on the other: {count or 'none'} of them {'is' if count == 1 else 'are'} "
        "damaged beyond the rest."
    )


def _neighbour_lines(data: AuditData) -> tuple[str, ...]:
    return tuple(
        f"{one.name} keeps {percent(one.overlap.value)} (95 % interval {percent(one.overlap.low)} to "
        f"{percent(one.overlap.high)}) of the {one.k} nearest, and the nearest itself for "
        f"{percent(one.same_first)}; by chance it would be {percent(one.chance)}."
        for one in data.neighbours
    )
