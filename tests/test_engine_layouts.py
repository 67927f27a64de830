"""The layouts of engines: a folder that opens as a network, and whose file for the engine is what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isthmus
import networks
import small
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.cli.main import main
from isthmus.export.engines import load_runner, runner_embed
from isthmus.export.saved import exported, precision_of
from isthmus.network import embed
from isthmus.sites.discovery import discover
from isthmus.sites.surgery import narrow_model
from isthmus.storage.artifact import save_artifact, verify_artifact
from isthmus.storage.holders import with_codes
from isthmus.storage.opening import open as open_network

Capture = pytest.CaptureFixture[str]
TEXTS = small.sentences(40)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts and an artifact: layers and neurons taken away, one matrix coded."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(TEXTS) + "\n")
    whole = networks.worded("bert")
    kept = {site.name: list(range(32)) for site in discover(whole) if site.kind == "neurons"} | {"layers": [0, 2]}
    network = whole.with_model(narrow_model(whole.model, discover(whole), kept))
    name = "encoder.layer.0.intermediate.dense.weight"
    weight = network.model.get_parameter(name).detach().numpy()
    plain = MatrixStatistics(np.ones(1, np.float32), None)
    coded = with_codes(network, {name: FineQuant().code(weight, plain, Setting(8))})
    save_artifact(coded, tmp_path / "made", {"network": "bert", "seed": 3})
    return tmp_path


@pytest.mark.parametrize(
    ("engine", "precision", "options", "least"),
    [
        ("openvino", "float32", [], 0.9999),
        ("openvino", "w8a8", ["--task", "text:text.txt"], 0.97),
        ("openvino", "int4", ["--group", "16"], 0.9),
        ("onnxruntime", "int8", [], 0.97),
    ],
)
def test_a_narrowed_network_is_written_for_an_engine(
    engine: str, precision: str, options: list[str], least: float, place: Path, capsys: Capture
) -> None:
    if engine == "openvino" and precision != "float32":
        pytest.importorskip("nncf")
    asked = ["export", "made", "--layout", engine, "--precision", precision, *options]
    assert main([*asked, "-o", "new/out", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    before, after = open_network("made"), open_network("new/out")
    assert (made["layout"], made["precision"]) == (engine, precision)
    assert precision_of(after, engine) == precision
    assert made["bytes"] == sum(file.stat().st_size for file in Path("new/out", engine).iterdir())
    np.testing.assert_array_equal(embed(before, TEXTS), embed(after, TEXTS))
    assert set(after.codes) == set(before.codes), "what was coded stays coded"
    record = verify_artifact("new/out")
    assert record["seed"] == 3, "the record of how it was made is kept"
    path = exported(after, engine, place / "unused")
    assert path == (place / made["file"]).resolve()
    assert not (place / "unused").exists(), "the file that is there is the one that is run"
    found = runner_embed(after, load_runner(engine, path))(TEXTS)
    likeness = (found * embed(before, TEXTS)).sum(1)
    assert likeness.min() > least
    if precision != "float32":
        assert np.abs(likeness - 1).max() > 1e-6, "integers are computed with"


def test_compare_measures_the_file_of_the_engine(place: Path) -> None:
    pytest.importorskip("nncf")
    assert main(["export", "made", "--layout", "openvino", "--precision", "int4", "-o", "four"]) == 0
    task = isthmus.task("text:text.txt")
    rows = isthmus.compare([isthmus.open("made"), isthmus.open("four")], task)
    assert rows[1]["relative"] < 1, "the same weights: what differs is the engine's integers"


def test_a_folder_is_exported_over_that_was_exported_for_another_engine(place: Path) -> None:
    assert main(["export", "made", "--layout", "openvino", "-o", "first"]) == 0
    assert main(["export", "first", "--layout", "onnxruntime", "-o", "second"]) == 0
    second = open_network("second")
    assert set(second.record["exports"]) == {"onnxruntime"}
    assert not Path("second/openvino").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layout", "openvin"], "did you mean openvino?"),
        (["--layout", "openvino", "--precision", "int5"], "int"),
        (["--layout", "onnxruntime", "--precision", "w8a8"], "unknown to onnxruntime"),
        (["--layout", "openvino", "--bits", "4"], "give for example --precision int8"),
        (["--layout", "openvino", "--precision", "int8", "--group", "32"], "in int4 only"),
        (["--layout", "openvino", "--precision", "w8a8"], "some with --task text:FILE"),
        (["--precision", "int8"], "give --bits 4 or 8"),
        (["--layout", "openvino", "--precision", "w8a8", "--task", "text:none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_exported_is_refused(options: list[str], words: str, place: Path, capsys: Capture) -> None:
    pytest.importorskip("nncf")
    before = sorted(place.iterdir())
    assert main(["export", "made", *options, "-o", "out"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert sorted(place.iterdir()) == before, "nothing is left behind"


def test_what_stops_on_the_way_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isthmus.flow.exporting.save_export", stop)
    before = sorted(place.iterdir())
    assert main(["export", "made", "--layout", "openvino", "-o", "out"]) == 130
    assert sorted(place.iterdir()) == before
