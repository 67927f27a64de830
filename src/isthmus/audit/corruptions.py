"""Corruptions of text: typing errors, letter case and dropped words, at a stated strength and seed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence

from isthmus.errors import BadInput, unknown

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_BESIDE = {
    key: tuple(row[place] for place in (index - 1, index + 1) if 0 <= place < len(row))
    for row in _ROWS
    for index, key in enumerate(row)
}


def corrupt_texts(texts: Sequence[str], kind: str, strength: float, seed: int) -> tuple[str, ...]:
    """Return corrupted texts.

    Parameters
    ----------
    texts : sequence of str
    kind : {"typos", "case", "drops"}
        ``typos``: in each word, with the chance ``strength``, two neighbouring letters change places, or one is left
        out, doubled, or replaced by a key beside it. ``case``: each word, with that chance, is written in capitals, or
        in small letters if it is in capitals. ``drops``: each word, with that chance, is left out, but never all.
    strength : float
        From 0 (nothing happens) to 1.
    seed : int
        The same text under the same seed is corrupted in the same way, wherever it stands.

    Raises
    ------
    BadInput
        If the kind is unknown or the strength not from 0 to 1.
    """
    if kind not in CORRUPTIONS:
        raise unknown("corruption", kind, CORRUPTIONS)
    if not 0 <= strength <= 1:
        raise BadInput(f"corruption {kind}: strength {strength:g}; give a chance from 0 to 1")
    change = CORRUPTIONS[kind]
    found = []
    for text in texts:
        chance = random.Random(zlib.crc32(f"{kind} {seed} {text}".encode()))
        found.append(" ".join(change(text.split(), strength, chance)))
    return tuple(found)


def _typos(words: list[str], strength: float, chance: random.Random) -> list[str]:
    return [_mistype(word, chance) if chance.random() < strength else word for word in words]


def _mistype(word: str, chance: random.Random) -> str:
    letters = [place for place, letter in enumerate(word) if letter.isalpha()]
    if len(letters) < 2:
        return word
    place = chance.choice(letters[:-1])
    how = chance.randrange(4)
    if how == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if how == 1:
        return word[:place] + word[place + 1 :]
    if how == 2:
        return word[: place + 1] + word[place:]
    near = _BESIDE.get(word[place].lower(), (word[place],))
    return word[:place] + chance.choice(near) + word[place + 1 :]


def _case(words: list[str], strength: float, chance: random.Random) -> list[str]:
    return [
        (word.lower() if word.isupper() else word.upper()) if chance.random() < strength else word for word in words
    ]


def _drops(words: list[str], strength: float, chance: random.Random) -> list[str]:
    kept = [word for word in words if chance.random() >= strength]
    return kept or words[:1]


_Change = Callable[[list[str], float, random.Random], list[str]]
CORRUPTIONS: Mapping[str, _Change] = {"typos": _typos, "case": _case, "drops": _drops}
