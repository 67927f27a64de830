"""What is on disk is not believed before it is checked; what is written is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import networks
from isthmus import _loader
from isthmus.errors import BadArtifact, BadInput, IsthmusError
from isthmus.storage.artifact import check_output, read_record, save_artifact, update_record, verify_artifact
from isthmus.storage.files import write_atomic, writing
from isthmus.storage.narrowing import VERSION
from isthmus.storage.stages import StageStore
from isthmus.storage.weights import (
    check_weight_files,
    check_weights,
    read_header,
    weight_bytes,
)
from narrowed import RECORD, auto, narrowed


@pytest.fixture(autouse=True)
def _registered() -> None:
    _loader.install()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    save_artifact(narrowed("bert"), folder, RECORD)
    return folder


def edit_config(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


TAMPERED = {
    "larger": lambda q: q["shapes"].update({"pooler.dense.weight": [33, 32]}),
    "negative": lambda q: q["shapes"].update({"pooler.dense.weight": [-1, 32]}),
    "zero": lambda q: q["shapes"].update({"pooler.dense.weight": [0, 32]}),
    "rank": lambda q: q["shapes"].update({"pooler.dense.weight": [8]}),
    "text": lambda q: q["shapes"].update({"pooler.dense.weight": "8"}),
    "bool": lambda q: q["shapes"].update({"pooler.dense.weight": [True, 8]}),
    "uneven": lambda q: q["shapes"].update({"pooler.dense.bias": [3]}),
    "unknown": lambda q: q["shapes"].update({"pooler.other.weight": [8, 8]}),
    "shapes": lambda q: q.update(shapes=[1]),
    "layer": lambda q: q["layers"].update(keep=[0, 9]),
    "no layers": lambda q: q["layers"].update(keep=[]),
    "falling": lambda q: q["layers"].update(keep=[1, 0]),
    "layer text": lambda q: q["layers"].update(keep="01"),
    "list": lambda q: q["layers"].update(module="encoder"),
    "attribute": lambda q: q["attributes"]["encoder.layer.0.attention.self"].update(num_attention_heads=99),
    "attribute name": lambda q: q["attributes"]["encoder.layer.0.attention.self"].update(forward=1),
    "attribute table": lambda q: q["attributes"].update({"encoder.layer.0": 3}),
    "module": lambda q: q["attributes"].update({"decoder": {"size": 3}}),
    "version": lambda q: q.update(version=VERSION + 1),
    "inputs": lambda q: q.update(inputs={"embeddings.LayerNorm": 4}),
    "no version": lambda q: q.update(version=None),
    "field": lambda q: q.update(other=1),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_config_is_refused(artifact: Path, case: str) -> None:
    edit_config(artifact, TAMPERED[case])
    with pytest.raises(BadArtifact, match=r"config\.json") as caught:
        auto("bert").from_pretrained(artifact)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadArtifact, match=r"config\.json"):
        verify_artifact(artifact)


def test_a_sound_artifact_is_verified(artifact: Path) -> None:
    assert {key: read_record(artifact)[key] for key in RECORD} == RECORD
    assert verify_artifact(artifact) == read_record(artifact)
    assert set(read_record(artifact)["files"]) == {"config.json", "model.safetensors"}


def test_the_record_can_be_added_to(artifact: Path) -> None:
    files = read_record(artifact)["files"]
    record = update_record(artifact, {"measured": {"bytes": 9}, "files": {}})
    assert verify_artifact(artifact) == record
    assert (record["measured"], record["seed"], record["files"]) == ({"bytes": 9}, 3, files)
    with pytest.raises(BadInput, match="JSON"):
        update_record(artifact, {"measured": float("nan")})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_is_named(artifact: Path, name: str) -> None:
    path = artifact / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(BadArtifact, match=f"{name}: truncated"):
        verify_artifact(artifact)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadArtifact, match=f"{name}: changed"):
        verify_artifact(artifact)
    path.write_bytes(whole + b" ")
    with pytest.raises(BadArtifact, match=f"{name}: changed"):
        verify_artifact(artifact)
    path.unlink()
    with pytest.raises(BadArtifact, match=f"{name}: missing"):
        verify_artifact(artifact)


def test_a_foreign_weight_file_is_refused(artifact: Path) -> None:
    shutil.copy(artifact / "model.safetensors", artifact / "model-00001-of-00001.safetensors")
    with pytest.raises(BadArtifact, match="not part of this artifact"):
        verify_artifact(artifact)


def test_a_damaged_record_is_named(artifact: Path) -> None:
    path = artifact / "isthmus.json"
    record = json.loads(path.read_text())
    cases = {
        "was changed": json.dumps({**record, "seed": 4}),
        "upgrade": json.dumps({**record, "version": 2}),
        "not JSON": path.read_text()[:50],
        "not a record": "[]",
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(BadArtifact, match=message):
            verify_artifact(artifact)
    path.unlink()
    with pytest.raises(BadArtifact, match="No such file"):
        read_record(artifact)


def test_names_in_a_record_stay_within_the_folder(artifact: Path) -> None:
    from isthmus.storage.artifact import _write_record

    record = read_record(artifact)
    record["files"]["../elsewhere"] = {"bytes": 1, "sha256": ""}
    _write_record(artifact, record)
    with pytest.raises(BadArtifact, match="elsewhere"):
        verify_artifact(artifact)


def weight_file(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"[]", b""),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"123456789"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"123456789012"),
        ({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, b""),
        ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, b"12345678"),
        ({"a": 1}, b""),
    ],
)
def test_a_damaged_weight_file_is_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    path = weight_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(BadArtifact, match=r"model\.safetensors: truncated or damaged"):
        check_weight_files(tmp_path)
    path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(BadArtifact, match="header"):
        read_header(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadArtifact, match="header"):
        read_header(path)
    path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(BadArtifact, match="not JSON"):
        read_header(path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no"):
        check_weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = networks.tiny("bert").model
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    check_weight_files(tmp_path / "sharded")
    sizes = [path.stat().st_size for path in (tmp_path / "sharded").glob("*.safetensors")]
    assert len(sizes) > 1
    assert weight_bytes(tmp_path / "sharded") == sum(sizes)
    next((tmp_path / "sharded").glob("*.safetensors")).unlink()
    with pytest.raises(BadArtifact, match="missing"):
        check_weight_files(tmp_path / "sharded")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    network = networks.tiny("bert")
    network.model.save_pretrained(tmp_path / "sound")
    check_weights(tmp_path / "sound")
    with torch.no_grad():
        network.model.encoder.layer[1].output.dense.weight[3, 4] = value
    network.model.save_pretrained(tmp_path / "broken")
    for weights in (network.model.state_dict(), tmp_path / "broken"):
        with pytest.raises(BadInput, match=r"1 of 1536 weights of encoder\.layer\.1\.output\.dense\.weight"):
            check_weights(weights)
    with pytest.raises(BadInput, match="NaN"):
        save_artifact(network, tmp_path / "small", RECORD)
    assert not (tmp_path / "small").exists()


def test_an_output_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (("full", "not empty"), ("file", "is a file"), ("file/below", "not a folder")):
        with pytest.raises(BadInput, match=message):
            check_output(tmp_path / name)
        with pytest.raises(BadInput, match=message):
            save_artifact(networks.tiny("bert"), tmp_path / name, RECORD)
    check_output(tmp_path / "new" / "deeper")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / ".small.partial").mkdir()
    (tmp_path / ".small.partial" / "left.txt").write_text("left by a run that was killed")
    monkeypatch.chdir(tmp_path)
    save_artifact(networks.tiny("bert"), "small", RECORD)
    verify_artifact("small")
    assert not (tmp_path / ".small.partial").exists()


@pytest.mark.parametrize("kind", ["disk", "other", "interrupt"])
@pytest.mark.parametrize("step", ["_write_network", "_inventory", "_write_record", "_sync_all"])
def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: str
) -> None:
    raised: dict[str, tuple[BaseException, type[BaseException]]] = {
        "disk": (OSError(errno.ENOSPC, "No space left on device"), IsthmusError),
        "other": (OSError(errno.EROFS, "Read-only file system"), BadInput),
        "interrupt": (KeyboardInterrupt(), KeyboardInterrupt),
    }
    error, expected = raised[kind]

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(f"isthmus.storage.artifact.{step}", fail)
    with pytest.raises(expected) as caught:
        save_artifact(networks.tiny("bert"), tmp_path / "small", RECORD)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_two_that_write_the_same_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends when the first has written all but the name."""
    file, replace, seen = tmp_path / "statistics.json", os.replace, []

    def late(partial: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_atomic(file, b"second")
        assert file.read_bytes() == b"second"
        seen.append(partial)
        replace(partial, target)

    monkeypatch.setattr(os, "replace", late)
    write_atomic(file, b"first")
    assert file.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert re.fullmatch(r"\.statistics\.json\.[0-9a-f]{8}\.partial", seen[0].name)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_could_not_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "statistics.json"
    write_atomic(file, b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    """But not what another process may be writing, nor what belongs to another file."""
    file = tmp_path / "a[1].json"
    left, fresh, other = (tmp_path / f".{name}.partial" for name in ("a[1].json.0badcafe", "a[1].json.1badcafe", "a1"))
    for path in (left, fresh, other, tmp_path / ".a1.json.0badcafe.partial"):
        path.write_bytes(b"half")
    for path in (left, other, tmp_path / ".a1.json.0badcafe.partial"):
        os.utime(path, (0, 0))
    write_atomic(file, b"whole")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([file.name, fresh.name, other.name, ".a1.json.0badcafe.partial"])


def test_a_disk_that_is_too_small_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(IsthmusError, match="MB are needed"), writing(tmp_path / "small", needed=10**18):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        with pytest.raises(IsthmusError, match="are needed"):
            save_artifact(networks.tiny("bert"), disk / "small", RECORD)
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**12})())
        with pytest.raises(IsthmusError, match="the disk is full"):
            save_artifact(networks.tiny("bert"), disk / "small", RECORD)
        store = StageStore(disk / "stages", {"seed": 0})
        store.save("gates", {"a": torch.zeros(8)}, {"step": 1})
        with pytest.raises(IsthmusError, match="the disk is full"):
            store.save("gates", {"a": torch.zeros(10**5)}, {"step": 2})
        assert store.load("gates")[1] == {"step": 1}
        store.clear()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
