"""Reading running text for language models: documents to pieces, short ones to train on, long ones to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from isthmus.errors import BadInput
from isthmus.tasks.passages import read_text
from isthmus.tasks.splitting import split, task_of
from isthmus.tasks.task import LIKELIHOOD, HeldOut, Task

TRAIN_CHARACTERS = 600
"""About what recovery and the probe read of one text: more of it would be cut off."""
HELD_OUT_CHARACTERS = 4000
"""Far more than most tokens need before them, and several windows of a small network."""
_LEAST_CHARACTERS = 16


def pieces(text: str, size: int) -> list[str]:
    """Return the consecutive pieces of a text of at most ``size`` characters, cut behind a space where there is one."""
    found = []
    start = 0
    while start < len(text):
        stop = min(start + size, len(text))
        if stop < len(text):
            cut = max(text.rfind(" ", start + size // 2, stop), text.rfind("\n", start + size // 2, stop))
            stop = cut + 1 if cut >= 0 else stop
        if len(text[start:stop].strip()) >= _LEAST_CHARACTERS:
            found.append(text[start:stop])
        start = stop
    return found


def read_documents(files: Iterable[Path]) -> list[str]:
    """Return the long pieces of text files, in order."""
    return [piece for file in files for piece in pieces(read_text(file), HELD_OUT_CHARACTERS)]


def given_documents(texts: Iterable[object], where: str) -> list[str]:
    """Return the long pieces of texts in memory.

    Raises
    ------
    BadInput
        If one is not a string.
    """
    found = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(
                f"{where}: text {index} is a {type(text).__name__}, not a string; give an iterable of strings"
            )
        found += pieces(text, HELD_OUT_CHARACTERS)
    return found


def language_task(name: str, where: str, train: Sequence[str], held_out: Sequence[str] | None, seed: int) -> Task:
    """Return a task of continuing texts.

    Parameters
    ----------
    train : sequence of str
        Long pieces; they are cut into short ones.
    held_out : sequence of str or None
        Long pieces; None: a tenth of the others.

    Raises
    ------
    BadInput
        If there is too little text.
    """
    if held_out is None:
        if len(train) < 2:
            raise BadInput(
                f"{where}: too little text to hold some out; give more than {HELD_OUT_CHARACTERS:,} characters, "
                "or a folder with train and dev files"
            )
        train, held_out = split(list(dict.fromkeys(train)), seed=seed, least=1)
    elif not held_out:
        raise BadInput(f"{where}: no text is held out to measure on; give some")
    short = [piece for text in train for piece in pieces(text, TRAIN_CHARACTERS)]
    return task_of("lm", name, short, HeldOut(examples=tuple(held_out)), LIKELIHOOD)
