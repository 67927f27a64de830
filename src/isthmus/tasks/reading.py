"""Reading a task: from a string such as ``sts:FOLDER`` or ``images:FOLDER``, or from data in Python."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput
from isthmus.tasks.columns import PAIR_NAMES, SCORE_NAMES, kind_of, label_rows, pair_rows, shorten, text_rows
from isthmus.tasks.documentation import documentation_passages
from isthmus.tasks.image_splits import images_task
from isthmus.tasks.images import read_data as read_image_data
from isthmus.tasks.images import read_images, reads_images
from isthmus.tasks.language import given_documents, language_task, read_documents
from isthmus.tasks.passages import clean_passages, read_text, split_passages
from isthmus.tasks.splitting import sorted_names, split, task_of
from isthmus.tasks.tables import TABLE_SUFFIXES, read_table, rows_to_table
from isthmus.tasks.task import ACCURACY, KINDS, LIKENESS, SPEARMAN, HeldOut, Task, TaskKind

TEXT_SUFFIXES = (".txt", ".text", ".md")
DOCUMENTATION = "documentation"
"""The task that needs no data of the user's."""

# A correlation over fewer is undefined: three passages make the first three pairs, a correlation needs two points.
_LEAST_HELD_OUT: dict[TaskKind, int] = {"text": 3, "sts": 2, "classify": 1, "lm": 1}
_DEFAULT_COLUMNS: dict[TaskKind, tuple[str, ...]] = {
    "text": ("text",),
    "sts": ("sentence1", "sentence2", "score"),
    "classify": ("text", "label"),
}

_TRAIN = re.compile(r"(?<![a-z])train(ing|set)?(?![a-z])", re.IGNORECASE)
# Data meant for choosing comes before data meant for a last test, where a folder has both.
_HELD_OUT = tuple(
    re.compile(rf"(?<![a-z]){name}(set)?(?![a-z])", re.IGNORECASE) for name in ("dev", "valid", "validation", "test")
)


def load_task(spec: Any, *, seed: int = 0) -> Task:
    """Read what a network is for.

    Parameters
    ----------
    spec : str or object
        ``text:PATH``
            Unlabelled text, one passage a line; or paragraphs, if blank lines separate paragraphs of several
            lines. Passages are stripped and capped at 2000 characters; empty and repeated ones are dropped. A
            folder without train and dev files is read whole (``*.txt``, ``*.md``).
        ``sts:PATH``
            Pairs of texts with a score. CSV or TSV (also JSONL, Parquet), with or without a header.
        ``classify:PATH``
            Texts with a label. CSV, TSV, JSONL or Parquet; CSV and TSV with or without a header.
        ``images:PATH``
            Images, labelled or not: a folder of image files with a folder for each class, npz, IDX (as of MNIST) or
            Parquet files. They may differ in size: a network gets them in its own.
        ``documentation``
            Unlabelled text that every machine has: the documentation of Python and of what is installed with this.
        ``lm:PATH``
            Running text to continue, for language models: files as of ``text:``, cut into pieces of at most 4000
            characters where they are held out and of at most 600 otherwise.
        In Python also a `Task` (returned as it is), an iterable of strings, a ``datasets`` object (its columns
        say the kind), a mapping with ``train`` and ``validation`` data, or a tuple ``(kind, data)`` where the data
        is any of these, or an iterable of ``(left, right, score)``, ``(text, label)`` or ``(image, label)``; for images
        also an array, or a tuple of an array and its labels.
    seed : int
        For the split, where there is one.

    Returns
    -------
    Task

    Notes
    -----
    A folder has files whose names contain ``train`` and one of ``dev``, ``valid``, ``validation``, ``test`` (the
    first of these that is there is held out). From a single file, or from data in Python, a tenth is held out at
    random, at least 20 and at most 1000 passages, never more than half, and at least 1 (3 of ``text``, 2 of
    ``sts``, so that the metric is defined). But a single file of an ``sts:`` or ``classify:`` task whose name
    says that it is a dev, validation or test file is held out whole: then nothing of it may be trained on, and
    ``train`` is empty. Texts, pairs and examples that are held out are taken out of the training data. Images have the
    same parts by the same names, of files, folders or arrays.

    Raises
    ------
    BadInput
        With what is wrong, where, and how to mend it.
    """
    if isinstance(spec, Task):
        return spec
    if isinstance(spec, str):
        if spec.strip() == DOCUMENTATION:
            return _assemble("text", DOCUMENTATION, DOCUMENTATION, list(documentation_passages()), None, seed)
        kind, path = _parse(spec)
        return _from_path(kind, path, seed)
    if isinstance(spec, Path):
        raise BadInput(f"task {shorten(spec)} has no kind; write {_choices('PATH')} with that path")
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], str) and _names_data(spec):
        kind = _kind(spec[0], shorten(spec[0]))
        if isinstance(spec[1], (str, Path)):
            return _from_path(kind, Path(spec[1]).expanduser(), seed)
        return _from_data(kind, spec[1], seed)
    return _from_data(None, spec, seed)


