"""The audit from end to end on tiny networks: text, pairs and classes; its page and its JSON; bad input."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isthmus
import networks
import small
from isthmus.audit.composing import POSITIONS, compose
from isthmus.audit.corruptions import corrupt_texts
from isthmus.audit.features import encoder_of, features_of
from isthmus.audit.givens import read_columns
from isthmus.audit.readers import fit_head
from isthmus.audit.reading import level_of, read_task
from isthmus.audit.textcolumns import text_columns, word_columns, words_of
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.report import AuditData, render_audit
from isthmus.tasks.divergence import similarity_divergence

Capture = pytest.CaptureFixture[str]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_pairs(path: Path, count: int, seed: int) -> None:
    chosen = random.Random(seed)
    texts = small.sentences(2 * count, seed)
    rows = []
    for left, right in zip(texts[:count], texts[count:], strict=True):
        share = chosen.random()
        words = left.split()
        other = " ".join(word if chosen.random() < share else drawn for word, drawn in zip(words, right.split() * 9))  # noqa: B905
        rows.append(f'"{left}","{other}",{5 * share:.2f}')
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_classes(path: Path, count: int, seed: int) -> None:
    texts = small.sentences(count, seed)
    rows = [f"{text}\t{'long' if len(text.split()) > 7 else 'short'}" for text in texts]
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit")
    small.write_network(place / "tiny")
    small.write_network(place / "narrow", seed=1)
    small.write_text(place / "text.txt", 300)
    for kind, write in (("pairs", write_pairs), ("classes", write_classes)):
        (place / kind).mkdir()
        suffix = "csv" if kind == "pairs" else "tsv"
        write(place / kind / f"train.{suffix}", 120, 1)
        write(place / kind / f"dev.{suffix}", 80, 2)
    return place


@pytest.fixture
def within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


# The readers.


def test_text_loss_is_the_divergence_of_the_tasks(folder: Path) -> None:
    task = isthmus.task(f"text:{folder / 'text.txt'}")
    first, second = isthmus.open(str(folder / "tiny")), isthmus.open(str(folder / "narrow"))
    reading = read_task(task)
    everything = np.arange(len(reading.examples))
    origin = fit_head(first, reading).read(reading.examples, everything)
    assert origin.loss.max() == 0
    read = fit_head(second, reading, origin.probabilities).read(reading.examples, everything)
    texts = [text for (text,) in reading.examples]
    theirs, ours = (torch.tensor(features_of(network, texts)) for network in (first, second))
    assert read.loss.mean() == pytest.approx(float(similarity_divergence(ours, theirs)), rel=1e-4)
    assert reading.labels is None
    assert (origin.probabilities[everything, everything] == 0).all()


def test_pair_loss_is_one_less_the_metric(folder: Path) -> None:
    from isthmus.flow.verifying import measure_quality

    task = isthmus.task(f"sts:{folder / 'pairs'}")
    network = isthmus.open(str(folder / "tiny"))
    reading = read_task(task)
    read = fit_head(network, reading).read(reading.examples, np.arange(len(reading.examples)))
    assert 1 - read.loss.mean() == pytest.approx(measure_quality([network], task)[0].value, abs=1e-6)
    assert read.probabilities.shape == (80, 6)
    assert level_of(np.array([0.0, 0.09, 0.11, 0.5, 0.99, 1.0])).tolist() == [0, 0, 1, 3, 5, 5]


def test_class_loss_is_one_less_the_accuracy(folder: Path) -> None:
    from isthmus.flow.verifying import measure_quality

    task = isthmus.task(f"classify:{folder / 'classes'}")
    for network in (isthmus.open(str(folder / "tiny")), networks.worded("distilbert-classifier")):
        reading = read_task(task)
        head = fit_head(network, reading)
        read = head.read(reading.examples, np.arange(len(reading.examples)))
        assert 1 - read.loss.mean() == pytest.approx(measure_quality([network], task)[0].value)
        assert head.features.shape[1] > 2
    assert encoder_of(network).pooling == "mean"


# What is said of texts, and done to them.


def test_text_columns() -> None:
    texts = [("It isn't 7 o'clock, is it?", "Paris is here"), ("the end", "end the")]
    columns = {column.name: column.values for column in text_columns(texts, ["the end is here"] * 9)}
    assert words_of("It isn't DON\u2019T") == ["it", "is", "n't", "do", "n't"]
    assert columns["has a negation"] == (True, False)
    assert columns["has digits"] == (True, False)
    assert columns["has a question"] == (True, False)
    assert columns["has a comma"] == (True, False)
    assert columns["same words, other order"] == (False, True)
    assert columns["negation on one side"] == (True, False)
    assert columns["other digits"] == (True, False)
    assert columns["rare words"] == (5, 0)  # it, n't, o'clock, it, Paris
    assert columns["shared words, share"][1] == 1
    assert len({name for name, values in columns.items() if len(values) == 2}) == len(columns)
    words = word_columns([("a cat",)] * 12 + [("a dog",)] * 30)
    assert [column.name for column in words] == ["has «cat»"]  # the others are in more than half


def test_corruptions_keep_to_their_strength_and_seed() -> None:
    texts = small.sentences(200)
    for kind in ("typos", "case", "drops"):
        assert corrupt_texts(texts, kind, 0, 0) == tuple(texts)
        once = corrupt_texts(texts, kind, 0.3, 0)
        assert once == corrupt_texts(texts, kind, 0.3, 0)
        assert once != corrupt_texts(texts, kind, 0.3, 1)
        assert once[5:] == corrupt_texts(texts[5:], kind, 0.3, 0)
    words = sum(len(text.split()) for text in texts)
    left = sum(len(text.split()) for text in corrupt_texts(texts, "drops", 0.3, 0))
    assert 1 - left / words == pytest.approx(0.3, abs=0.04)
    capitals = sum(word.isupper() for text in corrupt_texts(texts, "case", 0.3, 0) for word in text.split())
    assert capitals / (words - len(texts)) == pytest.approx(0.3, abs=0.04)  # the number at the end has no case
    mistyped = corrupt_texts(texts, "typos", 0.3, 0)
    changed = sum(
        a != b for old, new in zip(texts, mistyped, strict=True) for a, b in zip(old.split(), new.split(), strict=True)
    )
    assert 0.2 < changed / words < 0.33  # a doubled or swapped letter may be the same word
    assert all(corrupt_texts(["one"], "drops", 1, seed) == ("one",) for seed in range(5))
    with pytest.raises(BadInput, match="did you mean typos"):
        corrupt_texts(texts, "typo", 0.1, 0)
    with pytest.raises(BadInput, match="from 0 to 1"):
        corrupt_texts(texts, "typos", 10, 0)


def test_composed_texts_differ_by_place_alone() -> None:
    texts = small.sentences(60)
    labels = np.arange(60) % 2
    composed = compose(texts, labels, seed=1)
    assert len(composed.texts) == POSITIONS
    for number, deciding in enumerate(composed.deciding):
        assert texts[composed.chosen[number]] == deciding
        versions = [column[number] for column in composed.texts]
        assert len({tuple(sorted(version.split())) for version in versions}) == 1
        assert versions[0].startswith(deciding)
        assert versions[-1].endswith(deciding + ".")
        others = versions[0].split(". ")[1:]
        classes = {labels[texts.index(part.rstrip("."))] for part in others}
        assert classes == {1 - labels[composed.chosen[number]]}


def test_given_columns_are_matched_by_text(tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    path.write_text("text,source,size,flag\na b,web,3,true\nc d,book,nan,false\na b,other,9,true\n", encoding="utf-8")
    columns, warnings = read_columns(path, (("c d",), ("a b",), ("x",)))
    assert {column.name: column.values for column in columns} == {
        "source": ("book", "web", None),
        "size": (None, 3.0, None),
        "flag": (False, True, None),
    }
    assert "no row for 1 of 3" in warnings[0]
    assert "1 rows repeat" in warnings[1]
    with pytest.raises(BadInput, match="none of its texts"):
        read_columns(path, (("y",),))
    with pytest.raises(BadInput, match="sentence1 and sentence2"):
        read_columns(path, (("a", "b"),))
    bare = tmp_path / "bare.csv"
    bare.write_text("text,\na b,\n", encoding="utf-8")
    (tmp_path / "one.tsv").write_text("text\na b\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no column beside the texts"):
        read_columns(tmp_path / "one.tsv", (("a b",),))
    with pytest.raises(BadInput, match="no-such"):
        read_columns(tmp_path / "no-such.csv", (("a",),))


# The command.


class Reader(HTMLParser):
    """Gathers a page's text and holds that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in {"meta", "link", "input", "br", "col", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read_page(page: str) -> str:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(link.startswith("data:") for link in reader.links)
    assert not re.search(r"https?://|@import|url\(", page)
    return re.sub(r"\s+", " ", "".join(reader.text))


