"""Slices that the user gives: a table with a row an example, whose other columns say what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.audit.reading import Parts
from isthmus.audit.slices import Column
from isthmus.errors import BadInput
from isthmus.examples import Example, Image
from isthmus.tasks.columns import PAIR_NAMES, TEXT_NAMES, as_number
from isthmus.tasks.tables import Table, read_table

IMAGE_COLUMNS = ("image", "file", "path", "filename", "name", "index")

_Keys = tuple[str, ...]


def read_columns(path: Path, examples: Parts) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Read a table and return its columns for the given examples, and what must be said of them.

    Rows are matched by their text (columns ``text``, or ``sentence1`` and ``sentence2``, and their other names), of
    images by the file's path or the last parts of it, or by the place in the array that they are from (column
    ``image``, and its other names). A column whose every value is a number holds numbers, one of ``true`` and
    ``false`` yes and no, any other words. Of rows of the same example the first counts.

    Parameters
    ----------
    path : Path
        CSV, TSV, JSONL or Parquet; the first row of a CSV or TSV is its header.
    examples : tuple of tuples of str or of Image

    Raises
    ------
    BadInput
        If the file cannot be read, has no column of texts or images, no row for any example, or a row that fits
        several.
    """
    table = read_table(path)
    if table.rows == 0 or (table.names is None and table.rows < 2):
        raise BadInput(f"{path}: no rows below the header; give one an example")
    names = table.names or tuple(str(column[0] or "").strip() for column in table.columns)
    start = 0 if table.names is not None else 1
    what = "images" if isinstance(examples[0][0], Image) else "texts"
    keys = _key_columns(table, names, examples[0], path)
    rows: dict[_Keys, int] = {}
    repeated = 0
    for row in range(start, table.rows):
        key = tuple(str(table.columns[column][row] or "").strip() for column in keys)
        repeated += key in rows
        rows.setdefault(key, row)
    places = _places(examples, rows, path)
    missing = sum(place is None for place in places)
    if missing == len(examples):
        raise BadInput(f"{path}: none of its {what} is an audited example; give the {what} of the held-out data")
    warnings = []
    if missing:
        warnings.append(
            f"{path.name}: no row for {missing} of {len(examples)} examples; they are in none of its slices"
        )
    if repeated:
        warnings.append(f"{path.name}: {repeated} rows repeat the {what[:-1]} of another; the first of each counts")
    others = [index for index in range(len(names)) if index not in keys]
    if not others:
        raise BadInput(f"{path}: no column beside the {what}; add one that says what each example is")
    columns = []
    for index in others:
        values = [None if place is None else table.columns[index][place] for place in places]
        columns.append(Column(names[index] or f"column {index + 1}", _typed(values)))
    return tuple(columns), tuple(warnings)


def _places(examples: Parts, rows: Mapping[_Keys, int], path: Path) -> list[int | None]:
    """Return the row of each example, None where there is none."""
    found = [next((key for key in _keys(example) if key in rows), None) for example in examples]
    fitting: dict[_Keys, set[Example]] = {}
    for (first, *_), key in zip(examples, found, strict=True):
        if key is not None and isinstance(first, Image):
            fitting.setdefault(key, set()).add(first)
    for (name, *_), images in fitting.items():
        if len(images) > 1:
            raise BadInput(f"{path}: {name} fits {len(images)} images; give more of the path in each row")
    return [None if key is None else rows[key] for key in found]


def _keys(example: tuple[Example, ...]) -> list[_Keys]:
    """Return what a row may call an example by, the fullest first."""
    (first, *_) = example
    if not isinstance(first, Image):
        return [tuple(str(text).strip() for text in example)]
    parts = Path(first.name).parts
    number = first.name.rpartition(" ")[2]  # of what is from an array
    shorter = ["/".join(parts[start:]) for start in range(1, len(parts))]
    return [(name,) for name in (first.name, *shorter, *([number] if number.isdecimal() else []))]


def _key_columns(table: Table, names: tuple[str, ...], example: tuple[Example, ...], path: Path) -> tuple[int, ...]:
    lowered = [name.strip().lower() for name in names]
    image = isinstance(example[0], Image)
    known = [(name,) for name in (IMAGE_COLUMNS if image else TEXT_NAMES)] if len(example) == 1 else list(PAIR_NAMES)
    for group in known:
        if all(name in lowered for name in group):
            return tuple(lowered.index(name) for name in group)
    wanted = "image" if image else "text" if len(example) == 1 else "sentence1 and sentence2"
    raise BadInput(
        f"{path}: no column of the {'images' if image else 'texts'}; its columns are {', '.join(names)}; name {wanted} "
        "in its header"
    )


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
