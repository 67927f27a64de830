"""Slices that the user gives: a table with a row an example, whose other columns say what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.audit.readers import Parts
from isthmus.audit.slices import Column
from isthmus.errors import BadInput
from isthmus.tasks.columns import PAIR_NAMES, TEXT_NAMES, as_number
from isthmus.tasks.tables import Table, read_table


def read_columns(path: Path, texts: Parts) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Read a table and return its columns for the given examples, and what must be said of them.

    Rows are matched by their text (columns ``text``, or ``sentence1`` and ``sentence2``, and their other names). A
    column whose every value is a number holds numbers, one of ``true`` and ``false`` yes and no, any other words. Of
    rows with the same text the first counts.

    Parameters
    ----------
    path : Path
        CSV, TSV, JSONL or Parquet; the first row of a CSV or TSV is its header.
    texts : tuple of tuples of str
        The examples, of one text or two.

    Raises
    ------
    BadInput
        If the file cannot be read, has no column of texts, or no row for any example.
    """
    table = read_table(path)
    if table.rows == 0 or (table.names is None and table.rows < 2):
        raise BadInput(f"{path}: no rows below the header; give one an example")
    names = table.names or tuple(str(column[0] or "").strip() for column in table.columns)
    start = 0 if table.names is not None else 1
    keys = _key_columns(table, names, len(texts[0]), path)
    rows: dict[tuple[str, ...], int] = {}
    repeated = 0
    for row in range(start, table.rows):
        key = tuple(str(table.columns[column][row] or "").strip() for column in keys)
        repeated += key in rows
        rows.setdefault(key, row)
    places = [rows.get(tuple(text.strip() for text in pair)) for pair in texts]
    missing = sum(place is None for place in places)
    if missing == len(texts):
        raise BadInput(f"{path}: none of its texts is an audited example; give the texts of the held-out data")
    warnings = []
    if missing:
        warnings.append(f"{path.name}: no row for {missing} of {len(texts)} examples; they are in none of its slices")
    if repeated:
        warnings.append(f"{path.name}: {repeated} rows repeat the text of another; the first of each counts")
    others = [index for index in range(len(names)) if index not in keys]
    if not others:
        raise BadInput(f"{path}: no column beside the texts; add one that says what each example is")
    columns = []
    for index in others:
        values = [None if place is None else table.columns[index][place] for place in places]
        columns.append(Column(names[index] or f"column {index + 1}", _typed(values)))
    return tuple(columns), tuple(warnings)


def _key_columns(table: Table, names: tuple[str, ...], sides: int, path: Path) -> tuple[int, ...]:
    lowered = [name.strip().lower() for name in names]
    wanted = [(name,) for name in TEXT_NAMES] if sides == 1 else list(PAIR_NAMES)
    for group in wanted:
        if all(name in lowered for name in group):
            return tuple(lowered.index(name) for name in group)
    example = "text" if sides == 1 else "sentence1 and sentence2"
    raise BadInput(f"{path}: no column of the texts; its columns are {', '.join(names)}; name {example} in its header")


def _typed(values: list[Any]) -> tuple[Any, ...]:
    known = [value for value in values if value is not None and value != ""]
    texts = {str(value).strip().lower() for value in known}
    if texts and texts <= {"true", "false"}:
        return tuple(None if value in (None, "") else str(value).strip().lower() == "true" for value in values)
    numbers = [as_number(value) for value in known]
    spelled_nan = [isinstance(value, float) or str(value).strip().lower() == "nan" for value in known]
    if known and all(number is not None or nan for number, nan in zip(numbers, spelled_nan, strict=True)):
        return tuple(None if value in (None, "") else as_number(value) for value in values)
    return tuple(None if value in (None, "") else str(value) for value in values)