def test_audit_of_text_writes_a_page(within: Path, capsys: Capture) -> None:
    command = ["audit", "tiny", "narrow", "--task", "text:text.txt", "-o", "page.html", "-q"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "exemplars: the networks disagree on" in out
    assert "neighbours: narrow keeps" in out
    assert "calibration" not in out  # nothing is labelled
    text = read_page((within / "page.html").read_text(encoding="utf-8"))
    for part in ("Exemplars", "Damage, slice by slice", "Discovered", "Robustness", "Neighbours", "Position bias"):
        assert part in text
    assert "Calibration" not in text
    (within / "page.html").unlink()
    assert not [path for path in within.iterdir() if "part" in path.name]


def test_json_is_printed_and_read_again(within: Path, capsys: Capture) -> None:
    assert main(["audit", "tiny", "narrow", "--task", "sts:pairs", "--parts", "exemplars", "--json", "-q"]) == 0
    found = AuditData.model_validate_json(capsys.readouterr().out)
    assert found.exemplars is not None
    assert found.exemplars.of == 80
    assert found.damage is None


@pytest.fixture(scope="module")
def pairs(folder: Path) -> AuditData:
    """An audit of pairs with two narrowed networks, all parts, given slices and a transfer card."""
    from isthmus.flow import audit

    rows = ["sentence1,sentence2,origin"]
    task = isthmus.task(f"sts:{folder / 'pairs'}")
    rows += [
        f'"{a}","{b}",{"even" if n % 2 else "odd"}'
        for n, (a, b) in enumerate(zip(task.held_out.left, task.held_out.right, strict=True))
    ]
    given = folder / "given.csv"
    given.write_text("\n".join(rows) + "\n", encoding="utf-8")
    opened = [isthmus.open(str(folder / name)) for name in ("tiny", "narrow")]
    third = small.write_network(folder / "third", seed=2)
    audited = audit(
        opened[0],
        [opened[1], isthmus.open(str(third))],
        task,
        slices=given,
        transfer=[isthmus.task(f"classify:{folder / 'classes'}"), task],
    )
    return audited.report


def test_all_parts_are_there_and_json_gives_them_back(pairs: AuditData) -> None:
    assert [one.original for one in pairs.networks] == [True, False, False]
    assert len(pairs.calibration) == len(pairs.selective) == 3
    assert len(pairs.neighbours) == len(pairs.position) == 2
    assert pairs.damage is not None
    assert {"origin even", "origin odd"} <= {row.name for row in pairs.damage.rows}
    assert pairs.disagreement is not None
    assert pairs.exemplars is not None
    assert pairs.disagreement.overall.value == pairs.exemplars.share.value
    assert any(row.name.startswith("class ") for row in pairs.damage.rows)
    assert pairs.transfer is not None
    assert {cell.dataset for cell in pairs.transfer.cells} == {"classify:classes", "sts:pairs"}
    assert pairs.transfer.correlations
    text = pairs.model_dump_json()
    again = AuditData.model_validate_json(text)
    assert again == pairs
    assert json.loads(text)["exemplars"]["of"] == 80
    page = render_audit(pairs)
    assert render_audit(again) == page
    shown = read_page(page)
    for part in ("Calibration", "Selective accuracy", "Transfer card", "origin even"):
        assert part in shown
    assert not re.search(r"\bnan\b|\binf\b", shown)


def test_text_on_the_page_is_escaped(pairs: AuditData) -> None:
    bad = "<script>alert(1)</script>\"'&"
    page = render_audit(pairs.model_copy(update={"title": bad, "task": bad, "loss_name": bad, "warnings": [bad]}))
    read_page(page)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_sorting_and_filtering_in_a_browser(pairs: AuditData, tmp_path: Path) -> None:
    script = """
<script>
const heads = [...document.querySelectorAll("#damage thead button")];
heads.find((one) => one.textContent === "damage").click();
const keys = [...document.querySelectorAll("#damage tbody tr")].map((row) => Number(row.cells[4].dataset.key));
const sorted = keys.every((key, place) => place === 0 || keys[place - 1] >= key) && keys.length > 3;
const input = document.querySelector("[data-filter='exemplar-rows']");
input.value = "no such words at all";
input.dispatchEvent(new Event("input"));
const left = [...document.querySelectorAll("#exemplar-rows tbody tr")].filter((row) => !row.hidden).length;
document.title = `sorted ${sorted} left ${left} shown ${!input.parentElement.hidden}`;
</script></body>"""
    path = tmp_path / "page.html"
    path.write_text(render_audit(pairs).replace("</body>", script), encoding="utf-8")
    shown = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "<title>sorted true left 0 shown true</title>" in shown


def test_classifiers_and_several_originals() -> None:
    first, second = networks.worded("distilbert-classifier"), networks.worded("distilbert-classifier", seed=1)
    texts = small.sentences(90)
    rows = [(text, int(len(text.split()) > 7)) for text in texts]
    task = isthmus.task(("classify", {"train": rows[:30], "validation": rows[30:]}))
    others = [networks.replace(network, name=name) for network, name in ((first, "a"), (second, "b"), (second, "c"))]
    found = isthmus.audit(others[:2], others[2], task, parts="exemplars, slices, calibration,selective").report
    assert [one.original for one in found.networks] == [True, True, False]
    assert found.robustness is None
    assert found.neighbours == []
    assert found.exemplars is not None
    assert not any("one original" in warning for warning in found.warnings)
    assert found.networks[1].loss.value == found.networks[2].loss.value


def test_same_seed_same_audit(folder: Path) -> None:
    task = isthmus.task(f"text:{folder / 'text.txt'}")
    both = [isthmus.open(str(folder / name)) for name in ("tiny", "narrow")]
    once, again = (isthmus.audit(both[0], both[1], task, parts="slices,robustness", seed=3).report for _ in range(2))
    assert once.damage == again.damage
    assert once.robustness == again.robustness


def test_a_network_against_its_twin_shows_nothing(folder: Path) -> None:
    task = isthmus.task(f"sts:{folder / 'pairs'}")
    network = isthmus.open(str(folder / "tiny"))
    found = isthmus.audit(network, networks.replace(network, name="twin"), task, parts="exemplars,slices,neighbours")
    assert found.report.exemplars is not None
    assert found.report.exemplars.count == 0
    assert found.report.discovered is not None
    assert found.report.discovered.names == ()
    assert found.report.damage is not None
    assert not any(row.found for row in found.report.damage.rows)
    assert found.report.neighbours[0].overlap.value == 1
    assert "Exemplars" in read_page(render_audit(found.report))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny"], "NARROWED"),
        (["tiny", "narrow", "--task", "text:text.txt", "--parts", "exemplar"], "did you mean exemplars"),
        (["tiny", "narrow", "--task", "text:text.txt", "--parts", ","], "no parts"),
        (["tiny", "narrow", "--task", "text:text.txt", "-o", "no/page.html"], "does not exist"),
        (["tiny", "tiny", "--task", "text:text.txt"], "two networks are called tiny"),
        (["tiny", "narrow", "--task", "text:none.txt"], "no such file"),
        (["tiny", "narrow", "--task", "text:text.txt", "--slices", "none.csv"], "none.csv"),
        (["tiny", "narrow", "--task", "classify:classes/dev.tsv"], "no labelled training texts"),
        (["tiny", "narrow", "--task", "text:text.txt", "--transfer", "text:text.txt"], "nothing labelled"),
        (["tiny", "narrow", "--task", "text:few.txt"], "too few to audit"),
    ],
)
def test_bad_input_is_refused_in_one_line(within: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    (within / "few.txt").write_text("\n".join(small.sentences(8)) + "\n", encoding="utf-8")
    before = sorted(within.iterdir())
    assert main(["audit", *arguments, "-q"]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in err
    assert out == ""
    assert sorted(within.iterdir()) == before


def test_outputs_that_are_no_numbers_are_refused(folder: Path) -> None:
    network = isthmus.open(str(folder / "narrow"))
    with torch.no_grad():
        next(iter(network.model.parameters()))[7] = float("nan")
    task: Any = isthmus.task(f"text:{folder / 'text.txt'}")
    with pytest.raises(BadInput, match="network narrow: outputs: not a finite number"):
        isthmus.audit(isthmus.open(str(folder / "tiny")), network, task)
