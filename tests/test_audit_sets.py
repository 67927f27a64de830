"""The labelled sets that the transfer card is tried on."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.transfer_sets import documents, prose, speakers, write_sets

import isthmus
from isthmus.errors import BadInput

PARAGRAPH = "The object is given to the caller, who may keep it for as long as it likes ({}).\n\n"
PEPS = "".join(f"PEP: {number}\nTitle: x\n\n{PARAGRAPH.format(number)}" for number in range(1, 31))
EIPS = "".join(f"---\neip: {number}\n\n" + PARAGRAPH.format(f"gas {number}") for number in range(1, 31))
PLAY = "".join(f"Romeo:\nBut soft, what light through yonder window breaks {n}?\n\nAll:\nAy.\n\n" for n in range(9))


def test_prose_leaves_out_headings_and_what_names_its_kind() -> None:
    assert prose("Heading\n\n" + PARAGRAPH.format("x")) == [PARAGRAPH.format("x").strip()]
    assert prose(PARAGRAPH.format("see PEP 8")) == []


def test_no_document_is_in_both_parts() -> None:
    train, dev = documents(PEPS, EIPS)
    assert {label for _, label in train} == {label for _, label in dev} == {"pep", "eip"}
    assert len(train) == 40
    assert len(dev) == 20
    assert not {text for text, _ in train} & {text for text, _ in dev}
    assert documents(PEPS, EIPS) == (train, dev)


def test_speakers_come_in_order() -> None:
    train, dev = speakers(PLAY)
    assert [name for _, name in train] == ["Romeo"] * 6
    assert [text[-2] for text, _ in train + dev] == [str(number) for number in range(9)]


def test_sets_are_tasks(tmp_path: Path) -> None:
    text = tmp_path / "data" / "text"
    text.mkdir(parents=True)
    (text / "peps.txt").write_text(PEPS)
    (text / "eips.txt").write_text(EIPS)
    with pytest.raises(BadInput, match=r"tinyshakespeare.txt: No such file"):
        write_sets(tmp_path / "sets", tmp_path / "data")
    (text / "tinyshakespeare.txt").write_text(PLAY + PLAY.replace("Romeo", "Juliet").replace("soft", "hush"))
    documents_folder, speakers_folder = write_sets(tmp_path / "sets", tmp_path / "data")
    assert len(isthmus.task(f"classify:{documents_folder}").labelled) == 40
    assert isthmus.task(f"classify:{speakers_folder}").label_names == ("Juliet", "Romeo")