def _names_data(spec: tuple[Any, Any]) -> bool:
    """Tell ``(kind, data)`` from a tuple of two passages."""
    return spec[0] in KINDS or not isinstance(spec[1], str)


def _parse(spec: str) -> tuple[TaskKind, Path]:
    name, colon, path = spec.partition(":")
    if not colon:
        raise BadInput(f"task {shorten(spec)} has no kind; write {_choices(spec[:40])}")
    kind = _kind(name.strip(), shorten(spec))
    if not path.strip():
        raise BadInput(f"task {shorten(spec)} has no path; write {kind}:PATH")
    return kind, Path(path.strip()).expanduser()


def _kind(name: str, where: str) -> TaskKind:
    for kind in KINDS:
        if kind == name:
            return kind
    near = difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(KINDS)}"
    raise BadInput(f"task {where}: unknown kind {shorten(name)}; {hint}")


def _choices(path: str) -> str:
    return ", ".join(f"{kind}:{path}" for kind in KINDS[:-1]) + f" or {KINDS[-1]}:{path}"


def _from_path(kind: TaskKind, path: Path, seed: int) -> Task:
    name = f"{kind}:{path.name or path}"
    if kind == "images":
        return images_task(name, str(path), *read_images(path, _part_rank), seed)
    train, held_out = _find_files(kind, path)
    if kind == "lm":
        held = None if held_out is None else read_documents(held_out)
        return language_task(name, str(path), read_documents(train), held, seed)
    train_rows = _read_files(kind, train)
    held_rows = _read_files(kind, held_out) if held_out is not None else None
    return _assemble(kind, name, str(path), train_rows, held_rows, seed)


