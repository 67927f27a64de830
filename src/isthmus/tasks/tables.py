"""Reading tables: CSV, TSV, JSONL and Parquet files, or rows in Python, to columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput
from isthmus.tasks.passages import read_bytes, read_text

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Parameters
    ----------
    where : str
        The file, for messages.
    names : tuple of str, or None
        The columns' names; None if the format has none of its own (CSV, TSV), whether or not the first row is
        a header.
    columns : tuple of lists
    first_row : int
        The number of the first row, for messages.
    """

    where: str
    names: tuple[str, ...] | None
    columns: tuple[list[Any], ...]
    first_row: int = 1

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns[0]) if self.columns else 0


def read_table(path: Path) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file; the suffix of its name says which.

    A TSV has no quoting: a quotation mark is a character like others, and a field cannot hold a tab or a new
    line. A CSV may be separated by commas, semicolons or tabs.

    Raises
    ------
    BadInput
        If the file is missing, empty, not of its kind, or its rows differ in length.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab"):
        return _read_separated(path, tab=suffix != ".csv")
    if suffix in (".jsonl", ".ndjson", ".parquet"):
        return _read_named(path, suffix)
    raise BadInput(f"{path}: a table must end in one of {', '.join(TABLE_SUFFIXES)}; rename or convert it")


def rows_to_table(rows: Iterable[Any], names: Sequence[str] | None, default: Sequence[str], where: str) -> Table:
    """Make a table of mappings, or of tuples in the order of ``default``.

    Parameters
    ----------
    rows : iterable of mappings or of sequences
    names : sequence of str, or None
        The columns to take from mappings; None takes those of the first mapping.
    default : sequence of str
        The names of a tuple's parts.
    where : str
        For messages.

    Raises
    ------
    BadInput
        If a row is neither, or has other columns than the first.
    """
    columns: list[list[Any]] = []
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            names = tuple(row) if names is None else names
            missing = [name for name in names if name not in row]
            if missing:
                raise BadInput(f"{where}: row {index} has no column {missing[0]!r}; give every row the same columns")
            parts = [row[name] for name in names]
        elif isinstance(row, (tuple, list)) and len(row) == len(default):
            names = tuple(default) if names is None else names
            parts = list(row)
        else:
            raise BadInput(f"{where}: row {index} is not ({', '.join(default)}); give tuples of that form or mappings")
        if not columns:
            columns = [[] for _ in parts]
        if len(parts) != len(columns):
            raise BadInput(f"{where}: row {index} has {len(parts)} columns, not {len(columns)}; do not mix forms")
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    return Table(where, tuple(names or default), tuple(columns), first_row=0)


def _read_separated(path: Path, *, tab: bool) -> Table:
    import polars

    text = read_text(path)
    separator = "\t" if tab else _separator(text)
    quote = None if tab else '"'
    try:
        frame = polars.read_csv(
            io.BytesIO(text.encode("utf-8")),
            has_header=False,
            separator=separator,
            quote_char=quote,
            infer_schema=False,
        )
    except polars.exceptions.PolarsError as error:
        found = _first_ragged(text, separator, quoted=not tab)
        detail = found or f"cannot be read as a table ({_first_line(error)}); check its quotation marks"
        raise BadInput(f"{path}: {detail}") from error
    return Table(str(path), None, tuple(column.to_list() for column in frame.get_columns()))


def _read_named(path: Path, suffix: str) -> Table:
    import polars

    try:
        if suffix == ".parquet":
            frame = polars.read_parquet(io.BytesIO(read_bytes(path)))
        else:
            # Types are taken from all lines, not the first few, so that a late string is not lost.
            frame = polars.read_ndjson(io.BytesIO(read_text(path).encode("utf-8")), infer_schema_length=None)
    except polars.exceptions.PolarsError as error:
        kind = "Parquet" if suffix == ".parquet" else "JSONL (one object a line)"
        raise BadInput(f"{path}: not {kind} ({_first_line(error)}); check or convert the file") from error
    return Table(str(path), tuple(frame.columns), tuple(column.to_list() for column in frame.get_columns()))


def _separator(text: str) -> str:
    """Return what separates a CSV's fields: a comma unless its first line has none but has another separator."""
    first = text.lstrip().split("\n", 1)[0]
    if "," in first:
        return ","
    return "\t" if "\t" in first else ";" if ";" in first else ","


def _first_ragged(text: str, separator: str, *, quoted: bool) -> str | None:
    """Say which row of a table has another number of fields than the first, if one has."""
    lines = io.StringIO(text, newline="")
    reader = (
        csv.reader(lines, delimiter=separator)
        if quoted
        else csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    )
    width = None
    try:
        for fields in reader:
            width = len(fields) if width is None else width
            if len(fields) > width:
                return (
                    f"line {reader.line_num} has {len(fields)} columns where the first has {width}; "
                    "put fields that hold the separator in quotation marks, or remove the extra ones"
                )
    except csv.Error:  # the caller then reports what the first reader said
        return None
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
