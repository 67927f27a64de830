"""Reading unlabelled text: files to passages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from isthmus.errors import BadInput

LONGEST_PASSAGE = 2000  # characters; more than the longest input of the encoders here

# Paragraphs of wrapped prose have a few lines each. With more lines than this a blank line is a stray one
# in a file of one passage a line, and joining would lose nearly all of it to the cap.
WRAPPED_LINES = (2.0, 30.0)

_NEWLINE = re.compile(r"\r\n|\r|\n")


def read_text(path: Path) -> str:
    """Return the contents of a UTF-8 file, without a byte order mark.

    Raises
    ------
    BadInput
        If the file is missing, unreadable, empty, binary or not UTF-8.
    """
    data = read_bytes(path)
    if b"\0" in data:
        raise BadInput(f"{path}: a binary file, not text; give a file of UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise BadInput(f"{path}: the file is empty; give a file with text in it")
    return text


def read_bytes(path: Path) -> bytes:
    """Return the contents of a file that is not empty.

    Raises
    ------
    BadInput
        If the file is missing, unreadable or empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from error
    if not data:
        raise BadInput(f"{path}: the file is empty; give a file with data in it")
    return data


def split_passages(text: str) -> list[str]:
    """Return the passages of a text: its paragraphs if it is wrapped prose, otherwise its lines.

    It is wrapped prose if blank lines separate paragraphs of several lines (2 to 30 on average); the lines of a
    paragraph are then joined with spaces.
    """
    lines = [line.strip() for line in _NEWLINE.split(text)]
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    if len(paragraphs) > 1:
        average = sum(map(len, paragraphs)) / len(paragraphs)
        if WRAPPED_LINES[0] <= average <= WRAPPED_LINES[1]:
            return [" ".join(paragraph) for paragraph in paragraphs]
    return [line for line in lines if line]


def clean_passages(passages: Iterable[object], where: str) -> list[str]:
    """Strip passages, cap them at 2000 characters, drop empty and repeated ones; keep the order.

    Raises
    ------
    BadInput
        If a passage is not a string.
    """
    kept: dict[str, None] = {}
    for index, passage in enumerate(passages):
        if not isinstance(passage, str):
            kind = type(passage).__name__
            raise BadInput(f"{where}: passage {index} is a {kind}, not a string; give an iterable of strings")
        text = passage.strip()[:LONGEST_PASSAGE].rstrip()
        if text:
            kept.setdefault(text)
    return list(kept)
