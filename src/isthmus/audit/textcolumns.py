"""What can be said of a text in plain words: length, rare words, negation, digits and the like, as columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from isthmus.audit.slices import Column

RARE = 5  # a word that occurs less often than this in the texts to compare with is rare
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_NEGATIONS = "no not never none nothing nobody nowhere neither nor cannot without hardly barely n't nt"
_NEGATION = frozenset(_NEGATIONS.split(" "))
_MOST_WORDS = 200


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters; ``don't`` gives ``do`` and ``n't``, also where written apart."""
    found = []
    for word in _WORD.findall(text.lower().replace("\u2019", "'")):
        if word.endswith("n't"):
            found += [part for part in (word[:-3], "n't") if part]
        else:
            found.append(word)
    return found


def text_columns(texts: Sequence[Sequence[str]], compare_with: Sequence[str] = ()) -> tuple[Column, ...]:
    """Return columns that describe examples of one text or of a pair.

    Parameters
    ----------
    texts : sequence of sequences of str
        One or two texts an example.
    compare_with : sequence of str
        Where word frequencies are from, such as the training texts; the texts themselves if empty.
    """
    counts = Counter(word for text in compare_with or [t for pair in texts for t in pair] for word in words_of(text))
    words = [[words_of(text) for text in pair] for pair in texts]
    joined = [[word for side in sides for word in side] for sides in words]
    whole = [" ".join(pair) for pair in texts]
    negated = [[bool(_NEGATION.intersection(side)) for side in sides] for sides in words]
    columns = [
        Column("words", tuple(len(each) for each in joined)),
        Column("rare words", tuple(sum(counts[word] < RARE for word in each) for each in joined)),
        Column("longest word, letters", tuple(max(map(len, each), default=0) for each in joined)),
        Column("has a negation", tuple(any(each) for each in negated)),
        Column("has digits", tuple(any(letter.isdigit() for letter in text) for text in whole)),
        Column("has a question", tuple("?" in text for text in whole)),
        Column("has a comma", tuple("," in text for text in whole)),
        Column("has quotation marks", tuple(any(mark in text for mark in '"“”«»') for text in whole)),
        Column("has a name", tuple(any(_named(text) for text in pair) for pair in texts)),
    ]
    if texts and all(len(pair) == 2 for pair in texts):
        shared = [len(set(a) & set(b)) / max(1, len(set(a) | set(b))) for a, b in words]
        digits = [[re.findall(r"\d+", text) for text in pair] for pair in texts]
        columns += [
            Column("shared words, share", tuple(shared)),
            Column("difference in words", tuple(abs(len(a) - len(b)) for a, b in words)),
            Column("same words, other order", tuple(sorted(a) == sorted(b) and a != b for a, b in words)),
            Column("negation on one side", tuple(a != b for a, b in negated)),
            Column("other digits", tuple(sorted(a) != sorted(b) for a, b in digits)),
        ]
    return tuple(columns)


def word_columns(texts: Sequence[Sequence[str]]) -> tuple[Column, ...]:
    """Return a column of yes and no for each word that is in 2 to 50 % of the examples, the 200 most frequent."""
    sets = [{word for text in pair for word in words_of(text)} for pair in texts]
    counts = Counter(word for each in sets for word in each)
    low, high = max(10, 0.02 * len(sets)), 0.5 * len(sets)
    fitting = sorted((word for word, count in counts.items() if low <= count <= high), key=lambda w: (-counts[w], w))
    return tuple(Column(f"has «{word}»", tuple(word in each for each in sets)) for word in fitting[:_MOST_WORDS])


def _named(text: str) -> bool:
    """Return whether a word after the first begins with a capital, though not the whole text does."""
    words = text.split()[1:]
    capital = [word[:1].isupper() for word in words if word[:1].isalpha() and word not in ("I", "I'm", "I'll")]
    return any(capital) and not (len(capital) > 1 and all(capital))
