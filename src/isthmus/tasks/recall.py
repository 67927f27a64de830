"""Recall lines: what can only be answered by looking far back, made anew from a seed.

Three kinds, mixed with text: *pairs*, names with numbers and then the names again; *copies*, random words and then the
same words; *needles*, one sentence with a number within a document, asked for at its end. A cache that lost the entry
cannot answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from isthmus.errors import BadInput

Ids = npt.NDArray[np.int32]
Kind = Literal["pairs", "copies", "needles"]
KINDS: tuple[Kind, ...] = ("pairs", "copies", "needles")
LEAST = 48
"""Tokens of the shortest text there is."""
SHORTEST = 128
"""Tokens of a text below which there is no looking far back."""
CHUNK = 8
"""Tokens of an answer's text that are read at once through a cache."""
_RUN = 8
"""Tokens of a copy that are one answer: of a whole copy, one wrong token in hundreds would leave nothing."""
_FIRST = "amber birch cedar delta ember flint gable hazel ivory jumbo kettle linen maple noble olive pearl quartz river"
_SECOND = (
    "anchor basket candle dragon engine falcon garden hammer island jacket kernel ladder magnet needle orchid pillar"
)


@dataclass(frozen=True)
class Recall:
    """A text with answers in it.

    Parameters
    ----------
    ids : ndarray of int32, shape ``(tokens,)``
    answers : tuple of (int, int)
        Where each answer begins and ends: its tokens follow from what came long before.
    """

    ids: Ids
    answers: tuple[tuple[int, int], ...]


def recall(tokenizer: Any, kind: Kind, length: int, random: np.random.Generator, filler: Ids | None = None) -> Recall:
    """Return a text of about ``length`` tokens, never more.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    filler : ndarray of int32 or None
        Text that a needle is put into; at least ``length`` tokens.

    Raises
    ------
    BadInput
        If the kind is not known, the length is below `LEAST`, or a needle has no filler.
    """
    if kind not in KINDS or length < LEAST:
        raise BadInput(f"recall: kind {kind!r} of {length} tokens; choose {', '.join(KINDS)}, and {LEAST} or more")
    if kind == "needles":
        if filler is None or len(filler) < length:
            raise BadInput(f"recall: needles need {length} tokens of text to lie in; give more text")
        return _needles(tokenizer, length, random, filler)
    return _pairs(tokenizer, length, random) if kind == "pairs" else _copies(tokenizer, length, random)


