"""What a network is for: reading data, splitting it, and the three metrics against independent computation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isthmus.errors import BadInput
from isthmus.tasks import HeldOut, Metric, Task, documentation, evaluate, load_task
from isthmus.tasks import data as data_module
from isthmus.tasks.data import data_folder
from isthmus.tasks.documentation import documentation_passages, prose
from isthmus.tasks.metrics import Ordering, cosine, passage_pairs, probe_texts, weighted_spearman
from isthmus.tasks.probe import PENALTY, fit_probe

DATA = data_folder()
needs_data = pytest.mark.skipif(DATA is None, reason="no real data: set ISTHMUS_DATA to its folder")

WORDS = ("red", "green", "blue", "grey", "pink")
# No surrogates (not UTF-8) and no NUL (a mark of binary files); what a passage ends in is stripped.
LINE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=30).map(str.strip).filter(bool)
FIELD = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)


def lines(count: int, word: str = "passage") -> list[str]:
    return [f"{word} number {index}" for index in range(count)]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def refuses(spec: Any, *parts: str) -> None:
    """The error is one line that says what, where and how."""
    with pytest.raises(BadInput) as caught:
        load_task(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- text ---------------------------------------------------------------------------------------------------------


def test_text_is_one_passage_a_line_stripped_without_empty_or_repeated_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff  one \r\ntwo\rthree\n\nfour\n\none\n  \nfive\n")
    task = load_task(f"text:{path}")
    assert (task.kind, task.name, task.metric_name) == ("text", "text:a.txt", "likeness")
    assert sorted((*task.train, *task.held_out.examples)) == sorted(["one", "two", "three", "four", "five"])


def test_wrapped_paragraphs_are_joined_but_one_stray_blank_line_is_not_a_paragraph(tmp_path: Path) -> None:
    wrapped = "\n\n".join(f"Paragraph {i} begins here\n  and goes on\nto its end." for i in range(8))
    task = load_task(f"text:{write(tmp_path / 'a.txt', wrapped)}")
    assert "Paragraph 0 begins here and goes on to its end." in (*task.train, *task.held_out.examples)
    stray = load_task(f"text:{write(tmp_path / 'b.txt', chr(10).join([*lines(60), '', *lines(60, 'other')]))}")
    assert len(stray.train) + len(stray.held_out.examples) == 120


def test_long_passages_are_capped(tmp_path: Path) -> None:
    task = load_task([*lines(10), "x" * 5000])
    assert max(map(len, (*task.train, *task.held_out.examples))) == 2000


@settings(max_examples=40, deadline=None)
@given(st.lists(LINE, min_size=4, max_size=60, unique=True), st.integers(0, 9))
def test_any_text_is_read_whole_in_order_and_split_without_overlap(passages: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.txt", "\n".join(passages))
        task = load_task(f"text:{path}", seed=seed)
        again = load_task(passages, seed=seed)
    assert set(task.train) | set(task.held_out.examples) == set(passages)
    assert not set(task.train) & set(task.held_out.examples)
    place = passages.index
    assert list(map(place, task.train)) == sorted(map(place, task.train))
    assert (again.train, again.held_out, again.fingerprint) == (task.train, task.held_out, task.fingerprint)


@pytest.mark.parametrize(
    ("count", "held_out"), [(4, 3), (6, 3), (30, 15), (100, 20), (500, 50), (9_990, 999), (20_000, 1000)]
)
def test_a_tenth_is_held_out_within_bounds(count: int, held_out: int) -> None:
    task = load_task(lines(count))
    assert (len(task.held_out.examples), len(task.train)) == (held_out, count - held_out)


def test_the_seed_chooses_the_split_and_the_fingerprint_tells_data_apart() -> None:
    first, same, other = load_task(lines(99)), load_task(lines(99)), load_task(lines(99), seed=1)
    assert first == same
    assert first.held_out != other.held_out
    assert len({first.fingerprint, other.fingerprint, load_task(lines(98)).fingerprint}) == 3
    assert len(first.fingerprint) == 64


def test_a_folder_of_text_is_read_by_its_train_and_dev_files_or_whole(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "\n".join([*lines(9), "kept out"]))
    write(tmp_path / "latest.txt", "\n".join(lines(5, "unread")))  # "test" in a word does not make a test file
    write(tmp_path / "my-dev.txt", "\n".join([*lines(4, "dev"), "kept out"]))
    task = load_task(f"text:{tmp_path}")
    assert task.train == tuple(lines(9))
    assert task.held_out.examples == (*lines(4, "dev"), "kept out")
    (tmp_path / "my-dev.txt").rename(tmp_path / "b.md")
    write(tmp_path / "c.json", "{}")
    task = load_task(f"text:{tmp_path}")
    assert len(task.train) + len(task.held_out.examples) == 9 + 1 + 4 + 5


def test_held_out_files_for_choosing_come_before_tests_and_parts_are_joined(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test", "validation"):
        write(tmp_path / f"{name}.txt", "\n".join(lines(5, name)))
    task = load_task(f"text:{tmp_path}")
    assert task.held_out.examples == tuple(lines(5, "validation"))
    assert len(task.train) == 10


# --- pairs --------------------------------------------------------------------------------------------------------

PAIRS = [(f"left, {i}", f'the "right" {i}', float(i % 6)) for i in range(50)]


def save(path: Path, rows: Sequence[Sequence[Any]], names: Sequence[str] | None) -> str:
    """Write rows in the format that the suffix says; without names there is no header."""
    frame = polars.DataFrame(list(map(list, rows)), schema=list(names or map(str, range(len(rows[0])))), orient="row")
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".tsv":
        frame.write_csv(path, include_header=names is not None, separator="\t", quote_style="never")
    else:
        frame.write_csv(path, include_header=names is not None)
    return str(path)


@pytest.mark.parametrize(
    "names", [None, ("sentence1", "sentence2", "score"), ("Left", "Right", "Label"), ("a1", "b1", "c1")]
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_pairs_are_found_by_name_or_content(tmp_path: Path, suffix: str, names: Sequence[str] | None) -> None:
    if suffix in (".csv", ".tsv") and names and names[0] == "a1":
        refuses(f"sts:{save(tmp_path / f'train{suffix}', PAIRS, names)}", "row 1", "'c1' is not a number", "header")
        return
    columns = names or (("x", "y", "z") if suffix in (".jsonl", ".parquet") else None)
    task = load_task(f"sts:{save(tmp_path / f'train{suffix}', PAIRS, columns)}")
    held = list(zip(task.held_out.left, task.held_out.right, task.held_out.scores, strict=True))
    assert sorted([*task.pairs, *held]) == sorted((left, right, score / 5) for left, right, score in PAIRS)
    assert len(held) == 20
    assert task.train == tuple(text for left, right, _ in task.pairs for text in (left, right))
    assert task.metric_name == "spearman"


def test_pairs_may_stand_in_any_order_beside_other_columns_and_semicolons(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id;score;sentence1;sentence2\n" + "\n".join(f"{i};{i};l{i};r{i}" for i in "123"))
    task = load_task(f"sts:{path}")
    assert {*task.held_out.left, *(left for left, _, _ in task.pairs)} == {"l1", "l2", "l3"}
    path = write(tmp_path / "b.csv", "\n".join(f"{i},l {i},r {i}" for i in range(9)))
    assert load_task(f"sts:{path}").held_out.left[0].startswith("l ")


@pytest.mark.parametrize(
    ("scores", "scaled"), [((0, 1, 0.5), (0, 1, 0.5)), ((0, 4, 5), (0, 0.8, 1)), ((-1, 0, 1), (0, 0.5, 1))]
)
def test_scores_are_scaled_to_one(scores: tuple[float, ...], scaled: tuple[float, ...]) -> None:
    held_out = [(f"l{i}", f"r{i}", score) for i, score in enumerate(scores)]
    assert load_task(("sts", {"train": PAIRS[:0], "validation": held_out})).held_out.scores == scaled


def test_what_is_held_out_is_taken_out_of_training(tmp_path: Path) -> None:
    save(tmp_path / "train.csv", [("a", "b", 1.0), ("d", "c", 2.0), ("a", "e", 3.0), ("a", "b", 4.0)], None)
    save(tmp_path / "dev.csv", [("c", "d", 0.0), ("e", "f", 5.0)], None)
    task = load_task(f"sts:{tmp_path}")
    assert task.pairs == (("a", "b", 0.2), ("a", "e", 0.6), ("a", "b", 0.8))
    assert task.train == ("a", "b")


@pytest.mark.parametrize("name", ["dev.csv", "sts-test.csv", "VALID.csv", "validation_1.csv"])
def test_a_single_dev_file_is_held_out_whole(tmp_path: Path, name: str) -> None:
    task = load_task(f"sts:{save(tmp_path / name, PAIRS, None)}")
    assert (task.train, task.pairs, len(task.held_out.scores)) == ((), (), 50)
    with pytest.raises(BadInput, match="all of it is held out"):
        task.require_train()
    assert load_task(lines(9)).require_train()


# --- labels -------------------------------------------------------------------------------------------------------

LABELLED = [(f"it's a \"bare quote, {i}", i % 2) for i in range(60)]


@pytest.mark.parametrize("names", [None, ("text", "label"), ("Sentence", "class"), ("content", "y")])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_examples_are_found_by_name_or_content(tmp_path: Path, suffix: str, names: Sequence[str] | None) -> None:
    names = ("text", "target") if names is None and suffix in (".jsonl", ".parquet") else names
    task = load_task(f"classify:{save(tmp_path / f'all{suffix}', LABELLED, names)}")
    held = zip(task.held_out.examples, task.held_out.labels, strict=True)
    assert sorted([*task.labelled, *held]) == sorted(LABELLED)
    assert (task.label_names, task.metric_name) == (("0", "1"), "accuracy")
    assert task.train == tuple(text for text, _ in task.labelled)


def test_labels_may_be_names_or_numbers(tmp_path: Path) -> None:
    rows = [(f"text {i}", WORDS[i % 3]) for i in range(30)]
    for ordered in (rows, [(label, text) for text, label in rows]):
        task = load_task(f"classify:{save(tmp_path / 'a.tsv', ordered, None)}")
        assert task.label_names == ("blue", "green", "red")
        assert {text: task.label_names[label] for text, label in task.labelled}.items() <= dict(rows).items()
    numbers = [(f"text {i}", i % 11) for i in range(60)]
    assert load_task(("classify", numbers)).label_names == tuple(map(str, range(11)))
    floats = save(tmp_path / "a.parquet", [(text, float(label)) for text, label in numbers], ("text", "label"))
    assert load_task(f"classify:{floats}").label_names == tuple(map(str, range(11)))
    assert load_task(("classify", [(text, label > 5) for text, label in numbers])).label_names == ("0", "1")


def test_a_class_named_like_a_column_is_not_a_header(tmp_path: Path) -> None:
    rows = [(f"text {i}", "target" if i % 2 == 0 else "other") for i in range(9)]
    task = load_task(f"classify:{save(tmp_path / 'dev.csv', rows, None)}")
    assert (len(task.held_out.examples), task.label_names) == (9, ("other", "target"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FIELD, st.sampled_from(WORDS)), min_size=3, max_size=20), st.sampled_from(["csv", "tsv"]))
def test_any_text_survives_tables(rows: list[tuple[str, str]], separated: str) -> None:
    rows = [*rows, ("one", "red"), ("two", "green")]
    if separated == "tsv":  # it has no quoting, so it cannot hold these
        rows = [("".join(" " if char in "\t\n\r" else char for char in text), label) for text, label in rows]
    expected = [(text.strip(), label) for text, label in rows if text.strip()]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (separated, "jsonl", "parquet"):
            path = save(Path(folder) / f"dev.{suffix}", rows, ("text", "label"))
            task = load_task(f"classify:{path}")
            labels = [task.label_names[label] for label in task.held_out.labels]
            assert list(zip(task.held_out.examples, labels, strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=80), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]), st.sampled_from(["sts", "classify"])
)
def test_any_bytes_are_read_or_refused(content: bytes, suffix: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"dev.{suffix}"
        path.write_bytes(content)
        message = ""
        try:
            load_task(f"{kind}:{path}")
        except BadInput as error:  # any other exception fails the test
            message = str(error)
    assert "\n" not in message


# --- data in Python -----------------------------------------------------------------------------------------------


class Columns:
    """What a ``datasets`` object looks like."""

    def __init__(self, **columns: Sequence[Any]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))


def test_data_in_python() -> None:
    task = load_task(lines(9))
    assert load_task(task) is task
    for spec in (iter(lines(9)), ("text", lines(9)), tuple(lines(9)), Columns(id=range(9), text=lines(9))):
        assert load_task(spec) == task
    left, right, scores = zip(*PAIRS, strict=True)
    pairs = load_task(("sts", PAIRS))
    assert load_task(Columns(idx=range(50), sentence1=left, sentence2=right, label=scores)) == pairs
    assert load_task(("sts", [{"left": l, "right": r, "score": s} for l, r, s in PAIRS])) == pairs  # noqa: E741
    texts, labels = zip(*LABELLED, strict=True)
    assert load_task(Columns(sentence=texts, label=labels)) == load_task(("classify", LABELLED))
    split = load_task({"train": Columns(text=lines(5)), "validation": Columns(text=lines(4, "dev")), "test": None})
    assert (split.train, split.held_out.examples) == (tuple(lines(5)), tuple(lines(4, "dev")))


def test_a_kind_may_stand_beside_a_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(lines(9)))
    assert load_task(("text", path)) == load_task(("text", str(path))) == load_task(f"text:{path}")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("txt:a.txt", ["unknown kind 'txt'", "did you mean text?"]),
        ("classfy:a", ["did you mean classify?"]),
        ("stsb:a", ["did you mean sts?"]),
        ("audio-of-birds:a", ["the kinds are text, sts, classify"]),
        ("a.txt", ["no kind", "text:a.txt"]),
        (Path("a.txt"), ["no kind"]),
        ("text:", ["no path", "text:PATH"]),
        ("text:no-such-file", ["no-such-file", "no such file"]),
        (("wrong", [("a", 1)]), ["unknown kind 'wrong'"]),
        (["a", "b", 3, "c"], ["passage 2 is a int"]),
        ([], ["0 passages are too few"]),
        (["one"], ["1 passage is too few"]),
        (("sts", PAIRS[:1]), ["1 pair is too few", "at least 3"]),
        (("classify", []), ["0 examples are too few"]),
        (("sts", [("a", "b")] * 4), ["row 0 is not (sentence1, sentence2, score)"]),
        (("sts", [("a", 2, 1.0)] * 4), ["column 'sentence2' holds '2', not text"]),
        (("sts", [(a, b, 3) for a, b, _ in PAIRS]), ["all held-out scores are 3"]),
        (("classify", [(a, "x") for a, _ in LABELLED]), ["of one class ('x')"]),
        (7, ["a int is not a task"]),
        ({"dev": lines(9)}, ["a mapping without 'train'"]),
        (Columns(picture=[1], width=[2]), ["its columns (picture, width) make no task"]),
        (Columns(sentence1=["a"], sentence2=["b"], label=[1]), ["classes of pairs"]),
        (("text", Columns(words=lines(9))), ["no column named text"]),
    ],
)
def test_a_bad_task_is_refused(spec: Any, parts: list[str]) -> None:
    refuses(spec, *parts)


@pytest.mark.parametrize(
    ("kind", "name", "content", "parts"),
    [
        ("text", "a.txt", b"", ["empty"]),
        ("text", "a.txt", b" \n\n", ["empty"]),
        ("text", "a.txt", b"\x89PNG\0\0", ["binary"]),
        ("text", "a.txt", b"caf\xe9 au lait", ["not UTF-8", "byte 3"]),
        ("sts", "a.csv", b"a,b,1\nc,d,e,2\n", ["line 2 has 4 columns where the first has 3"]),
        ("sts", "a.csv", b"a,b,1\nc,d,x\ne,f,2\n", ["row 2", "score 'x' is not a number"]),
        ("sts", "a.csv", b"a,b,1\nc,d,nan\ne,f,2\n", ["row 2", "'nan'"]),
        ("sts", "a.csv", b"a,1\nb,2\n", ["found 1 columns of text and 1 of numbers", "sentence1"]),
        ("sts", "a.csv", b"sentence1,sentence2\na,b\n", ["no column named score", "sentence1, sentence2"]),
        ("sts", "a.tsv", b"a\tb\t1\nc\td\n", ["row 2", "score '' is not a number"]),
        ("sts", "a.txt", b"a,b,1\n", ["must end in one of .csv"]),
        ("sts", "dev.csv", b"a,b,1\nc,d,1\n", ["all held-out scores are 1"]),
        ("classify", "a.csv", b"some text\nmore text\n", ["found 1 column,", "label column"]),
        ("classify", "a.csv", b"text,id\na,1\nb,2\n", ["no label column", "text, id"]),
        ("classify", "a.csv", b"words,label\na,1\nb,2\n", ["no text column", "words, label"]),
        ("classify", "a.csv", b"text,label\na,1\nb,\n", ["row 3 has no label"]),
        ("classify", "a.csv", b"text,label\na,1\nb,1\n", ["of one class ('1')"]),
        ("classify", "a.csv", b"text,label\n", ["0 examples are too few"]),
        ("classify", "a.jsonl", b'{"text": "a"\nx', ["not JSONL"]),
        ("classify", "a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', ["row 2 has no label"]),
        ("classify", "a.parquet", b"PAR1 no PAR1", ["not Parquet"]),
        ("classify", "a.parquet", b"", ["empty"]),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, kind: str, name: str, content: bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refuses(f"{kind}:{path}", str(path), *parts)


def test_a_bad_folder_is_refused(tmp_path: Path) -> None:
    refuses(f"text:{tmp_path}", "no .txt")
    save(tmp_path / "pairs.csv", PAIRS, None)
    refuses(f"sts:{tmp_path}", "no train and dev files")
    save(tmp_path / "train.csv", PAIRS, None)
    save(tmp_path / "train.tsv", PAIRS, None)
    refuses(f"sts:{tmp_path}", "train.csv, train.tsv", "one format")
    (tmp_path / "train.tsv").unlink()
    (tmp_path / "dev.csv").mkdir()
    assert len(load_task(f"sts:{tmp_path}").held_out.scores) == 20  # a folder is not a dev file: train is split


# --- metrics ------------------------------------------------------------------------------------------------------


def table_of(texts: Sequence[str], width: int, seed: int) -> tuple[np.ndarray, Callable[[Sequence[str]], np.ndarray]]:
    rows = np.random.default_rng(seed).normal(size=(len(texts), width)).astype(np.float32)
    place = {text: index for index, text in enumerate(texts)}
    return rows, lambda asked: rows[[place[text] for text in asked]]


def pairwise_cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(rows), 1)]


def test_likeness_is_the_spearman_correlation_of_all_pairs_at_any_width() -> None:
    task = load_task(lines(300))
    texts = task.held_out.examples
    original, _ = table_of(texts, 12, 0)
    small, embed = table_of(texts, 7, 1)
    small[:] = original[:, :7] + 0.1 * small
    metric = evaluate(embed, task, original)
    expected = stats.spearmanr(pairwise_cosines(small), pairwise_cosines(original)).statistic
    assert metric.name == "likeness"
    assert metric.value == pytest.approx(expected, abs=1e-6)
    assert metric.ci95[0] < metric.value < metric.ci95[1]
    assert evaluate(embed, task, original) == metric
    assert evaluate(embed, task) == Metric("likeness", 1.0, (1.0, 1.0))
    assert evaluate(embed, task, 3 * small).value == pytest.approx(1.0)


@given(st.integers(2, 60), st.integers(1, 2000), st.integers(0, 5))
def test_pairs_of_passages_are_distinct_and_as_many_as_asked(passages: int, most: int, seed: int) -> None:
    first, second = passage_pairs(passages, most, seed)
    assert len(first) == min(most, passages * (passages - 1) // 2)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first)
    assert ((first >= 0) & (first < second) & (second < passages)).all()


def test_pairs_of_very_many_passages_are_in_range() -> None:
    first, second = passage_pairs(3_000_000, 1000, 0)
    assert ((first >= 0) & (first < second) & (second < 3_000_000)).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_weighted_correlation_is_that_of_the_repeated_sample(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 12))
    small = st.integers(0, 4)  # few values, so that there are ties
    x, y = (np.array(data.draw(st.lists(small, min_size=size, max_size=size)), dtype=float) for _ in range(2))
    weights = np.array([data.draw(st.lists(small, min_size=size, max_size=size)) for _ in range(3)], dtype=float)
    ours = weighted_spearman(Ordering.of(x), Ordering.of(y), weights)
    for value, repeats in zip(ours, weights.astype(int), strict=True):
        again = np.repeat(x, repeats), np.repeat(y, repeats)
        if len(again[0]) == 0 or np.ptp(again[0]) == 0 or np.ptp(again[1]) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(stats.spearmanr(*again).statistic, abs=1e-9)


def test_spearman_is_that_of_cosines_and_scores() -> None:
    task = load_task(("sts", {"train": [], "dev": PAIRS}))
    rows, embed = table_of(task.held_out.passages, 5, 2)
    place = {text: index for index, text in enumerate(task.held_out.passages)}
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in ((rows[place[left]], rows[place[right]]) for left, right, _ in PAIRS)
    ]
    metric = evaluate(embed, task)
    assert metric.value == pytest.approx(stats.spearmanr(cosines, [score for *_, score in PAIRS]).statistic)
    assert -1 <= metric.ci95[0] < metric.value < metric.ci95[1] <= 1


def test_a_network_that_says_the_same_of_all_texts_has_no_order() -> None:
    task = load_task(("sts", {"train": [], "dev": PAIRS}))
    assert evaluate(lambda texts: np.ones((len(texts), 3)), task) == Metric("spearman", 0.0, (0.0, 0.0))
    assert cosine(np.zeros((2, 3)), np.array([0]), np.array([1])).tolist() == [0.0]


def test_accuracy_of_a_classifier_is_the_share_of_its_greatest_logits() -> None:
    task = load_task(("classify", [(f"text {i}", WORDS[i % 3]) for i in range(400)]))
    rows, embed = table_of(task.held_out.examples, 3, 3)
    metric = evaluate(embed, task, logits=True)
    right = [row.argmax() == label for row, label in zip(rows, task.held_out.labels, strict=True)]
    assert metric.value == np.mean(right)
    assert metric.ci95[0] < metric.value < metric.ci95[1]
    with pytest.raises(BadInput, match="2 classes and the data 3"):
        evaluate(lambda texts: np.zeros((len(texts), 2)), task, logits=True)


def test_a_linear_probe_reads_what_is_linear() -> None:
    rows = [(f"text {i}", i % 3) for i in range(600)]
    task = load_task(("classify", rows))
    vectors = np.random.default_rng(0).normal(size=(600, 8))
    vectors[np.arange(600), [label for _, label in rows]] += 6
    embed = lambda texts: 1e-3 * vectors[[int(text.split()[1]) for text in texts]]  # noqa: E731
    metric = evaluate(embed, task)
    assert metric.value > 0.95
    assert evaluate(embed, task) == metric
    noise = evaluate(lambda texts: np.random.default_rng(1).normal(size=(len(texts), 8)), task)
    assert noise.value < 0.55


def test_the_probe_is_at_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(80, 4)), rng.integers(0, 3, size=80)
    probe = fit_probe(inputs, labels, 3)
    centred = inputs - inputs.mean(axis=0)
    scale = centred.std()
    outputs = centred @ probe.weights + probe.bias
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    error = (shares - np.eye(3)[labels]) / 80
    assert np.abs((centred / scale).T @ error + PENALTY * probe.weights * scale).max() < 1e-4
    assert np.abs(error.sum(axis=0)).max() < 1e-4


def test_a_probe_takes_at_most_4000_texts() -> None:
    task = load_task(("classify", [(f"text {i}", i % 2) for i in range(5000)]))
    chosen = probe_texts(task, 0)
    assert (len(chosen), len(set(chosen)), chosen) == (4000, 4000, probe_texts(task, 0))


def test_outputs_that_cannot_be_measured_are_refused() -> None:
    task = load_task(lines(60))
    texts = task.held_out.examples
    with pytest.raises(BadInput, match="not finite"):
        evaluate(lambda asked: np.full((len(asked), 2), np.nan), task, np.ones((len(texts), 2)))
    with pytest.raises(BadInput, match="the original gives an array of shape"):
        evaluate(lambda asked: np.ones((len(asked), 2)), task, np.ones((3, 2)))
    dev = load_task(("classify", {"train": [], "dev": LABELLED}))
    with pytest.raises(BadInput, match="no labelled training examples"):
        evaluate(lambda asked: np.ones((len(asked), 2)), dev)
    few = Task("text", "text:few", (), HeldOut(examples=("a", "b")), "likeness", "")
    with pytest.raises(BadInput, match="too few"):
        evaluate(lambda asked: np.ones((2, 2)), few, np.ones((2, 2)))


# --- real data ----------------------------------------------------------------------------------------------------


@needs_data
def test_real_pairs_and_examples() -> None:
    assert DATA is not None
    pairs = load_task(f"sts:{DATA / 'stsb'}")
    assert (len(pairs.held_out.scores), len(pairs.pairs) <= 5749) == (1500, True)
    assert {min(pairs.held_out.scores), max(pairs.held_out.scores)} == {0.0, 1.0}
    assert not set(pairs.train) & set(pairs.held_out.passages)
    examples = load_task(f"classify:{DATA / 'sst2'}")
    assert (len(examples.held_out.examples), len(examples.labelled) <= 6920) == (872, True)
    assert examples.label_names == ("0", "1")
    assert not load_task(f"sts:{DATA / 'stsb' / 'dev.csv'}").train


@needs_data
def test_real_text() -> None:
    assert DATA is not None
    plays = load_task(f"text:{DATA / 'text' / 'tinyshakespeare.txt'}")
    assert plays.train[0] == "First Citizen: Before we proceed any further, hear me speak."
    assert 900 < len(load_task(f"text:{DATA / 'text' / 'wikitext2-valid.txt'}").train) < 1500


def test_the_data_folder_is_named_or_beside_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path / "none"))
    assert data_folder() is None
    monkeypatch.delenv("ISTHMUS_DATA")
    module = tmp_path / "checkout" / "src" / "isthmus" / "tasks" / "data.py"
    monkeypatch.setattr(data_module, "__file__", str(module))
    assert data_folder() is None
    write(tmp_path / "checkout" / "pyproject.toml", "")
    assert data_folder() is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data_folder() == tmp_path / "shared" / "data"


# --- documentation ------------------------------------------------------------------------------------------------


SHORT = "documentation.PACKAGES = ('jinja2', 'no_such_package', 'numpy'); documentation._BYTES_A_PACKAGE = 400_000"


def test_documentation_is_prose_in_a_fixed_order_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "PACKAGES", ("jinja2", "no_such_package", "numpy"))
    monkeypatch.setattr(documentation, "_BYTES_A_PACKAGE", 400_000)
    passages = documentation_passages(300)
    assert len(set(passages)) == 300
    assert all(len(passage.split()) >= 6 and "\n" not in passage and ">>>" not in passage for passage in passages)
    code = (
        f"import sys; from isthmus.tasks import documentation; {SHORT}\n"
        "print(hash(documentation.documentation_passages(300)))\n"
        "assert not {'torch', 'transformers', 'scipy', 'openvino', 'polars', 'jinja2'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    task = load_task("documentation")
    held = set(task.held_out.examples)
    assert (task.kind, task.name) == ("text", "documentation")
    assert len(held) >= 30
    assert not held & set(task.train)
    monkeypatch.setattr(documentation, "_docstrings", lambda: iter(()))
    with pytest.raises(BadInput, match="no documentation"):
        load_task("documentation")


@pytest.mark.slow
def test_all_documentation_is_read() -> None:
    passages = documentation_passages()
    assert 10_000 <= len(passages) <= 20_000
    assert any("immutable" in passage for passage in passages)  # the topics of Python are among them


def test_prose_leaves_out_code_and_tables() -> None:
    docstring = """Return the :class:`~module.Array` of ``values``, in the order
    of their size."""
    assert list(prose(docstring.replace("\n    ", "\n"))) == [
        "Return the module.Array of values, in the order of their size."
    ]
    for other in (
        "Parameters\n----------\nx : int\n    How many of them there are in all of it.",
        ">>> print('This is a sentence with more than six words.')",
        "Too short a sentence.",
        "====  ====\none   two\n====  ====",
        "* An item of a list that has more than six words.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20.",
        json.dumps({"a key": "and a value of more than six words"}),
    ):
        assert list(prose(other)) == []
