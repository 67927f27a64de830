"""A short run of the fuzzer; what it found before; and that it finds what it is there to find."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

import fuzz
import fuzz_cases
from isthmus.errors import BadArtifact
from isthmus.storage import blobs, entropy
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Codebook, Uniform, decode, exponents_of


def test_damaged_blobs_are_read_or_refused() -> None:
    tally = fuzz.fuzz(2000, seed=1)
    assert tally.failures == []
    assert tally.inputs == 2000
    assert tally.outcomes["refused"] > 1000
    assert {"Uniform", "Codebook", "Product"} & set(tally.outcomes), "no damage got past the checksums"


def test_the_same_number_is_the_same_input() -> None:
    valid = fuzz_cases.valid_blobs()
    cases = [fuzz_cases.make_case(3, number, valid) for number in range(40)]
    assert cases == [fuzz_cases.make_case(3, number, valid) for number in range(40)]
    assert len({case.data for case in cases}) > 35
    seen = {name for number in range(200) for name in fuzz_cases.make_case(3, number, valid).kind.split("+")}
    assert seen == {*(mutation.__name__ for mutation in fuzz_cases.MUTATIONS), "another shape", "sealed"}


def test_every_checksum_is_made_right() -> None:
    """Checksums of all levels, found by trying every stretch, are spoilt; what comes out is what the writer wrote."""
    product = fuzz_cases.seeds()[-1]
    good = pack(product)
    sealed = {
        end
        for start in range(len(good))
        for end in range(start + 1, len(good) - 3)
        if zlib.crc32(good[start:end]) == struct.unpack("<I", good[end : end + 4])[0]
    }
    assert len(sealed) == 9, "of the blob, of its two factors, and of three streams in each"
    torn = bytearray(good)
    for end in sealed:
        torn[end] ^= 255
    assert fuzz_cases.resealed(bytes(torn), product.shape) == good
    assert blobs.zlib is entropy.zlib is zlib


def test_what_is_sound_is_read_within_the_limits() -> None:
    tracemalloc.start()
    try:
        for (data, shape), coded in zip(fuzz_cases.valid_blobs(), fuzz_cases.seeds(), strict=True):
            case = fuzz.Case(data, shape, "sound")
            outcome, _, memory = fuzz.check(case)
            assert outcome == type(coded).__name__
            assert memory <= fuzz.TIMES * fuzz.content_bytes(case) + fuzz.SPARE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("columns", [30, 300])
@pytest.mark.parametrize("value", [0, -3, 5])
def test_a_long_run_of_one_integer_is_read(columns: int, value: int) -> None:
    """The coder starts at zero and would write nothing at all for a run of the lowest symbol."""
    integers = np.full((1000, columns), value, dtype=np.int32)
    integers[:20, 0] = value + np.arange(20)
    grid = exponents_of([[1]])
    for matrix in (integers, np.full_like(integers, value)):
        coded = Uniform(matrix, (grid,))
        np.testing.assert_array_equal(decode(unpack(pack(coded), coded.shape)), matrix)
    indices = np.zeros((1000, columns), dtype=np.int32)
    indices[0, :5] = np.arange(5)
    table = Codebook(np.arange(5, dtype=np.float16).reshape(1, 1, 5, 1), indices)
    np.testing.assert_array_equal(decode(unpack(pack(table), table.shape)), indices)


@pytest.mark.parametrize("fault", ["raises", "takes memory", "takes time", "another shape"])
def test_a_faulty_reader_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(data: bytes, shape: tuple[int, int]) -> Any:
        if fault == "raises":
            raise IndexError("beyond the end")
        if fault == "takes memory":
            np.ones(1 << 27, dtype=np.uint8)
        if fault == "takes time":
            monkeypatch.setattr(fuzz, "SLOW_SECONDS", -1.0)
        if fault == "another shape":
            return Uniform(np.zeros((1, 2), dtype=np.int32), (np.zeros((1, 1), dtype=np.int32),))
        raise BadArtifact("refused")

    monkeypatch.setattr(fuzz, "unpack", faulty)
    tally = fuzz.fuzz(3)
    assert len(tally.failures) == 3
    assert all("bytes.fromhex" in failure for failure in tally.failures)
