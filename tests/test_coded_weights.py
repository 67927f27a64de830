"""Coded weights in a transformers folder: saved equals loaded, and nothing that is damaged is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import networks
import small
from isthmus import _loader
from isthmus.errors import BadArtifact
from isthmus.network import Network, embed
from isthmus.storage.artifact import save_artifact
from isthmus.storage.coded import Uniform, exponents_of, scale_of
from isthmus.storage.holders import SUFFIX, with_codes
from isthmus.storage.opening import open as open_network
from isthmus.storage.weights import weight_bytes
from narrowed import RECORD, auto, narrowed
from test_storage import same_outputs


@pytest.fixture(autouse=True)
def _registered() -> None:
    _loader.install()


def rounded(weight: torch.Tensor, levels: int = 7) -> Uniform:
    """A code of a few levels, a scale for each row."""
    array = weight.detach().numpy()
    scale = exponents_of(2 * np.maximum(np.abs(array).max(1, keepdims=True), 1e-3) / levels)
    return Uniform(np.rint(array / scale_of(scale)).astype(np.int32), (scale,))


def coded(network: Network) -> Network:
    modules = network.model.named_modules()
    names = [f"{path}.weight" for path, module in modules if isinstance(module, nn.Linear | nn.Embedding)]
    return with_codes(network, {name: rounded(network.model.get_parameter(name)) for name in names})


@pytest.mark.parametrize("name", networks.NAMES)
def test_loaded_equals_saved(name: str, tmp_path: Path) -> None:
    network = coded(narrowed(name))
    save_artifact(network, tmp_path / "small", RECORD)
    save_artifact(replace(network, codes={}), tmp_path / "plain", RECORD)
    assert weight_bytes(tmp_path / "small") < weight_bytes(tmp_path / "plain") / 2
    loaded = auto(name).from_pretrained(tmp_path / "small")
    same_outputs(network.model, loaded)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert {key: module for key, module in loaded.named_modules() if type(module).__name__ == "Holder"} == {}


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_the_encoder_of_a_coded_classifier_loads(family: str, tmp_path: Path) -> None:
    network = coded(narrowed(f"{family}-classifier"))
    save_artifact(network, tmp_path / "small", RECORD)
    base = getattr(network.model, network.model.base_model_prefix)
    same_outputs(base, auto(family).from_pretrained(tmp_path / "small"))


def test_opened_and_saved_again_the_file_is_the_same(tmp_path: Path) -> None:
    network = coded(networks.worded("bert"))
    save_artifact(network, tmp_path / "small", RECORD)
    opened = open_network(tmp_path / "small")
    texts = small.sentences(20)
    np.testing.assert_array_equal(embed(opened, texts), embed(network, texts))
    save_artifact(opened, tmp_path / "again", RECORD)
    first, second = (tmp_path / name / "model.safetensors" for name in ("small", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_loaded_weights_are_plain_ones(tmp_path: Path) -> None:
    network = coded(networks.tiny("bert"))
    save_artifact(network, tmp_path / "small", RECORD)
    loaded = auto("bert").from_pretrained(tmp_path / "small", dtype=torch.float16)
    assert loaded.encoder.layer[0].output.dense.weight.dtype == torch.float16
    loaded = auto("bert").from_pretrained(tmp_path / "small")
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save_pretrained(tmp_path / "plain")
    same_outputs(loaded, auto("bert").from_pretrained(tmp_path / "plain"))
    assert weight_bytes(tmp_path / "plain") > 2 * weight_bytes(tmp_path / "small")


def damage(folder: Path, change: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(SUFFIX))
    change(tensors, name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flip(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].copy()
    tensors[name][len(tensors[name]) // 2] ^= 4


def swap(tensors: dict[str, Any], name: str) -> None:
    other = next(one for one in tensors if one.endswith(SUFFIX) and len(tensors[one]) != len(tensors[name]))
    tensors[name] = np.resize(tensors[other], tensors[name].shape)


@pytest.mark.parametrize("change", [flip, swap])
def test_damaged_codes_are_refused(change: Any, tmp_path: Path) -> None:
    save_artifact(coded(networks.tiny("bert")), tmp_path / "small", RECORD)
    damage(tmp_path / "small", change)
    with pytest.raises(BadArtifact, match=r"weight: coded matrix: truncated or damaged") as caught:
        auto("bert").from_pretrained(tmp_path / "small")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("encoder.layer.0.output.dense.weight", 10**12),
        ("encoder.layer.0.output.dense.weight", 0),
        ("encoder.layer.0.output.dense.weight", "many"),
        ("encoder.layer.0.output.dense.bias", 100),
        ("encoder.layer.0.output.LayerNorm.weight", 100),
    ],
)
def test_a_config_that_promises_what_cannot_be_is_refused(name: str, size: Any, tmp_path: Path) -> None:
    save_artifact(coded(networks.tiny("bert")), tmp_path / "small", RECORD)
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["coded"][name] = size
    file.write_text(json.dumps(config))
    with pytest.raises(BadArtifact, match="does not fit the model"):
        auto("bert").from_pretrained(tmp_path / "small")