def recalled(
    model: Any,
    tokenizer: Any,
    length: int,
    text: Ids,
    *,
    seed: int = 0,
    count: int = 8,
    cache: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Return of each kind the share of answers that are whole, over ``count`` texts of ``length`` tokens.

    Parameters
    ----------
    model : transformers causal model
    text : ndarray of int32
        What needles are put into; at least ``length`` tokens.
    seed : int
        Of the texts: the same ones for every model with this tokenizer.
    cache : callable, optional
        Returns an empty cache to read a text through; see `answered`.
    """
    random = np.random.default_rng((seed, 1 << 20))
    return {
        str(kind): float(
            np.mean(
                [
                    answered(model, recall(tokenizer, kind, length, random, text), cache() if cache else None)
                    for _ in range(count)
                ]
            )
        )
        for kind in KINDS
    }


def answered(model: Any, example: Recall, cache: Any = None) -> float:
    """Return the share of the answers of which every token is the network's likeliest.

    Parameters
    ----------
    cache : transformers Cache, optional
        What comes before the first answer is then read at once, and the rest through it, `CHUNK` tokens at a time.
    """
    ids = torch.from_numpy(example.ids.astype(np.int64))
    with torch.no_grad():
        if cache is None:
            guessed = model(ids[None], use_cache=False).logits[0].argmax(-1)
        else:
            first = example.answers[0][0]
            parts = [ids[:first], *torch.split(ids[first:], CHUNK)]
            guessed = torch.cat([model(part[None], past_key_values=cache).logits[0].argmax(-1) for part in parts])
    return float(np.mean([bool((guessed[a - 1 : b - 1] == ids[a:b]).all()) for a, b in example.answers]))


def spoken(times: int = 2000) -> list[str]:
    """Return texts of the words that recall lines are made of, so often that a vocabulary learnt on them has each."""
    words = f"{_FIRST} {_SECOND}"
    return [f"List: {words}\nAgain: {words}\nThe code of {words} is"] * times


def spoken_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens of the words that recall lines are made of, rising."""
    return sorted(
        {one for row in _rows(tokenizer, [f" {word}" for word in f"{_FIRST} {_SECOND}".split()]) for one in row}
    )


def _names(random: np.random.Generator, count: int) -> list[str]:
    first, second = _FIRST.split(), _SECOND.split()
    picked = random.choice(len(first) * len(second), size=min(count, len(first) * len(second)), replace=False)
    return [f"{first[one // len(second)]} {second[one % len(second)]}" for one in picked.tolist()]


def _number(random: np.random.Generator) -> str:
    return str(int(random.integers(1000, 10_000)))


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _rows(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def _pairs(tokenizer: Any, length: int, random: np.random.Generator) -> Recall:
    names = _names(random, 200)
    ends = _ids(tokenizer, ".\n")
    asked = _rows(tokenizer, [f"The code of {name} is" for name in names])
    told = _rows(tokenizer, [f" {_number(random)}" for _ in names])
    said = [(name, number, ends) for name, number in zip(asked, told, strict=True)]
    each = max(len(a) + len(b) + len(c) for a, b, c in said)
    said = said[: max(1, length // (2 * each))]
    ids: list[int] = [one for parts in said for part in parts for one in part]
    answers = []
    for at in random.permutation(len(said)).tolist():
        ids += said[at][0]
        answers.append((len(ids), len(ids) + len(said[at][1])))
        ids += said[at][1] + said[at][2]
    return Recall(np.array(ids[:length], dtype=np.int32), tuple(one for one in answers if one[1] <= length))


def _copies(tokenizer: Any, length: int, random: np.random.Generator) -> Recall:
    words = (_FIRST + " " + _SECOND).split()
    first = _ids(tokenizer, "List:")
    again = _ids(tokenizer, "\nAgain:")
    pieces = _rows(tokenizer, [f" {word}" for word in words])
    body: list[int] = []
    while len(first) + len(again) + 2 * len(body) + 24 < length:
        body += pieces[int(random.integers(len(words)))]
    ids = first + body + again + body
    start = len(first) + len(body) + len(again)
    # The first words of the copy say where it is; what follows them can be known.
    places = range(start + 2, len(ids), _RUN)
    return Recall(np.array(ids, dtype=np.int32), tuple((at, min(at + _RUN, len(ids))) for at in places))


def _taken(parts: list[tuple[list[int], list[int], list[int]]]) -> int:
    """Return the tokens of needles and of the questions for them."""
    return 2 * sum(len(one) for part in parts for one in part)


def _needles(tokenizer: Any, length: int, random: np.random.Generator, filler: Ids) -> Recall:
    count = int(random.integers(1, 4))
    parts = [
        (_ids(tokenizer, f"\nThe code of {name} is"), _ids(tokenizer, f" {_number(random)}"), _ids(tokenizer, ".\n"))
        for name in _names(random, count)
    ]
    while len(parts) > 1 and _taken(parts) > length // 2:
        parts.pop()
    room = length - _taken(parts)
    if room < 0:
        raise BadInput(f"recall: a needle takes {_taken(parts)} tokens of {length}; give a larger vocabulary")
    start = int(random.integers(0, len(filler) - room + 1))
    text = filler[start : start + room].tolist()
    places = sorted(random.integers(0, room + 1, size=len(parts)).tolist(), reverse=True)
    for place, (asked, answer, end) in zip(places, parts, strict=True):
        text[place:place] = asked + answer + end
    answers = []
    for asked, answer, end in parts:
        text += asked
        answers.append((len(text), len(text) + len(answer)))
        text += answer + end
    return Recall(np.array(text, dtype=np.int32), tuple(answers))
