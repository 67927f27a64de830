"""Names of coded matrices: which repeat from layer to layer, and how short they can be said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from isthmus.report.data import CodeRow


def bare(row: CodeRow) -> list[str]:
    """Return the parts of a matrix's name, without the ``weight`` at its end."""
    parts = row.parameter.split(".")
    return parts[:-1] if parts[-1] == "weight" and len(parts) > 1 else parts


def _split(row: CodeRow) -> tuple[str, str]:
    """Split a name at its layer's number: what stands before it, and what repeats from layer to layer.

    The number is the first part that is the layer's own, or the first number where layers are counted otherwise.
    """
    parts = bare(row)
    places = [place for place, part in enumerate(parts) if part == str(row.layer)]
    places += [place for place, part in enumerate(parts) if part.isdecimal()]
    if row.layer is None or not places or places[0] == len(parts) - 1:
        return "", ".".join(parts)
    return ".".join(parts[: places[0]]), ".".join(parts[places[0] + 1 :])


def columns(rows: Sequence[CodeRow]) -> list[str]:
    """Return for each matrix the name that it shares with its like in other layers, or ``""`` where it has no like.

    Where two stacks count their layers alike, as an encoder and a decoder do, the stack's name is part of it.
    """
    inside = [(row.layer, *_split(row)) for row in rows if row.layer is not None]
    taken = Counter((layer, tail) for layer, _, tail in inside)
    twice = {tail for (_, tail), count in taken.items() if count > 1}

    def key(row: CodeRow) -> str:
        if row.layer is None:
            return ""
        head, tail = _split(row)
        return f"{head}.{tail}" if tail in twice else tail

    keys = [key(row) for row in rows]
    layers: dict[str, set[int | None]] = {}
    for row, name in zip(rows, keys, strict=True):
        layers.setdefault(name, set()).add(row.layer)
    pairs = Counter((row.layer, name) for row, name in zip(rows, keys, strict=True))
    alike = {name for name, of in layers.items() if name and len(of) > 1}
    alike -= {name for (_, name), count in pairs.items() if count > 1}
    return [name if name in alike else "" for name in keys]


def shortened(names: Sequence[str]) -> list[str]:
    """Return for each dotted name its shortest end that no other name ends with; the whole name where there is none."""

    def ends(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]

    common = Counter(end for name in names for end in ends(name))
    return [next((end for end in ends(name) if common[end] == 1), name) for name in names]
