"""Precisions in the flow: the artifact holds the engine's file, and that file is what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isthmus
import quick
import small
from isthmus.cli.main import main
from isthmus.errors import BadArtifact
from isthmus.export.engines import load_runner, runner_embed
from isthmus.export.saved import exported, precision_of
from isthmus.flow.verifying import measure_quality
from isthmus.network import embed
from isthmus.tasks import load_task

ORDER = ["narrow", "tiny", "--task", "text:text.txt", "--to", "params=70%", "--method", "magnitude", "--effort", "none"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    small.write_network(tmp_path / "tiny", layers=1)  # it is traced twice
    small.write_text(tmp_path / "text.txt", 90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_engine_file_in_integers_is_part_of_the_artifact(place: Path) -> None:
    order = [*ORDER, "--engine", "onnxruntime", "--precision", "int8", "-o", "made", "--quiet"]
    assert main(order) == 0
    record = json.loads((place / "made" / "isthmus.json").read_text())
    assert record["plan"]["precision"] == "int8"
    entry = record["exports"]["onnxruntime"]
    assert entry["bytes"] == sum(file.stat().st_size for file in (place / "made" / "onnxruntime").iterdir())
    made = isthmus.open("made")
    assert (precision_of(made, "onnxruntime"), precision_of(made, "openvino")) == ("int8", "float32")
    path = exported(made, "onnxruntime", place / "unused")
    assert path == (place / "made" / entry["file"]).resolve()
    assert not (place / "unused").exists()

    task = load_task("text:text.txt")
    texts = task.held_out.examples
    own = runner_embed(made, load_runner("onnxruntime", path))(texts)
    plain = embed(made, texts)
    assert 0 < np.abs(own - plain).max() < 0.2, "rounded, but the same network"
    by_engine = measure_quality([isthmus.open("tiny"), made], task, engine="onnxruntime")[1]
    in_float = measure_quality([isthmus.open("tiny"), made], task)[1]
    assert record["measurements"]["narrowed"]["metric"] == pytest.approx(by_engine.value)
    assert record["measurements"]["narrowed"]["precision"] == "int8"
    assert by_engine.value != in_float.value

    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadArtifact, match="changed since it was written"):
        exported(made, "onnxruntime", place / "unused")
    path.unlink()
    with pytest.raises(BadArtifact, match="which is not there"):
        exported(made, "onnxruntime", place / "unused")


@pytest.mark.parametrize(("precision", "words"), [("int16", "did you mean int8"), ("w8a8", "unknown to onnxruntime")])
def test_an_unknown_precision_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], precision: str, words: str
) -> None:
    order = [*ORDER, "--engine", "onnxruntime", "--precision", precision, "-o", "made", "--quiet"]
    assert main(order) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (place / "made").exists()
