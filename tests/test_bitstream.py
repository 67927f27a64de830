"""Coded matrices survive the way to bytes and back; damaged bytes are refused in one line."""

from __future__ import annotations

import lzma
import struct
import zlib
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import BadArtifact
from isthmus.storage import entropy
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Codebook, Coded, Outliers, Product, Uniform, decode, exponents_of, scale_of


def uniform(seed: int, rows: int, columns: int, spread: float = 1.5, *, zeros: bool = False) -> Uniform:
    rng = np.random.default_rng(seed)
    own = rng.gamma(2.0, 0.5, (rows, 1))
    integers = np.round(rng.normal(0, spread, (rows, columns)) * own).astype(np.int32)
    grid = exponents_of(rng.uniform(0.01, 0.1, (rows, max(1, columns // 8))))
    across = exponents_of(rng.uniform(0.5, 2, (1, columns)))
    offsets = rng.integers(-3, 4, grid.shape).astype(np.int32) if zeros else None
    return Uniform(integers, (grid, across), offsets)


def codebook(seed: int, rows: int, columns: int, size: int = 2) -> Codebook:
    rng = np.random.default_rng(seed)
    tables = rng.normal(0, 1, (2 if rows > 1 else 1, 1, 5, size)).astype(np.float16)
    return Codebook(tables, rng.integers(0, 5, (rows, columns)).astype(np.int32))


def with_outliers(coded: Coded) -> Coded:
    from dataclasses import replace

    rows, columns = coded.shape
    places = np.unique(np.array([0, rows * columns // 2, rows * columns - 1]))
    return replace(coded, outliers=Outliers(places, np.arange(len(places)).astype(np.float16)))


CODES = {
    "uniform": lambda seed, rows, columns: uniform(seed, rows, columns),
    "uniform with zeros": lambda seed, rows, columns: uniform(seed, rows, columns, zeros=True),
    "codebook": codebook,
    "product": lambda seed, rows, columns: Product(uniform(seed, rows, 1), codebook(seed, 1, columns, 1)),
    "outliers": lambda seed, rows, columns: with_outliers(uniform(seed, rows, columns)),
}


@pytest.mark.parametrize("name", CODES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 70), columns=st.integers(1, 90))
def test_bytes_and_back(name, seed, rows, columns):
    coded = CODES[name](seed, rows, columns)
    data = pack(coded)
    again = unpack(data, coded.shape)
    assert decode(coded).shape == coded.shape
    np.testing.assert_array_equal(decode(again), decode(coded))
    assert pack(again) == data


@pytest.mark.parametrize("far", [6, 7, 8, 300, 2046, 2047, 2048, 100_000])
def test_a_few_large_integers_do_not_widen_the_table(far):
    integers = uniform(0, 200, 64).integers
    held = len(pack(Uniform(integers, (exponents_of([[1]]),))))
    integers[3, 5], integers[7, 0] = far, -far
    coded = Uniform(integers, (exponents_of([[1]]),))
    data = pack(coded)
    np.testing.assert_array_equal(decode(unpack(data, coded.shape)), integers)
    assert len(data) < held + 60


def test_a_uniform_code_is_integers_times_scales():
    integers = np.arange(12, dtype=np.int32).reshape(2, 6)
    grid = exponents_of([[1, 2], [4, 8]])
    across = exponents_of([[1, 1, 1, 1, 1, 0.5]])
    zeros = np.array([[0, -1], [10, 0]], dtype=np.int32)
    expected = [[0, 1, 2, 4, 6, 4], [64, 68, 72, 72, 80, 44]]
    np.testing.assert_array_equal(decode(Uniform(integers, (grid, across), zeros)), expected)
    odd = decode(Uniform(np.ones((1, 5), dtype=np.int32), (exponents_of([[1, 2, 4]]),)))
    np.testing.assert_array_equal(odd, [[1, 1, 2, 2, 4]])  # the last block has fewer


def test_scales_are_powers_of_two_in_16ths():
    exponents = np.arange(-40, 41, dtype=np.int32)
    np.testing.assert_allclose(scale_of(exponents), 2.0 ** (exponents / 16), rtol=1e-7)
    np.testing.assert_array_equal(exponents_of(scale_of(exponents)), exponents)


def test_a_codebook_is_looked_up_block_by_block():
    tables = np.arange(8, dtype=np.float16).reshape(2, 1, 2, 2)
    coded = Codebook(tables, np.array([[0, 1], [1, 0]], dtype=np.int32))
    np.testing.assert_array_equal(decode(coded), [[0, 1, 2, 3], [6, 7, 4, 5]])


def test_a_stream_is_near_its_entropy_and_its_prediction_exact_within_words():
    rng = np.random.default_rng(0)
    symbols = np.round(rng.normal(0, 2, 100_000)).astype(np.int32)
    parts = [(symbols, np.zeros(len(symbols), dtype=np.uint8))]
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    bound = -(shares * np.log2(shares)).sum() * len(symbols) / 8
    held = len(entropy.encode(parts))
    assert bound < held < 1.002 * bound
    assert held == pytest.approx(entropy.coded_bytes(entropy.count(parts)[1]), abs=8)


def test_smaller_than_a_general_compressor():
    integers = uniform(3, 400, 384, spread=1.0).integers
    held = len(pack(Uniform(integers, (exponents_of([[1]]),))))
    assert held < 0.9 * len(lzma.compress(integers.astype(np.int8).tobytes(), preset=9))


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 10**7), min_size=2, max_size=300))
def test_frequencies_always_sum(counts):
    found = entropy.frequencies(np.array(counts))
    assert found.sum() == entropy.TOTAL
    assert found.min() >= 1
    assert found.max() <= entropy.MOST_FREQUENT


@cache
def packed(name):
    coded = CODES[name](1, 9, 40)
    return coded, pack(coded)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused(data):
    coded, good = packed(data.draw(st.sampled_from(sorted(CODES))))
    bad = bytearray(good)
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "sealed"]))
    place = data.draw(st.integers(0, len(good) - 1))
    if kind == "cut":
        bad = bad[:place]
    elif kind == "longer":
        bad += bytes([place % 256])
    else:
        bad[place] ^= 1 << data.draw(st.integers(0, 7))
    if kind == "sealed":  # by someone who mends the checksum
        bad[-4:] = struct.pack("<I", zlib.crc32(bytes(bad[:-4])))
    if kind == "sealed":
        with suppress(BadArtifact):
            assert decode(unpack(bytes(bad), coded.shape)).shape == coded.shape
        return
    with pytest.raises(BadArtifact) as caught:
        unpack(bytes(bad), coded.shape)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), rows=st.integers(1, 10**6), columns=st.integers(1, 10**6))
def test_noise_is_refused_without_allocating_what_is_asked_for(data, rows, columns):
    sealed = b"\1\0" + data + struct.pack("<I", zlib.crc32(b"\1\0" + data))
    for noise in (data, sealed):
        with pytest.raises(BadArtifact):
            unpack(noise, (rows, columns))


def test_another_shape_and_a_later_version_are_refused():
    coded = uniform(0, 8, 16)
    data = pack(coded)
    with pytest.raises(BadArtifact):
        unpack(data, (8, 17))
    later = b"\2" + data[1:-4]
    with pytest.raises(BadArtifact, match="newer isthmus"):
        unpack(later + struct.pack("<I", zlib.crc32(later)), coded.shape)
