"""Entropy coding: integers as a bitstream near their entropy, under integer tables that the stream itself carries.

Every symbol has a context, which reader and writer know beforehand; each context has its own table of frequencies, so
that integers of unlike spread share a stream. The coder is asymmetric numeral systems (Duda 2009) from constriction;
frequencies are integers that sum to 2^16, so that any machine decodes the same symbols.

A stream is: version (1 byte); the numbers of symbols and contexts, the smallest symbol (zigzag), the size of the
alphabet and the words of 4 bytes that follow (varints); a table for each context (varints); the words; a CRC-32 of
all before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadArtifact

Integers = npt.NDArray[np.int32]
Contexts = npt.NDArray[np.uint8]

VERSION = 1
PRECISION = 16
TOTAL = 1 << PRECISION
MOST_SYMBOLS = 1 << 12
"""The largest alphabet: from the smallest to the largest integer."""
MOST_CONTEXTS = 256
MOST_FREQUENT = TOTAL - 512
"""No symbol may be more frequent: each then takes at least 0.011 bits, which bounds what a short stream can claim."""
_LEAST_BITS = PRECISION - np.log2(MOST_FREQUENT)
_SPARE_WORDS = 2  # the coder's own state


@dataclass(frozen=True)
class Header:
    """What stands before the words of a stream: ``tables`` has the shape ``(contexts, symbols)``."""

    count: int
    low: int
    tables: npt.NDArray[np.int64]
    words: int
    start: int


Part = tuple[Integers, Contexts]
"""Symbols with their contexts, both of shape ``(count,)``."""


def encode(parts: Sequence[Part]) -> bytes:
    """Return integers as a stream.

    Parameters
    ----------
    parts : sequence of Part
        What is read in one go; the contexts of a part may follow from the symbols of those before it. At most
        `MOST_SYMBOLS` lie between the smallest and the largest symbol.

    Raises
    ------
    ValueError
        If there is nothing to code, or the alphabet is too large.
    """
    low, counts = count(parts)
    held = int(counts.sum())
    tables = np.stack([frequencies(row) for row in counts])
    words = _words(parts, low, tables)
    if held * _LEAST_BITS > 32 * (len(words) + _SPARE_WORDS):
        # The coder starts at 0 and stays there while it is given the lowest symbol: a long run leaves no trace, and the
        # reader would not believe it. With a symbol below the lowest, which never occurs, every one counts.
        low, tables = low - 1, np.stack([frequencies(row) for row in np.pad(counts, ((0, 0), (1, 0)))])
        words = _words(parts, low, tables)
    head = bytearray([VERSION])
    for number in (held, len(tables), zigzag(low), tables.shape[1], len(words), *tables.ravel().tolist()):
        head += varint(number)
    body = bytes(head) + words.tobytes()
    return body + struct.pack("<I", zlib.crc32(body))


def _words(parts: Sequence[Part], low: int, tables: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    from constriction import stream

    coder = stream.stack.AnsCoder()
    # A stack: what is read first is written last.
    for symbols, contexts in reversed(parts):
        for context in reversed(np.flatnonzero(np.bincount(contexts)).tolist()):
            own = np.ascontiguousarray(symbols[contexts == context] - low, dtype=np.int32)
            coder.encode_reverse(own, stream.model.Categorical(tables[context] / TOTAL, perfect=False))
    return np.asarray(coder.get_compressed(), dtype="<u4")


class Decoder:
    """Reads a stream, part by part.

    Parameters
    ----------
    data : bytes
    count : int
        How many symbols will be read.

    Raises
    ------
    BadArtifact
        If the stream is truncated, changed, of a later version, or cannot hold so many symbols.
    """

    def __init__(self, data: bytes, count: int) -> None:
        from constriction import stream

        head = read_header(data)
        if count != head.count:
            raise _damaged(f"it holds {head.count} symbols where {count} are expected")
        if count * _LEAST_BITS > 32 * (head.words + _SPARE_WORDS):
            raise _damaged(f"{count} symbols do not fit into {head.words} words")
        words = np.frombuffer(data, dtype="<u4", count=head.words, offset=head.start).astype(np.uint32)
        try:
            self._coder = stream.stack.AnsCoder(words)
        except ValueError:
            raise _damaged("its words are not those of a coder") from None
        self._models = [stream.model.Categorical(table / TOTAL, perfect=False) for table in head.tables]
        self._low, self._left = np.int32(head.low), count

    def take(self, contexts: Contexts) -> Integers:
        """Return the next part: one symbol for each context, shape ``(count,)``."""
        self._left -= len(contexts)
        held = np.bincount(contexts)
        if len(held) > len(self._models):
            raise _damaged(f"context {len(held) - 1} has no table")
        read = [self._coder.decode(self._models[context], int(held[context])) for context in np.flatnonzero(held)]
        if len(read) == 1:
            return np.asarray(read[0] + self._low)
        symbols = np.empty(len(contexts), dtype=np.int32)
        symbols[np.argsort(contexts, kind="stable")] = np.concatenate(read)
        symbols += self._low
        return symbols

    def close(self) -> None:
        """Check that all was read.

        Raises
        ------
        BadArtifact
            If something is left over.
        """
        if self._left or not self._coder.is_empty():
            raise _damaged("words are left over")


def read_header(data: bytes) -> Header:
    """Read what stands before the words, believing nothing before it is checked.

    Raises
    ------
    BadArtifact
        As in ``decode``.
    """
    if len(data) < 5 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise _damaged("its checksum does not match")
    if data[0] > VERSION:
        raise BadArtifact(f"bitstream: written by a newer isthmus (version {data[0]}); upgrade isthmus")
    end = len(data) - 4
    count, at = read_varint(data, 1, end)
    contexts, at = read_varint(data, at, end)
    low, at = read_varint(data, at, end)
    size, at = read_varint(data, at, end)
    words, at = read_varint(data, at, end)
    if data[0] < 1 or not 1 <= contexts <= MOST_CONTEXTS or not 2 <= size <= MOST_SYMBOLS:
        raise _damaged(f"{contexts} contexts of {size} symbols")
    if contexts * size > end - at:  # a frequency takes a byte at least
        raise _damaged("its tables are cut short")
    tables = np.empty((contexts, size), dtype=np.int64)
    for index in range(contexts * size):
        tables.flat[index], at = read_varint(data, at, end)
    if (tables < 1).any() or (tables > MOST_FREQUENT).any() or (tables.sum(1) != TOTAL).any():
        raise _damaged(f"a table does not sum to {TOTAL}")
    if 4 * words != end - at:
        raise _damaged(f"it holds {end - at} bytes of words where {4 * words} are announced")
    return Header(count, (low >> 1) ^ -(low & 1), tables, words, at)


def count(parts: Sequence[Part]) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the smallest symbol, and how often each occurs in each context, shape ``(contexts, symbols)``.

    Raises
    ------
    ValueError
        If there is no symbol, or too many lie between the smallest and the largest.
    """
    filled = [(symbols, contexts) for symbols, contexts in parts if len(symbols)]
    if not filled:
        raise ValueError("there is nothing to code")
    low, high = (int(pick([pick(symbols) for symbols, _ in filled])) for pick in (np.min, np.max))
    size, most = max(2, high - low + 1), 1 + max(int(contexts.max()) for _, contexts in filled)
    if size > MOST_SYMBOLS:
        raise ValueError(f"integers from {low} to {high} are too many to code; at most {MOST_SYMBOLS}")
    counts = np.zeros(most * size, dtype=np.int64)
    for symbols, contexts in filled:
        counts += np.bincount(contexts.astype(np.int64) * size + (symbols - low), minlength=most * size)
    return low, counts.reshape(most, size)


def frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return whole frequencies that sum to `TOTAL`, none below 1 or above `MOST_FREQUENT`, close to the counts.

    Of a symbol that occurs, the largest remainders are rounded up (Hamilton's method); others get the least there is.
    """
    size = len(counts)
    total = max(int(counts.sum()), 1)
    exact = np.minimum(1 + counts * (TOTAL - size) / total, MOST_FREQUENT)
    whole = np.floor(exact).astype(np.int64)
    missing = TOTAL - int(whole.sum())
    order = np.argsort(-(exact - whole), kind="stable")
    order = order[whole[order] < MOST_FREQUENT]
    while missing > 0:
        # A peaked table is short by many rounds of one each: as many at once as every symbol can take.
        rounds = min(missing // len(order), MOST_FREQUENT - int(whole[order].max()))
        whole[order] += rounds
        missing -= rounds * len(order)
        order = order[whole[order] < MOST_FREQUENT]
        share = min(missing, len(order))
        whole[order[:share]] += 1
        missing -= share
        order = order[whole[order] < MOST_FREQUENT]
    return whole


def coded_bytes(counts: npt.NDArray[np.int64]) -> float:
    """Return the bytes that a stream with these counts, shape ``(contexts, symbols)``, is predicted to take."""
    return message_bytes(counts) + table_bytes(counts) + 4 + 14


def message_bytes(counts: npt.NDArray[np.int64]) -> float:
    """Return the bytes that the symbols themselves are predicted to take."""
    tables = np.stack([frequencies(row) for row in counts])
    return float((counts * (PRECISION - np.log2(tables))).sum()) / 8


def table_bytes(counts: npt.NDArray[np.int64]) -> int:
    """Return the bytes that the tables take."""
    tables = np.stack([frequencies(row) for row in counts])
    return int((1 + (tables >= 1 << 7) + (tables >= 1 << 14)).sum())


def zigzag(number: int) -> int:
    """Return a whole number as one that is not negative: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return 2 * number if number >= 0 else -2 * number - 1


def varint(number: int) -> bytes:
    """Return a number as bytes of seven bits, the lowest first; all but the last have the eighth bit set."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place behind it.

    Raises
    ------
    BadArtifact
        If the data ends first.
    """
    number = 0
    for shift in range(0, 35, 7):
        if at >= end:
            raise _damaged("it is cut short")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _damaged("a number in it has no end")


def _damaged(reason: str) -> BadArtifact:
    return BadArtifact(f"bitstream: truncated or damaged ({reason}); restore the file or narrow the network again")
