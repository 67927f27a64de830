"""Layer by layer: what is written opens, keeps its budget, is nearer than a plain cut, and a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import decoders
import isthmus
import small
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadBudget, BadInput, UnreachableBudget, UnsupportedNetwork
from isthmus.flow.layerwise import narrow_layerwise
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.sites import discover, narrow_model
from isthmus.storage.artifact import verify_artifact
from isthmus.storage.streamed import TensorFiles
from isthmus.storage.weights import weight_bytes
from isthmus.tasks import Task
from isthmus.tasks.language import language_task

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of three layers in several files, in float16."""
    place = decoders.write_decoder(tmp_path_factory.mktemp("decoder") / "model", num_hidden_layers=LAYERS)
    model: Any = isthmus.open(place).model
    (place / "model.safetensors").unlink()
    model.half().save_pretrained(place, max_shard_size="30KB")
    assert len(list(place.glob("*.safetensors"))) > 2
    return place


@pytest.fixture(scope="module")
def task() -> Task:
    texts = [" ".join(small.sentences(30, seed=seed)) for seed in range(12)]
    return language_task("texts", "texts", texts[:9], texts[9:], 0)


class Killed(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize("currency", ["params", "bytes"])
def test_the_budget_is_kept_and_the_artifact_opens(currency: str, folder: Path, task: Task, tmp_path: Path) -> None:
    made = narrow_layerwise(folder, task, f"{currency}=80%", tmp_path / "small")
    verify_artifact(tmp_path / "small")
    original, opened = isthmus.open(folder), isthmus.open(tmp_path / "small")
    assert made.params == (count_parameters(original.model), count_parameters(opened.model))
    assert made.params[1] <= 0.8 * made.params[0]
    assert made.bytes[1] == weight_bytes(tmp_path / "small")
    said: Any = opened.model.generate(torch.full((1, 5), 7), max_new_tokens=3, do_sample=False)
    assert said.shape == (1, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["shapes"]


def test_what_is_solved_is_nearer_than_what_is_cut(folder: Path, task: Task, tmp_path: Path) -> None:
    """Beside the whole network with as many units of the same energy cut at once."""
    made = narrow_layerwise(folder, task, "params=75%", tmp_path / "small")
    network, opened = isthmus.open(folder), isthmus.open(tmp_path / "small")
    assert 0 < made.lost[0] < 1
    weights, whole = opened.model.state_dict(), network.model.state_dict()
    kept = {}
    for site in discover(network):
        if site.kind not in ("heads", "neurons"):
            continue
        part = next(one for one in site.slices if one.parameter.endswith(("up_proj.weight", "k_proj.weight")))
        rows = {row.numpy().tobytes(): at for at, row in enumerate(whole[part.parameter])}
        places = sorted(rows[row.numpy().tobytes()] for row in weights[part.parameter])
        kept[site.name] = sorted({place // part.each for place in places})
        assert len(kept[site.name]) == made.kept[f"layers.0.{site.kind}"]
    cut = network.with_model(narrow_model(network.model, discover(network), kept))
    probe = make_probe(network, small.sentences(40, seed=3))
    assert measure_network(probe, opened) < measure_network(probe, cut)


def test_a_killed_run_goes_on_and_ends_alike(folder: Path, task: Task, tmp_path: Path) -> None:
    whole = narrow_layerwise(folder, task, "params=80%", tmp_path / "whole")
    seen: list[int] = []

    def killer(stage: str, done: float, total: float, note: str = "") -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        narrow_layerwise(folder, task, "params=80%", tmp_path / "cut", progress=killer)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(BadInput, match="to was"):
        narrow_layerwise(folder, task, "params=70%", tmp_path / "cut", resume=True)
    again = narrow_layerwise(
        folder, task, "params=80%", tmp_path / "cut", resume=True,
        progress=lambda stage, done, total, note="": seen.append(int(done)),
    )  # fmt: skip
    assert again.lost == whole.lost
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_narrowed_so_is_refused(folder: Path, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UnreachableBudget, match="no less than"):
        narrow_layerwise(folder, task, "params=1%", tmp_path / "small")
    with pytest.raises(BadBudget, match="params or bytes"):
        narrow_layerwise(folder, task, "macs=50%", tmp_path / "small")
    other = decoders.write_decoder(tmp_path / "gpt2", "gpt2", n_positions=64)
    with pytest.raises(UnsupportedNetwork, match="depends on more than words"):
        narrow_layerwise(other, task, "params=80%", tmp_path / "small")
    with pytest.raises(BadInput, match="has no safetensors"):
        TensorFiles(tmp_path)
    assert not (tmp_path / "small").exists()
