"""The benchmark of the bitstream: what it writes, what it concludes; on a few made-up matrices."""

from __future__ import annotations

import lzma
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from benchmarks.bitstream import (
    ONE,
    bitstream_targets,
    by_turns,
    coded_at,
    measure_step,
    narrowest,
    section,
    write_all,
)

import networks
from isthmus.errors import BadInput
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Uniform, decode


def uniform(spread: float, seed: int = 0) -> Uniform:
    rng = np.random.default_rng(seed)
    integers = np.rint(rng.normal(0, spread, (80, 64))).astype(np.int32)
    return Uniform(integers, (rng.integers(-60, -40, (80, 1)).astype(np.int32),))


def test_all_three_write_the_same_integers() -> None:
    codes = {"narrow": uniform(1.5), "wide": uniform(90.0)}
    arrays = [codes["narrow"].integers.astype(np.int8), codes["wide"].integers.astype(np.int16)]
    assert [narrowest(code).dtype for code in codes.values()] == [np.int8, np.int16]
    written = write_all(codes)
    assert written.sizes == {
        "isthmus": sum(len(pack(replace(code, scales=ONE))) for code in codes.values()),
        "zstd": sum(len(zstandard.compress(array.tobytes(), 19)) for array in arrays),
        "xz": sum(len(lzma.compress(array.tobytes(), preset=9)) for array in arrays),
        "with scales": sum(len(pack(code)) for code in codes.values()),
    }
    with pytest.raises(BadInput, match="more than 16 bits"):
        narrowest(uniform(1e5))


def test_every_reader_gets_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"narrow": uniform(1.5), "wide": uniform(90.0)}
    written = write_all(codes)
    for name, read in written.reads.items():
        found: list[np.ndarray] = []
        monkeypatch.setattr("benchmarks.bitstream.decode", lambda code, to=found: to.append(decode(code)))
        read()
        assert len(found) == 2, name
        for array, code in zip(found, codes.values(), strict=True):
            np.testing.assert_array_equal(array, decode(code))


def test_readers_run_by_turns() -> None:
    calls: list[str] = []
    seconds = by_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_a_network_is_coded_at_one_step() -> None:
    network = networks.tiny("bert", num_hidden_layers=1)
    name = "encoder.layer.0.output.dense.weight"
    weight = network.model.get_parameter(name).detach().numpy()
    own = Sensitivity(np.ones(weight.shape[0]), np.ones(weight.shape[1]))
    code = coded_at(network, {name: own}, 0.1)[name]
    # Steps are rounded to sixteenths of an octave.
    assert np.abs(decode(code) - weight).max() <= 0.05 * 2 ** (1 / 32) + 1e-6
    row = measure_step({name: code}, 0.1, 1)
    assert row["weights"] == weight.size
    assert row["bits"] == pytest.approx(8 * len(pack(code)) / weight.size)


def made_up(ours: int, speed: float) -> dict[str, Any]:
    sizes = {"isthmus": ours, "zstd": 1000, "xz": 1100, "with scales": ours + 10}
    speeds = {"isthmus": speed, "zstd": 900.0, "xz": 50.0}
    return {"step": 1e-4, "weights": 4000, "bits": 2.0, "bytes": sizes, "mb_per_second": speeds}


def test_targets_are_held_by_the_worst_row() -> None:
    assert [target.met for target in bitstream_targets([made_up(899, 101), made_up(850, 140)])] == [True] * 3
    assert [target.met for target in bitstream_targets([made_up(850, 101), made_up(910, 140)])] == [False, True, True]
    assert [target.met for target in bitstream_targets([made_up(850, 99), made_up(850, 140)])] == [True, True, False]
    assert {target.met for target in bitstream_targets([])} == {None}


def test_section() -> None:
    loading = {"float32": 0.5, "coded": 1.5, "float32_bytes": 9e7, "coded_bytes": 6e6}
    text = "\n".join(section({"rows": [made_up(850, 140)], "loading": loading}))
    assert "| 2.00 | 0.00 | 0.00 | 0.00 (-15.0%) | 0.00 (-22.7%) | 140 | 900 | 50 |" in text
    assert "6.0 MB takes 1.5 s" in text
