"""Two small labelled sets for the transfer card, made of the texts in ``ISTHMUS_DATA``.

``python -m benchmarks.transfer_sets FOLDER`` writes ``documents`` (is a paragraph from a PEP or from an EIP?) and
``speakers`` (which of the eight who speak most in Shakespeare's plays says this?), each with train and dev files. Dev
paragraphs are from other documents than train ones; dev speeches come after the train ones.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from isthmus.errors import BadInput
from isthmus.tasks.data import data_folder

TRAIN, DEV = 2000, 1000
SPEAKERS = 8
_PROSE = re.compile(r"[A-Z][a-z]*\s.*[.!?]", re.DOTALL)
_DOCUMENT = {"pep": re.compile(r"(?m)^PEP: \d+$"), "eip": re.compile(r"(?m)^eip: \d+$")}

Row = tuple[str, str]


def prose(document: str) -> list[str]:
    """Return a document's paragraphs of 8 to 60 words of plain prose that do not name their kind."""
    found = []
    for block in re.split(r"\n\s*\n", document):
        text = " ".join(block.split())
        named = re.search(r"\b(PEP|EIP|ERC|Python|Ethereum)", text, re.IGNORECASE)
        if 8 <= len(text.split()) <= 60 and _PROSE.fullmatch(text) and not named:
            found.append(text)
    return found


def documents(peps: str, eips: str, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Return train and dev paragraphs with ``pep`` or ``eip``, as many of each; no document is in both."""
    rng = np.random.default_rng(seed)
    train: list[Row] = []
    dev: list[Row] = []
    for label, text in (("pep", peps), ("eip", eips)):
        starts = [match.start() for match in _DOCUMENT[label].finditer(text)]
        pieces = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        order = rng.permutation(len(pieces)).tolist()
        cut = len(order) // 3
        for rows, places, most in ((dev, order[:cut], DEV // 2), (train, order[cut:], TRAIN // 2)):
            paragraphs = list(dict.fromkeys(part for place in places for part in prose(pieces[place])))
            rows += [(paragraphs[index], label) for index in rng.permutation(len(paragraphs))[:most].tolist()]
    return train, dev


def speakers(plays: str) -> tuple[list[Row], list[Row]]:
    """Return train and dev speeches of at least six words by the eight who speak most, the first two thirds of each."""
    speeches: list[Row] = []
    for block in re.split(r"\n\s*\n", plays):
        name, _, words = block.strip().partition(":\n")
        text = " ".join(words.split())
        if len(text.split()) >= 6 and "\n" not in name:
            speeches.append((" ".join(text.split()[:60]), name.title()))
    most = [name for name, _ in Counter(name for _, name in speeches).most_common(SPEAKERS)]
    train: list[Row] = []
    dev: list[Row] = []
    for name in most:
        own = list(dict.fromkeys(text for text, who in speeches if who == name))
        cut = 2 * len(own) // 3
        train += [(text, name) for text in own[:cut]]
        dev += [(text, name) for text in own[cut:]]
    return train, dev


def write_sets(folder: Path, data: Path) -> list[Path]:
    """Write both sets and return their folders.

    Raises
    ------
    BadInput
        If a text is missing or the folder cannot be written.
    """
    try:
        peps, eips, plays = (
            (data / "text" / name).read_text(encoding="utf-8")
            for name in ("peps.txt", "eips.txt", "tinyshakespeare.txt")
        )
        made = []
        for name, parts in (("documents", documents(peps, eips)), ("speakers", speakers(plays))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            made.append(folder / name)
            for part, rows in zip(("train", "dev"), parts, strict=True):
                lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
                (folder / name / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; set ISTHMUS_DATA, or give another folder") from error
    return made


def main(arguments: list[str]) -> int:
    """Write the sets into the folder that is given."""
    data = data_folder()
    if len(arguments) != 1 or data is None:
        print("error: give one folder to write to, and set ISTHMUS_DATA to the folder of data", file=sys.stderr)
        return 2
    try:
        for path in write_sets(Path(arguments[0]), data):
            print(path)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
