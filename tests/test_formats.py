"""Formats side by side: one run over two engines, the rule of recommending, what does not run here, bad input."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small
from isthmus.cli.main import main
from isthmus.cost.latency import Latency
from isthmus.errors import BadInput
from isthmus.export.engines import engine_batch, export_network
from isthmus.export.openvino import has_bfloat16, load_openvino, save_halved
from isthmus.export.quantized import check_precision
from isthmus.export.timing import time_exported
from isthmus.flow.activations import with_rounded_inputs
from isthmus.flow.formats import FORMATS, Format, FormatRow, chosen_formats, mean_cosine, measure_formats, recommend
from isthmus.network import Network
from isthmus.report.formats import render_formats
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task

NAMES = "openvino:float32,openvino:float16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("formats")
    small.write_network(place / "tiny")
    small.write_text(place / "text.txt", 80)
    return place


@cache
def _exports() -> tuple[tempfile.TemporaryDirectory[str], dict[tuple[str, str], Path]]:
    return tempfile.TemporaryDirectory(prefix="isthmus-exports-"), {}


def export_once(network: Network, engine: str, _: Path) -> Path:
    """Export a network to an engine, once in a process for the same weights: it takes most of the time here."""
    folder, found = _exports()
    key = (fingerprint(network), engine)
    if key not in found:
        found[key] = export_network(network, engine, Path(folder.name) / str(len(found)))
    return found[key]


@pytest.fixture(scope="module")
def table(folder: Path) -> dict[str, Any]:
    capture = pytest.MonkeyPatch()
    written: list[str] = []
    capture.setattr("isthmus.cli.measuring_commands.print_text", written.append)
    capture.setattr("isthmus.flow.formats.export_network", export_once)
    options = ["--task", f"text:{folder / 'text.txt'}", "--formats", NAMES, "--threads", "1", "--keep", "90%"]
    try:
        assert main(["formats", str(folder / "tiny"), *options, "-o", str(folder / "page.html"), "--json", "-q"]) == 0
    finally:
        capture.undo()
    found: dict[str, Any] = json.loads("\n".join(written))
    return found


def test_each_format_is_measured_in_its_engine(table: dict[str, Any], folder: Path) -> None:
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == NAMES.split(",")
    whole, half = rows.values()
    assert whole["similarity"] == pytest.approx(1, abs=1e-5)
    assert whole["metric"] == pytest.approx(1, abs=1e-4)
    assert half["bytes"] < 0.8 * whole["bytes"]
    assert half["similarity"] == pytest.approx(1, abs=1e-3)
    assert 0 <= whole["nats"] < 1e-4
    assert 0 <= half["nats"] < 1e-2
    for row in rows.values():
        assert row["relative"] == pytest.approx(row["metric"] / table["metric"])
        for use, batch in (("single-stream", 1), ("batched", 32)):
            assert table["uses"][use]["batch"] == batch
            assert 0 < row["latency"][use]["low_ms"] <= row["latency"][use]["median_ms"]
    assert set(table["recommended"]) == {"single-stream", "batched"}
    assert table["recommended"]["batched"] in rows


def test_engines_are_timed_in_one_run(tmp_path: Path) -> None:
    """OpenVINO reads ONNX files too, so that one small file does for both."""
    import onnx
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    engines = {"first": "openvino", "second": "onnxruntime"}
    batches = [{"x": np.ones((2, 4), dtype=np.float32)}]
    timed = time_exported(dict.fromkeys(engines, tmp_path / "g.onnx"), batches, engine=engines, rounds=2, threads=1)
    assert list(timed) == list(engines)
    assert all(one.median_ms > 0 for one in timed.values())
    with pytest.raises(BadInput, match="did you mean onnxruntime"):
        time_exported(dict.fromkeys(engines, tmp_path), batches, engine={**engines, "second": "onnxrunime"})


def test_the_page_holds_every_format(table: dict[str, Any], folder: Path) -> None:
    page = (folder / "page.html").read_text()
    assert all(name in page for name in NAMES.split(","))
    assert f"{table['recommended']['batched']}, " in page
    nothing = {**table, "recommended": {"batched": None}, "left": {"openvino:int4": "no <package>"}}
    other = render_formats(nothing)
    assert "no format keeps 90" in other
    assert "no &lt;package&gt;" in other


def row(name: str, size: int, relative: float, median: float, spread: float = 0.0) -> FormatRow:
    engine, precision = name.split(":")
    timed = {"batched": Latency(median, median - spread, median + spread, 5)}
    return FormatRow(Format(engine, precision), size, relative, (0, 1), relative, 1.0, 0.0, timed)


def test_the_fastest_that_keeps_enough_is_recommended() -> None:
    rows = [row("a:float32", 400, 1.0, 10), row("a:int8", 100, 0.995, 6), row("a:int4", 50, 0.9, 2)]
    assert recommend(rows, "batched", 0.99) == "a:int8"
    assert recommend(rows, "batched", 0.5) == "a:int4"
    assert recommend(rows[2:], "batched", 0.99) is None
    assert recommend([row("a:float32", 1, math.nan, 1)], "batched", 0.5) is None


def test_where_times_do_not_differ_the_smallest_is() -> None:
    rows = [row("a:float32", 400, 1.0, 10, 1), row("a:float16", 200, 1.0, 10.5, 1), row("a:int8", 100, 1.0, 14, 1)]
    assert recommend(rows, "batched") == "a:float16"


def test_cosines_are_of_rows() -> None:
    first, second = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 2.0], [1.0, 1.0]])
    assert mean_cosine(first, second) == pytest.approx(1 / 3)


def test_bfloat16_is_computed_or_refused(folder: Path, tmp_path: Path) -> None:
    """A file says what it is computed in; where the processor has no bfloat16, asking for it is refused."""
    network = open_network(folder / "tiny")
    whole = export_once(network, "openvino", tmp_path)
    batch = engine_batch(network, small.sentences(8))
    half, brain = (
        load_openvino(save_halved(whole, tmp_path / computes, computes), 1)(batch).copy()
        for computes in ("float32", "bfloat16")
    )
    original = load_openvino(whole, 1)(batch)
    assert 0 < np.abs(half - original).max() < 0.01
    if has_bfloat16():
        check_precision("openvino", "bfloat16")
        # The same weights, so what differs is the arithmetic: far more than float32's 1e-7.
        assert 1e-5 < np.abs(brain - half).max() < 0.01
    else:
        assert np.array_equal(half, brain)
        with pytest.raises(BadInput, match=r"does not multiply it.*give float16"):
            check_precision("openvino", "bfloat16")


def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_formats("all") == FORMATS
    task = ["--task", f"text:{folder / 'text.txt'}"]
    for options, words in (
        (["--formats", "openvino:int9"], "did you mean openvino:int8"),
        (["--formats", " , "], "no formats; give some of openvino:float32"),
        (["--keep", "120%"], "not a share"),
        (["-o", "nowhere/page.html"], "does not exist"),
    ):
        assert main(["formats", str(folder / "tiny"), *task, *options]) == 2
        assert words in capsys.readouterr().err


def test_what_cannot_be_in_a_format_is_said_before_any_work(folder: Path) -> None:
    network, task = open_network(folder / "tiny"), load_task(f"text:{folder / 'text.txt'}")
    with pytest.raises(BadInput, match="openvino:float16: tiny rounds its activations itself"):
        measure_formats(with_rounded_inputs(network, 4), task, formats="openvino:float16")
    with pytest.raises(BadInput, match=r"openvino:w8a8: .* has nothing to calibrate"):
        measure_formats(network, replace(task, train=()), formats="openvino:w8a8")
