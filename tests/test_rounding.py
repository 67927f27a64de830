"""Rounded activations: the levels, what training sees of them, the artifact, the engines, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
import networks
import quick
import small
from isthmus import _loader
from isthmus.errors import BadArtifact, BadInput
from isthmus.export.compressed import write_compressed_tensors
from isthmus.export.engines import export_network, load_runner
from isthmus.export.quantized import export_quantized
from isthmus.flow.activations import check_activations, with_rounded_inputs
from isthmus.network import embed
from isthmus.storage.artifact import save_artifact
from isthmus.storage.delta import save_delta
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.storage.rounding import RoundedLinear, round_vectors, rounded_inputs
from narrowed import RECORD, auto, narrowed
from test_storage import same_outputs


@pytest.fixture(autouse=True)
def _registered() -> None:
    _loader.install()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_those_of_a_quantizer_of_torch(bits: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 7, 33)
    found = round_vectors(vectors, bits)
    for exact, rounded in zip(vectors.reshape(-1, 33), found.reshape(-1, 33), strict=True):
        low, high = exact.min(), exact.max()
        scale = float((high - low) / (2**bits - 1))
        # Torch wants zero among the levels: it is given the vector as it lies above its smallest entry.
        theirs = torch.fake_quantize_per_tensor_affine(exact - low, scale, 0, 0, 2**bits - 1) + low
        torch.testing.assert_close(rounded, theirs)
        assert len(rounded.unique()) <= 2**bits


def test_a_vector_without_spread_is_its_own_level() -> None:
    vectors = torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [-1.0, 0.0, 2.0]])
    torch.testing.assert_close(round_vectors(vectors, 2), vectors)


def test_the_gradient_passes_through() -> None:
    vectors = torch.randn(3, 8, requires_grad=True)
    given = torch.randn(3, 8)
    round_vectors(vectors, 4).backward(given)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(vectors.grad, given)


@pytest.mark.parametrize("name", networks.NAMES)
def test_loaded_equals_saved(name: str, tmp_path: Path) -> None:
    exact = narrowed(name)
    network = with_rounded_inputs(exact, 4)
    assert rounded_inputs(exact.model) == {}
    assert len({fingerprint(one) for one in (exact, network, with_rounded_inputs(exact, 5))}) == 3
    paths = rounded_inputs(network.model)
    assert paths
    assert set(paths.values()) == {4}
    save_artifact(network, tmp_path / "small", RECORD)
    loaded = auto(name).from_pretrained(tmp_path / "small")
    assert rounded_inputs(loaded) == paths
    same_outputs(network.model, loaded)
    # An output of the map is that of the rounded input.
    path = next(iter(paths))
    own, before = network.model.get_submodule(path), exact.model.get_submodule(path)
    assert isinstance(own, RoundedLinear)
    assert isinstance(before, nn.Linear)
    given = torch.randn(2, 3, before.in_features)
    torch.testing.assert_close(own(given), before(round_vectors(given, 4)))


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    network = with_rounded_inputs(narrowed("bert"), 4)
    save_artifact(network, tmp_path / "small", RECORD)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    path = next(iter(config["quantization_config"]["inputs"]))
    for wrong in ({path: 1}, {path: 9}, {path: "4"}, {"nowhere": 4}, {"embeddings.LayerNorm": 4}, [path]):
        config["quantization_config"]["inputs"] = wrong
        (tmp_path / "small" / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadArtifact, match="does not fit the model"):
            auto("bert").from_pretrained(tmp_path / "small")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_compute_what_torch_does(engine: str, tmp_path: Path) -> None:
    exact = narrowed("bert")
    network = with_rounded_inputs(exact, 6)
    runner = load_runner(engine, export_network(network, engine, tmp_path), threads=1)
    inputs = networks.tokens()
    found = runner({name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        rounded, whole = (one.model(**inputs).last_hidden_state.numpy() for one in (network, exact))
    # Where a number lies between two levels, an engine may take the other one: a step, and not more than a few of them.
    assert np.median(np.abs(found - rounded)) < 1e-4
    assert np.abs(found - rounded).mean() < 0.2 * np.abs(whole - rounded).mean()


def test_a_budget_of_bytes_is_met_with_rounded_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    network = open_network(small.write_network(tmp_path / "tiny"))
    task = isthmus.task(f"text:{small.write_text(tmp_path / 'text.txt', 90)}")
    asked = {"to": "bytes=40%", "method": "magnitude", "effort": "faster", "codes": "paretoq,finequant"}
    made = isthmus.narrow(network, task, activations=4, out=tmp_path / "small", **asked)
    assert made.record["plan"]["activations"] == 4
    assert any("rounded to 4 bits" in note for note in made.record["plan"]["notes"])
    opened = open_network(tmp_path / "small")
    assert not np.allclose(embed(opened, ["row strip"]), embed(network, ["row strip"]), atol=1e-4)
    assert set(rounded_inputs(opened.model).values()) == {4}
    original, own = (made.record["measurements"][name]["bytes"] for name in ("original", "narrowed"))
    assert own <= 0.4 * original
    exact = isthmus.plan(network, task, **asked)
    assert made.record["plan"]["distortion"] > exact.distortion


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for bits, to, precision, reason in (
        (1, "params=50%", "float32", "give 2 to 8"),
        (9, "params=50%", "float32", "give 2 to 8"),
        (4, "params=50%", "w8a8", "its own integers"),
        (4, "latency=50%", "float32", "no time"),
    ):
        with pytest.raises(BadInput, match=reason):
            check_activations(bits, to=to, precision=precision)
    check_activations(None, to="latency=50%", precision="w8a8")
    network = with_rounded_inputs(narrowed("bert"), 4)
    with pytest.raises(BadInput, match="rounds its activations"):
        export_quantized(network, "onnxruntime", "int8", [], tmp_path / "int8")
    with pytest.raises(BadInput, match="rounds its activations"):
        write_compressed_tensors(network, tmp_path / "layout")
    with pytest.raises(BadInput, match="rounds other activations"):
        save_delta(narrowed("bert"), network, tmp_path / "file.delta", {})
    assert not list(tmp_path.iterdir())
