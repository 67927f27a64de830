"""The list of methods is data, and the tables in docs/ are written from it."""

from __future__ import annotations

import json
from pathlib import Path

from isthmus.methods import markdown, methods, read_verdicts, write_docs

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"


def test_docs_are_up_to_date() -> None:
    assert markdown(methods()) in DOCS.read_text(encoding="utf-8"), "run make docs"


def test_docs_keep_what_is_around_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "methods.md"
    write_docs(path)
    first = path.read_text(encoding="utf-8")
    path.write_text(first.replace("# Methods", "# Ours\n\nBefore.") + "\nAfter.\n", encoding="utf-8")
    write_docs(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Ours\n\nBefore.")
    assert text.endswith("After.\n")
    assert text.count("| `vib` |") == 1


def test_verdicts(tmp_path: Path) -> None:
    (tmp_path / "vtrans.json").write_text(json.dumps({"verdict": "holds"}))
    (tmp_path / "other.json").write_text(json.dumps({"slug": "fisher-2022", "verdict": "holds in part"}))
    (tmp_path / "figures.json").write_text(json.dumps([1, 2]))
    assert read_verdicts(tmp_path) == {"vtrans": "holds", "fisher-2022": "holds in part"}
    assert read_verdicts(tmp_path / "missing") == {}
