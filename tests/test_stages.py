"""Stages: a run that was stopped goes on where it was, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.errors import BadInput
from isthmus.storage.packing import pack, random_state, set_random_state, unpack
from isthmus.storage.stages import StageStore, _apart


def test_stages_are_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run.stages"
    store = StageStore(folder, {"seed": 0, "to": "params=50%"})
    assert not folder.exists()
    assert not store.done("gates")
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared[:3], "c": shared.reshape(2, 3).T, "step": torch.tensor(4)}
    store.save("gates", tensors, {"loss": [1.5, None]})
    again = StageStore(folder, {"to": "params=50%", "seed": 0}, resume=True)
    assert again.key == store.key
    assert again.done("gates")
    loaded, data = again.load("gates")
    assert data == {"loss": [1.5, None]}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    again.save("gates", {}, {"loss": []})
    assert again.load("gates") == ({}, {"loss": []})
    assert len(list(folder.glob("*.safetensors"))) == 1


def test_stages_of_other_arguments_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run.stages"
    StageStore(folder, {"seed": 0, "to": "params=50%"}).save("gates", {}, {})
    with pytest.raises(BadInput, match="seed was 0 when they were written and is 1 now"):
        StageStore(folder, {"seed": 1, "to": "params=50%"}, resume=True)
    with pytest.raises(BadInput, match=r"effort was \(not given\)"):
        StageStore(folder, {"seed": 0, "to": "params=50%", "effort": "full"}, resume=True)
    (folder / "mine.safetensors").write_text("not a stage")
    for left in (".recovery.partial", ".gates.stage.json.0badcafe.partial", ".stages.json.0badcafe.partial"):
        (folder / left).write_bytes(b"left by a run that was killed")
    assert not StageStore(folder, {"seed": 1}).done("gates")
    assert [path.name for path in folder.iterdir()] == ["mine.safetensors"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.stage.json").write_text("{}")
    StageStore(tmp_path, {"seed": 1}).clear()
    assert (tmp_path / "x.stage.json").exists()
    with pytest.raises(BadInput, match="is a file"):
        StageStore(tmp_path / "x.stage.json", {})


def test_a_stage_that_was_cut_short_is_not_done(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "s", {})
    store.save("gates", {"a": torch.ones(3)}, {})
    file = next((tmp_path / "s").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    assert not store.done("gates")
    with pytest.raises(BadInput, match="missing or damaged"):
        store.load("gates")
    (tmp_path / "s" / "gates.stage.json").write_text("{")
    assert not store.done("gates")
    (tmp_path / "s" / "stages.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        StageStore(tmp_path / "s", {}, resume=True)


def test_a_crash_while_saving_keeps_the_stage_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path / "s", {})
    store.save("recovery", {"a": torch.ones(3)}, {"step": 1})

    def crash(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    for name in ("sha256", "write_atomic"):
        with monkeypatch.context() as patch:
            patch.setattr(f"isthmus.storage.stages.{name}", crash)
            with pytest.raises((KeyboardInterrupt, TypeError)):
                store.save("recovery", {"a": torch.zeros(3)}, {"step": 2})
        assert store.load("recovery")[1] == {"step": 1}


def test_a_training_run_goes_on_exactly_from_a_stage(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        return model, torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}])

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            scale = float(np.random.rand())
            model(torch.randn(3, 4)).square().mean().mul(scale).backward()
            optimizer.step()
            optimizer.zero_grad()

    store = StageStore(tmp_path / "s", {})
    model, optimizer = fresh()
    step(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state()}
    store.save("recovery", *pack(state))
    step(model, optimizer, 3)

    other, its_optimizer = fresh()
    restored = unpack(*store.load("recovery"))
    other.load_state_dict(restored["model"])
    its_optimizer.load_state_dict(restored["optimizer"])
    set_random_state(restored["random"])
    step(other, its_optimizer, 3)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_packing_keeps_what_json_loses() -> None:
    state = {0: (1, 2.5), "x": [None, True, float("inf"), 0.1], "n": {"__kind__": "tensor"}}
    tensors, data = pack(state)
    assert tensors == {}
    assert unpack(tensors, json.loads(json.dumps(data))) == state
    with pytest.raises(TypeError, match="cannot be packed"):
        pack({"f": print})


def test_only_what_shares_memory_is_copied(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    given = {
        "whole": whole,
        "again": whole,
        "row": whole[1],
        "turned": whole.T,
        "empty": torch.empty(0),
        "none": torch.empty(0),
    }
    apart = _apart(given)
    assert apart["whole"].data_ptr() == whole.data_ptr()
    assert len({tensor.data_ptr() for tensor in apart.values() if tensor.numel()}) == 4
    stages = StageStore(tmp_path / "stages", {}, resume=False)
    stages.save("tensors", given, {})
    found, _ = stages.load("tensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
