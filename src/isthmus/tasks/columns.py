"""Finding which column of a table plays which part, by name or by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from isthmus.errors import BadInput
from isthmus.tasks.tables import Table

PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("left", "right"),
)
SCORE_NAMES = ("score", "similarity", "similarity_score", "label")
TEXT_NAMES = ("text", "sentence", "content", "passage", "review")
LABEL_NAMES = ("label", "class", "target", "y", "category", "sentiment")


def pair_rows(table: Table) -> list[tuple[str, str, float]]:
    """Return the pairs of a table: two texts and a score as it stands in the table.

    The columns are found by their names or, where the names say nothing, as the two columns of text and the one
    of numbers. Rows with an empty side are left out.

    Raises
    ------
    BadInput
        If the columns cannot be found, or a score is not a finite number.
    """
    known = {name for pair in PAIR_NAMES for name in pair} | set(SCORE_NAMES)
    table = _with_header(table, known)
    left, right, score = _pair_columns_by_name(table) or _pair_columns_by_content(table)
    rows: list[tuple[str, str, float]] = []
    for index in range(table.rows):
        sides = [_text(table, table.columns[column][index], index, column) for column in (left, right)]
        if not all(sides):
            continue
        value = table.columns[score][index]
        number = as_number(value)
        if number is None:
            raise BadInput(
                f"{table.where}: row {table.first_row + index}: score {shorten(value)} is not a number; "
                "give every pair a number, and name the columns of a header sentence1, sentence2 and score"
            )
        rows.append((sides[0], sides[1], number))
    return rows


def label_rows(table: Table) -> list[tuple[str, str]]:
    """Return the examples of a table: a text and the name of its class.

    The columns are found by their names or, where the names say nothing, as the one column of text and the one of
    labels. Rows with an empty text are left out.

    Raises
    ------
    BadInput
        If the columns cannot be found, or a text has no label.
    """
    table = _with_header(table, {*TEXT_NAMES, *LABEL_NAMES})
    text, label = _label_columns_by_name(table) or _label_columns_by_content(table)
    rows: list[tuple[str, str]] = []
    for index in range(table.rows):
        passage = _text(table, table.columns[text][index], index, text)
        if not passage:
            continue
        name = _label(table.columns[label][index])
        if not name:
            raise BadInput(f"{table.where}: row {table.first_row + index} has no label; give every text a label")
        rows.append((passage, name))
    return rows


def text_rows(table: Table) -> list[Any]:
    """Return the column of text of a table with names.

    Raises
    ------
    BadInput
        If no column is named as text.
    """
    column = _named(table, TEXT_NAMES)
    if column is None:
        raise BadInput(f"{table.where}: no column named {_either(TEXT_NAMES)}; {_columns(table)}")
    return ["" if value is None else value for value in table.columns[column]]


def kind_of(names: Collection[str]) -> str | None:
    """Return the kind of task that columns of these names make, or None."""
    lowered = {name.strip().lower() for name in names}
    if any(left in lowered and right in lowered for left, right in PAIR_NAMES):
        return "sts" if lowered.intersection(SCORE_NAMES) else None
    if lowered.intersection(TEXT_NAMES):
        return "classify" if lowered.intersection(LABEL_NAMES) else "text"
    return None


def as_number(value: Any) -> float | None:
    """Return a finite number, or None if a value is not one."""
    if isinstance(value, str) and "_" in value:  # Python reads 1_000 as a number; no table means it
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def shorten(value: Any) -> str:
    """Return a value for a message of one line."""
    text = "" if value is None else str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _text(table: Table, value: Any, index: int, column: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        name = f"{table.names[column]!r}" if table.names else str(column + 1)
        raise BadInput(
            f"{table.where}: row {table.first_row + index}: column {name} holds {shorten(value)}, not text; "
            "check which columns are which"
        )
    return value.strip()


def _label(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()


def _with_header(table: Table, known: Collection[str]) -> Table:
    """Take the first row for a header if a known name stands there and nowhere below in its column."""
    if table.names is not None or table.rows == 0:
        return table
    first = [str(column[0] or "").strip() for column in table.columns]
    named = any(
        name.lower() in known and name not in column[1:] for name, column in zip(first, table.columns, strict=True)
    )
    return _drop_header(table, first) if named else table


def _drop_header(table: Table, names: Sequence[str]) -> Table:
    return replace(table, names=tuple(names), columns=tuple(column[1:] for column in table.columns), first_row=2)


def _named(table: Table, names: Sequence[str]) -> int | None:
    lowered = [name.strip().lower() for name in table.names or ()]
    return next((lowered.index(name) for name in names if name in lowered), None)


def _pair_columns_by_name(table: Table) -> tuple[int, int, int] | None:
    score = _named(table, SCORE_NAMES)
    for pair in PAIR_NAMES:
        left, right = (_named(table, (name,)) for name in pair)
        if left is not None and right is not None:
            if score is None:
                raise BadInput(f"{table.where}: no column named {_either(SCORE_NAMES)}; {_columns(table)}")
            return left, right, score
    return None


def _pair_columns_by_content(table: Table) -> tuple[int, int, int]:
    numeric = [_share(column, _is_number) for column in table.columns]
    numbers = [index for index, share in enumerate(numeric) if share == 1.0]
    texts = [index for index, share in enumerate(numeric) if share < 1.0]
    if len(texts) == 3 and not numbers:
        # Three columns of text of which one is nearly all numbers: that one is the score, with a fault in it.
        likely = max(texts, key=lambda index: numeric[index])
        if numeric[likely] >= 0.5:
            numbers, texts = [likely], [index for index in texts if index != likely]
    if len(texts) != 2 or len(numbers) != 1:
        raise BadInput(
            f"{table.where}: found {len(texts)} columns of text and {len(numbers)} of numbers, not two and one; "
            f"name the columns sentence1, sentence2 and score in a first row{_seen(table)}"
        )
    return texts[0], texts[1], numbers[0]


def _label_columns_by_name(table: Table) -> tuple[int, int] | None:
    if table.names is None:
        return None
    text = _named(table, TEXT_NAMES)
    label = _named(table, LABEL_NAMES)
    if text is not None and label is not None and text != label:
        return text, label
    missing = "label" if label is None else "text"
    names = LABEL_NAMES if label is None else TEXT_NAMES
    raise BadInput(f"{table.where}: no {missing} column: none is named {_either(names)}; {_columns(table)}")


def _label_columns_by_content(table: Table) -> tuple[int, int]:
    if len(table.columns) != 2:
        raise BadInput(
            f"{table.where}: found {len(table.columns)} column{'s' if len(table.columns) > 1 else ''}, not one of text "
            "and one label column; name the columns text and label in a first row"
        )
    whole = [_share(column, _is_number) == 1.0 for column in table.columns]
    if whole[0] != whole[1]:
        return (1, 0) if whole[0] else (0, 1)
    distinct = [len(set(column)) for column in table.columns]
    if distinct[0] != distinct[1]:
        return (0, 1) if distinct[0] > distinct[1] else (1, 0)
    length = [sum(len(value or "") for value in column) for column in table.columns]
    return (0, 1) if length[0] >= length[1] else (1, 0)


def _share(column: list[Any], test: Callable[[Any], bool]) -> float:
    """Return the share of a column's filled cells that pass a test; 0 for a column without any."""
    filled = [value for value in column if value is not None and value != ""]
    return sum(map(test, filled)) / len(filled) if filled else 0.0


def _is_number(value: Any) -> bool:
    return as_number(value) is not None


def _either(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1]))


def _columns(table: Table) -> str:
    return f"its columns are {', '.join(table.names or ())}; rename one"


def _seen(table: Table) -> str:
    return f" (its columns are {', '.join(table.names)})" if table.names else ""