def _find_files(kind: TaskKind, path: Path) -> tuple[list[Path], list[Path] | None]:
    """Return the files to train on and those held out; None held out means that the first are to be split."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; check the path")
    unlabelled = kind in ("text", "lm")
    if not path.is_dir():
        whole = not unlabelled and _held_out_rank(path) is not None
        return ([], [path]) if whole else ([path], None)
    suffixes = TEXT_SUFFIXES if unlabelled else TABLE_SUFFIXES
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in suffixes)
    train = [file for file in files if _TRAIN.search(file.stem)]
    ranked = [(rank, file) for file in files if (rank := _held_out_rank(file)) is not None and file not in train]
    best = min((rank for rank, _ in ranked), default=None)
    held_out = [file for rank, file in ranked if rank == best]
    _refuse_mixed(path, train)
    _refuse_mixed(path, held_out)
    if unlabelled and not (train and held_out):
        if not files:
            raise BadInput(f"{path}: no {' or '.join(TEXT_SUFFIXES)} files in this folder; give one that has them")
        return files, None
    if not train and not held_out:
        raise BadInput(
            f"{path}: no train and dev files in this folder; name them train and dev (or valid, test) with one of "
            f"{', '.join(TABLE_SUFFIXES)}, or give a file"
        )
    return train, held_out or None


def _held_out_rank(path: Path) -> int | None:
    return next((rank for rank, pattern in enumerate(_HELD_OUT) if pattern.search(path.stem)), None)


def _part_rank(name: str) -> int | None:
    """Return which part of a set of images a name says: 0 what is to train on, 1 the best of what is held out."""
    if _TRAIN.search(name):
        return 0
    plain = re.sub(r"(?<![a-z])val(?![a-z])", "valid", name.lower()).replace("t10k", "test")
    return next((1 + rank for rank, pattern in enumerate(_HELD_OUT) if pattern.search(plain)), None)


def _refuse_mixed(folder: Path, files: list[Path]) -> None:
    """Refuse the same data twice in two formats; several files of one format are its parts."""
    if len({file.suffix.lower() for file in files}) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise BadInput(f"{folder}: {names} could each be the data; leave files of one format only")


def _read_files(kind: TaskKind, files: list[Path]) -> list[Any]:
    rows: list[Any] = []
    for file in files:
        if kind == "text":
            rows += split_passages(read_text(file))
        else:
            table = read_table(file)
            rows += pair_rows(table) if kind == "sts" else label_rows(table)
    return rows


def _from_data(kind: TaskKind | None, data: Any, seed: int) -> Task:
    where = "the given data"
    train, held_out = data, None
    if isinstance(data, Mapping):
        named = {str(name): part for name, part in data.items()}
        held_name = next((name for pattern in _HELD_OUT for name in named if pattern.search(name)), None)
        train_name = next((name for name in named if _TRAIN.search(name)), None)
        if train_name is None:
            raise BadInput(f"{where}: a mapping without 'train'; give {{'train': ..., 'validation': ...}}")
        train, held_out = named[train_name], named[held_name] if held_name is not None else None
    if kind is None:
        kind = _infer_kind(train, where)
    name = f"{kind}:data"
    if kind == "images":
        both = [None if part is None else read_image_data(part, where) for part in (train, held_out)]
        return images_task(name, where, both[0], both[1], seed)
    if kind == "lm":
        held = None if held_out is None else given_documents(_read_data("text", held_out, where), where)
        return language_task(name, where, given_documents(_read_data("text", train, where), where), held, seed)
    train_rows = _read_data(kind, train, where)
    held_rows = _read_data(kind, held_out, where) if held_out is not None else None
    return _assemble(kind, name, where, train_rows, held_rows, seed)


def _infer_kind(data: Any, where: str) -> TaskKind:
    if not hasattr(data, "column_names"):
        return "text"
    if reads_images(data.column_names):
        return "images"
    kind = kind_of(data.column_names)
    if kind is None:
        columns = ", ".join(map(str, data.column_names))
        raise BadInput(
            f"{where}: its columns ({columns}) make no task; rename them to text, to text and label, "
            "to sentence1, sentence2 and score, or to image and label"
        )
    if kind == "sts" and not {name.lower() for name in data.column_names}.intersection(SCORE_NAMES[:-1]):
        first = next(iter(data), None)
        label = None if first is None else next(first[name] for name in data.column_names if name.lower() == "label")
        if isinstance(label, int):
            pair = " and ".join(PAIR_NAMES[0])
            raise BadInput(
                f"{where}: {pair} with whole-number labels are classes of pairs, which no task here takes; "
                "pass ('sts', data) if the labels are scores"
            )
    return _kind(kind, where)


def _read_data(kind: TaskKind, data: Any, where: str) -> list[Any]:
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise BadInput(f"{where}: a {type(data).__name__} is not a task; give {_choices('PATH')}, or an iterable")
    if kind == "text" and not hasattr(data, "column_names"):
        return list(data)
    names = tuple(data.column_names) if hasattr(data, "column_names") else None
    table = rows_to_table(data, names, _DEFAULT_COLUMNS[kind], where)
    if table.rows == 0:
        return []
    if kind == "text":
        return text_rows(table)
    return pair_rows(table) if kind == "sts" else label_rows(table)


def _assemble(kind: TaskKind, name: str, where: str, train: list[Any], held_out: list[Any] | None, seed: int) -> Task:
    if kind == "text":
        train = clean_passages(train, where)
        held_out = None if held_out is None else clean_passages(held_out, where)
    least = _LEAST_HELD_OUT[kind]
    if held_out is None:
        if len(train) < least + 1:
            raise BadInput(
                f"{where}: {_count(kind, len(train))} {'is' if len(train) == 1 else 'are'} too few; "
                f"give at least {least + 1}, better hundreds"
            )
        train, held_out = split(train, seed=seed, least=least)
    elif len(held_out) < least:
        raise BadInput(f"{where}: {_count(kind, len(held_out))} held out, too few to measure on; give at least {least}")
    if kind == "text":
        return _text_task(name, train, held_out)
    return _sts_task(name, where, train, held_out) if kind == "sts" else _classify_task(name, where, train, held_out)


def _count(kind: TaskKind, count: int) -> str:
    noun = {"text": "passage", "sts": "pair"}.get(kind, "example")
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _text_task(name: str, train: list[str], held_rows: list[str]) -> Task:
    held_out = HeldOut(examples=tuple(held_rows))
    return task_of("text", name, train, held_out, LIKENESS)


def _sts_task(
    name: str, where: str, train: list[tuple[str, str, float]], held_rows: list[tuple[str, str, float]]
) -> Task:
    scores = [score for _, _, score in held_rows]
    if min(scores) == max(scores):
        raise BadInput(f"{where}: all held-out scores are {scores[0]:g}, so no correlation is defined; vary them")
    low, high = _scale(scores + [score for _, _, score in train])
    held_out = HeldOut(
        left=tuple(left for left, _, _ in held_rows),
        right=tuple(right for _, right, _ in held_rows),
        scores=tuple((score - low) / (high - low) for score in scores),
    )
    seen = {frozenset((left, right)) for left, right, _ in held_rows}
    pairs = tuple(
        (left, right, (score - low) / (high - low))
        for left, right, score in train
        if frozenset((left, right)) not in seen
    )
    texts = [text for left, right, _ in pairs for text in (left, right)]
    return task_of("sts", name, texts, held_out, SPEARMAN, pairs=pairs)


def _scale(scores: list[float]) -> tuple[float, float]:
    """Return what becomes 0 and what becomes 1: the usual scales 0-1 and 0-5, else the least and the most."""
    low, high = min(scores), max(scores)
    if low >= 0 and high <= 5:
        return 0.0, 1.0 if high <= 1 else 5.0
    return low, high


def _classify_task(name: str, where: str, train: list[tuple[str, str]], held_rows: list[tuple[str, str]]) -> Task:
    names = sorted_names({label for _, label in (*train, *held_rows)})
    for rows, part in ((train, "training"), ([*train, *held_rows], "")):
        if rows and len({label for _, label in rows}) == 1:
            what = f"all {part} examples" if part else "all examples"
            raise BadInput(f"{where}: {what} are of one class ({shorten(rows[0][1])}); give examples of two or more")
    index = {label: number for number, label in enumerate(names)}
    held_out = HeldOut(
        examples=tuple(text for text, _ in held_rows), labels=tuple(index[label] for _, label in held_rows)
    )
    seen = set(held_out.examples)
    labelled = tuple((text, index[label]) for text, label in train if text not in seen)
    texts = [text for text, _ in labelled]
    return task_of("classify", name, texts, held_out, ACCURACY, labelled=labelled, label_names=names)
