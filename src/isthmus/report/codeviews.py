"""Views of the coded matrices: how many bits each weight has, and what that makes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.report.codenames import bare, columns, shortened
from isthmus.report.data import CodeRow
from isthmus.report.numbers import NONE, bits, nats, percent, plain, si, times
from isthmus.report.scales import STEPS, Heat, Scale, finite

#: Columns that a heading fits over; with more, the matrices of a layer wrap and each bears its own name.
HEADED = 8
#: Matrices in a line where they wrap.
WRAPPED = 6
#: Matrices beside the layers that have a line of their own; more than these wrap too.
ALONE = 8
#: Where the colour scale ends, in bits, unless a weight takes more: so that the colours of two pages compare.
BYTE = 8.0


@dataclass(frozen=True)
class Code:
    """A coded matrix: its colour step, what it says, and its bar as a multiple of a cell's width.

    ``wide`` holds where `Coding.across` cells share a line, ``narrow`` where at most two do.
    """

    name: str
    coder: str
    text: str
    step: int | None
    wide: float
    narrow: float
    tip: str


@dataclass(frozen=True)
class Coding:
    """Layers by matrices, with the matrices of the whole network before and after the layers.

    ``columns`` is empty where cells bear their own names; ``alone``: matrices beside the layers have their own lines.
    """

    columns: tuple[str, ...]
    across: int
    before: tuple[Code, ...]
    layers: tuple[tuple[int, tuple[Code | None, ...]], ...]
    after: tuple[Code, ...]
    alone: bool
    totals: tuple[tuple[str, str], ...]
    coders: tuple[tuple[str, str], ...]
    legend: tuple[str, str]
    steps: tuple[int, ...]


def bits_a_weight(rows: Sequence[CodeRow]) -> float | None:
    """Return what the codes take in bits over the weights that they stand for; None where that is no number."""
    weights = sum(row.weights for row in rows)
    value = 8 * sum(row.bytes for row in rows) / weights if weights else None
    return next(iter(finite([value])), None)


def _tip(row: CodeRow) -> str:
    share = percent(row.bytes / row.original_bytes) if row.original_bytes else NONE
    lines = [
        row.parameter,
        f"layer {row.layer}" if row.layer is not None else "",
        f"{row.coder}, set to {plain(row.bits)} bits a weight",
        f"{si(row.bytes, 'B')} of {si(row.original_bytes, 'B')} ({share})",
        f"{row.weights:,} weights, {bits(bits_a_weight([row]))} bits each in the file",
        nats(row.predicted_distortion) + " predicted" if row.predicted_distortion is not None else "",
    ]
    return "\n".join(line for line in lines if line)


def _totals(rows: Sequence[CodeRow]) -> tuple[tuple[str, str], ...]:
    before, after = sum(finite(row.original_bytes for row in rows)), sum(finite(row.bytes for row in rows))
    smaller = f", {times(before / after)} smaller" if before > after > 0 else ""
    pairs = [
        ("Matrices", f"{len(rows):,}"),
        ("Weights", si(sum(row.weights for row in rows))),
        ("Before", si(before, "B")),
        ("Coded", si(after, "B") + smaller),
        ("Bits a weight", bits(bits_a_weight(rows))),
    ]
    losses = finite(row.predicted_distortion for row in rows)
    return (*pairs, ("Predicted distortion", nats(sum(losses)))) if losses else tuple(pairs)


def _by_coder(rows: Sequence[CodeRow]) -> tuple[tuple[str, str], ...]:
    """Return what each coder codes, the largest first."""
    groups: dict[str, list[CodeRow]] = {}
    for row in rows:
        groups.setdefault(row.coder, []).append(row)
    sizes = {coder: sum(finite(row.bytes for row in of)) for coder, of in groups.items()}

    def said(of: Sequence[CodeRow], size: float) -> str:
        matrices = f"{len(of):,} {'matrix' if len(of) == 1 else 'matrices'}"
        return f"{matrices}, {si(size, 'B')}, {bits(bits_a_weight(of))} bits a weight"

    return tuple((coder, said(groups[coder], sizes[coder])) for coder in sorted(sizes, key=lambda one: -sizes[one]))


def coding(rows: Sequence[CodeRow]) -> Coding | None:
    """Return the codes of all matrices, or None where none is coded.

    A cell's bar and a line's bar have one scale: the largest that a cell needs, and a line has the room of the cells
    beneath it.
    """
    if not rows:
        return None
    keys = columns(rows)
    names = list(dict.fromkeys(filter(None, keys)))
    title = dict(zip(names, shortened(names), strict=True))
    alone = bool(names) and keys.count("") <= ALONE
    across = len(names) if 0 < len(names) <= HEADED else WRAPPED
    sizes = [max([0.0, *finite([row.bytes])]) for row in rows]
    values = [bits_a_weight([row]) for row in rows]
    colours = Heat(Scale(0.0, max([BYTE, *finite(values)])))

    def largest(cells: int) -> float:
        """Return the bytes that fill a cell where so many share a line."""
        return max(size / cells if alone and not key else size for key, size in zip(keys, sizes, strict=True)) or 1.0

    wide, narrow = largest(across), largest(min(across, 2))
    codes = [
        Code(title.get(key) or ".".join(bare(row)), row.coder, bits(value), colours.step(value),
             size / wide, size / narrow, _tip(row))
        for row, key, size, value in zip(rows, keys, sizes, values, strict=True)
    ]  # fmt: skip
    at = {(row.layer, key): index for index, (row, key) in enumerate(zip(rows, keys, strict=True)) if key}
    first = min(at.values(), default=len(rows))
    beside = [(index, code) for index, (code, key) in enumerate(zip(codes, keys, strict=True)) if not key]
    numbers = sorted({layer for layer, _ in at if layer is not None})
    layers = [(layer, [at.get((layer, name)) for name in names]) for layer in numbers]
    return Coding(
        columns=tuple(title.values()) if len(names) <= HEADED else (),
        across=across,
        before=tuple(code for index, code in beside if index < first),
        layers=tuple(
            (layer, tuple(None if index is None else codes[index] for index in places)) for layer, places in layers
        ),
        after=tuple(code for index, code in beside if index > first),
        alone=alone,
        totals=_totals(rows),
        coders=_by_coder(rows),
        legend=(plain(colours.scale.low), bits(colours.scale.high)),
        steps=tuple(range(STEPS)),
    )
