"""The tables of an audit's page: the networks, exemplars, slices and corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from isthmus.audit.damage import SliceDamage
from isthmus.report.auditcells import Cell, Table, estimates, number, word
from isthmus.report.auditdata import AuditData
from isthmus.report.numbers import si


def networks_table(data: AuditData) -> Table:
    """Return the table of the networks."""
    losses = estimates([one.loss for one in data.networks])
    return Table(
        "networks",
        "the networks",
        ("network", "", "parameters", "bytes", data.loss_name),
        tuple(
            (
                word(one.name),
                word("original" if one.original else "narrowed"),
                number(float(one.params), "si"),
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
                word(row.text, row.text2, data.pictures.get(row.text, "")),
                *([word(row.label)] if labelled else []),
                word(row.original),
                word(row.narrowed),
                number(row.votes, "percent"),
                number(row.confidence),
                number(row.nats, "plain"),
            )
            for row in found.rows
        ),
        words=4 if labelled else 3,
        filtered=True,
    )


def damage_table(name: str, rows: Sequence[SliceDamage], pictures: Mapping[str, str] = MappingProxyType({})) -> Table:
    """Return the table of damage by slice; one that is called by an image it is like shows it."""
    damages = estimates([row.damage for row in rows])
    return Table(
        name,
        f"{len(rows)} slices",
        ("slice", "examples", "original", "narrowed", "damage", "excess over the rest", "p, corrected"),
        tuple(
            (
                word(row.name, picture=_liked(row.name, pictures)),
                Cell(f"{row.count:,}", str(row.count)),
                number(row.original),
                number(row.narrowed),
                damage,
                number(row.excess),
                number(row.p_value, "plain"),
            )
            for row, damage in zip(rows, damages, strict=True)
        ),
    )


def _liked(name: str, pictures: Mapping[str, str]) -> str:
    fitting = [known for known in pictures if f"like {known}" in name]
    return pictures[max(fitting, key=len)] if fitting else ""


def disagreement_table(rows: Sequence[SliceDamage]) -> Table:
    """Return the table of where the exemplars are."""
    shares = estimates([row.damage for row in rows])
    return Table(
        "disagreement",
        f"{len(rows)} slices",
        ("slice", "examples", "share of exemplars", "excess over the rest", "p, corrected"),
        tuple(
            (
                word(row.name),
                Cell(f"{row.count:,}", str(row.count)),
                share,
                number(row.excess),
                number(row.p_value, "plain"),
            )
            for row, share in zip(rows, shares, strict=True)
        ),
    )


def amplification_table(data: AuditData) -> Table:
    """Return the table of amplification by slice."""
    rows = data.amplification.rows if data.amplification else ()
    cells = estimates([row.amplification for row in rows])
    return Table(
        "amplified",
        f"{len(rows)} slices",
        ("slice", "share of examples", "amplification"),
        tuple((word(row.name), number(row.rarity, "percent"), cell) for row, cell in zip(rows, cells, strict=True)),
    )


def robustness_table(data: AuditData) -> Table | None:
    """Return the table of what corruptions cost."""
    if data.robustness is None:
        return None
    rows = data.robustness.rows
    cells = estimates([one for row in rows for one in (row.original, row.narrowed, row.extra)])
    return Table(
        "corruptions",
        f"{len(rows)} corruptions",
        ("corruption", "strength", "original", "narrowed", "narrowed more"),
        tuple(
            (word(row.kind), number(row.strength, "plain"), *cells[3 * place : 3 * place + 3])
            for place, row in enumerate(rows)
        ),
    )
