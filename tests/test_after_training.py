"""Rounding after training: the levels of the papers, folding that changes nothing, artifacts, engines, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pictured
import quick
from isthmus import _loader
from isthmus.bottlenecks.bits.after_training.folding import fold, fold_where_exact
from isthmus.bottlenecks.bits.after_training.is_vit import IsVit
from isthmus.bottlenecks.bits.after_training.levels import (
    channel_levels,
    log_levels,
    log_table,
    rounded,
    shift_log_levels,
    shift_log_table,
    tensor_levels,
)
from isthmus.bottlenecks.bits.after_training.method import Job, Method
from isthmus.bottlenecks.bits.after_training.registry import METHODS, method
from isthmus.bottlenecks.bits.after_training.repquant import RepQuant
from isthmus.bottlenecks.bits.rounded_attention import NAME, levels_of
from isthmus.cli.main import main
from isthmus.errors import BadArtifact, BadInput
from isthmus.export.engines import export_network, load_runner
from isthmus.flow.rounding import round_network
from isthmus.flow.study import start_study
from isthmus.network import Network, encode, outputs
from isthmus.storage.artifact import save_artifact
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.storage.rounding import Even, even_of, rounded_inputs
from narrowed import RECORD


@pytest.fixture(autouse=True)
def _registered() -> None:
    _loader.install()


def made(name: str) -> Method:
    """Return a method; one that trains does so for a moment."""
    return IsVit(steps=3, batch=4) if name == "is-vit" else method(name)


def job(network: Network, bits: int = 4, count: int = 12) -> Job:
    images = pictured.pictures_task(80).train
    return Job(network, images[:count], bits, bits)


def ran(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return outputs(network, encode(network, pictured.pictures_task(80).train[40:48]))


def test_even_levels_are_those_of_a_quantizer_of_torch() -> None:
    values = torch.randn(500)
    own = Even(4, 0.3, 5)
    torch.testing.assert_close(own(values), torch.fake_quantize_per_tensor_affine(values, 0.3, 5, 0, 15))
    found = tensor_levels(values, 4)
    assert len(found(values).unique()) <= 16
    assert float(found(torch.zeros(1))) == 0


def test_logarithmic_levels_are_those_of_the_paper() -> None:
    weights = torch.rand(1000) ** 6
    scale, bits = 0.8, 4
    powers = (-2 * torch.log2(weights / scale)).round().clamp(min=0)
    wanted = torch.where(powers >= 2**bits - 1, 0.0, scale * 2 ** (-powers / 2))
    # Equation 12: the same by whole powers of two, with a scale that depends on parity.
    parity = powers % 2
    shifted = scale * (parity * (2**0.5 - 1) + 1) * 2 ** -torch.ceil(powers / 2)
    found = log_table(scale, bits, 2)(weights)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, torch.where(powers >= 2**bits - 1, 0.0, shifted))
    assert len(log_levels(weights, bits).values) == 16


def test_shifted_levels_are_those_of_the_paper() -> None:
    weights, shift, bits = torch.rand(1000) ** 6, 2.0**-6, 3
    low, high = -np.log2(1 + shift), -np.log2(shift)
    step = (high - low) / (2**bits - 1)
    steps = ((-torch.log2(weights + shift) - low) / step).round().clamp(0, 2**bits - 1)
    wanted = 2 ** -(low + step * steps).round() - shift
    torch.testing.assert_close(shift_log_table(shift, bits)(weights), wanted.float())
    assert len(shift_log_levels(weights, bits).values) == 8


@pytest.mark.parametrize("dual", [False, True])
def test_channels_of_unlike_size_have_levels_of_their_own(dual: bool) -> None:
    values = torch.randn(400, 3) * torch.tensor([0.1, 1.0, 30.0])
    step, zero = channel_levels(values, 4, dual=dual)
    error = (rounded(values, step, zero, 4) - values).square().mean(0) / values.var(0)
    assert float(error.max()) < 0.03


def test_folding_changes_nothing_and_rounds_as_each_channel_would() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "first": nn.Linear(6, 4), "second": nn.Linear(6, 3)})
    with torch.no_grad():
        model["norm"].weight.uniform_(0.1, 4)
        model["norm"].bias.normal_()
    before = copy.deepcopy(model)
    values = torch.randn(200, 6)
    entered = before["norm"](values).detach()
    step, zero = channel_levels(entered, 4)
    shared = fold(model, "norm", ["first", "second"], step, zero, 4)
    for name in ("first", "second"):
        torch.testing.assert_close(model[name](model["norm"](values)), before[name](entered), atol=1e-5, rtol=1e-4)
        each = before[name](rounded(entered, step, zero, 4))
        torch.testing.assert_close(model[name](shared(model["norm"](values))), each, atol=1e-4, rtol=1e-4)


def test_what_is_read_elsewhere_too_is_not_folded() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "reader": nn.Linear(6, 6)})
    values, before = torch.randn(9, 6), copy.deepcopy(model.state_dict())

    def run() -> torch.Tensor:
        state = model["norm"](values)
        result: torch.Tensor = state + model["reader"](state)
        return result

    found = fold_where_exact(model, "norm", ["reader"], torch.rand(6) + 0.1, torch.arange(6.0), 4, run)
    assert found is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_loaded_equals_saved_and_exported(name: str, tmp_path: Path) -> None:
    network = pictured.vit()
    whole = ran(network)
    small = made(name).rounded(job(network))
    assert torch.equal(ran(network), whole), "the original is left as it was"
    assert rounded_inputs(network.model) == {}
    assert all(isinstance(one, Even) and one.bits == 4 for one in rounded_inputs(small.model).values())
    assert len(rounded_inputs(small.model)) == 18
    assert len(levels_of(small.model)) == len(small.codes) / 6 == 3
    save_artifact(small, tmp_path / "small", RECORD)
    opened = open_network(tmp_path / "small")
    assert levels_of(opened.model) == levels_of(small.model)
    assert rounded_inputs(opened.model) == rounded_inputs(small.model)
    torch.testing.assert_close(ran(opened), ran(small), atol=2e-2, rtol=2e-2)  # what is not coded is in half precision
    if name in ("repq-vit", "plain"):
        return  # the levels of the other two are of the same kinds, and exports take seconds
    exported = load_runner("openvino", export_network(opened, "openvino", tmp_path / "engine"))
    inputs = encode(opened, pictured.pictures_task(80).train[40:48])
    found = exported({key: value.numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(next(iter(found.values())) if isinstance(found, dict) else found, ran(opened), atol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_many_bits_lose_little(name: str) -> None:
    network = pictured.vit()
    whole, small = ran(network), ran(made(name).rounded(job(network, 8)))
    coarse = ran(made(name).rounded(job(network, 3)))
    assert float((small - whole).abs().mean()) < 0.1 * float(whole.abs().mean())
    assert float((small - whole).abs().mean()) < float((coarse - whole).abs().mean())


def test_weights_set_anew_lose_less() -> None:
    network = pictured.vit()
    whole = ran(network)
    lost = [
        float((ran(RepQuant(reconstruct=own).rounded(job(network, count=20))) - whole).square().mean())
        for own in (True, False)
    ]
    assert lost[0] < lost[1]


def test_the_command_rounds_and_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)  # what is saved is exported and compared by the test above
    network, task = pictured.vit(), pictured.pictures_task(60)
    made = round_network(network, task, tmp_path / "small", method="repq-vit", examples=8)
    assert made.rows[1]["bytes"] < 0.4 * made.rows[0]["bytes"]
    record = json.loads((tmp_path / "small" / "isthmus.json").read_text())
    assert record["rounding"] == {"method": "repq-vit", "weights": 4, "activations": 4, "examples": 8}
    assert fingerprint(made.network) != fingerprint(network)
    with pytest.raises(BadInput, match="which comes last"):
        start_study(made.network, task)
    with pytest.raises(BadInput, match="rounds or leaves tokens out already"):
        round_network(made.network, task, tmp_path / "again")
    with pytest.raises(BadInput, match="weights of 9 bits"):
        round_network(network, task, tmp_path / "again", weights=9)
    with pytest.raises(BadInput, match="did you mean"):
        round_network(network, task, tmp_path / "again", method="repqant")
    assert main(["round", "nothing", "-o", str(tmp_path / "again"), "--task", "images:nothing"]) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        {"bits": 4, "step": 0.0, "zero": 1},
        {"bits": 4, "step": float("nan"), "zero": 1},
        {"bits": 4, "step": 0.1, "zero": 16},
        {"bits": 40, "step": 0.1, "zero": 1},
        {"bits": 4, "step": 0.1},
        [4],
    ],
)
def test_levels_that_are_none_are_not_believed(data: object) -> None:
    assert even_of(data) is None


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    small = method("repq-vit").rounded(job(pictured.vit()))
    save_artifact(small, tmp_path / "small", RECORD)
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    assert config["quantization_config"]["version"] == 5
    table = config["quantization_config"]["attention"]["vit.layers.0.attention"]["weights"]
    table["values"] = table["values"][::-1]
    file.write_text(json.dumps(config))
    from transformers import AutoModelForImageClassification

    with pytest.raises(BadArtifact, match="levels do not rise"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert small.model.config._attn_implementation == NAME
