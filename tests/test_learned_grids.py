"""Learned grids: scales trained with the weights, kept as whole exponents, levels within the coder's range."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
import networks
import quick
import small
from isthmus.bottlenecks.bits import fake_quantize
from isthmus.bottlenecks.bits.bitnet import BitNet, median_ternary
from isthmus.bottlenecks.bits.fake_quantize import TERNARY, Quantizer, paretoq_quantizer
from isthmus.bottlenecks.bits.paretoq import WIDTHS, ParetoQ
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.curves import coded_matrices
from isthmus.cli.main import main
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.flow.coding import file_bytes, fit_scales, quantizers_of, rounded_anew
from isthmus.network import Network
from isthmus.plan import Coding
from isthmus.progress import silent
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.straight import Learned, straight_through, trained_codes
from isthmus.recovery.train import recover
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.blobs import unpack
from isthmus.storage.coded import Uniform, decode, exponents_of, scale_of
from isthmus.storage.holders import read_codes
from isthmus.storage.stages import StageStore
from isthmus.storage.weights import weight_bytes

LEVELS = {4.0: range(-8, 8), 3.0: range(-4, 4), 2.0: (-3, -1, 1, 3), 1.58: (-1, 0, 1), 1.0: (-1, 1)}


def linear(rows: int, columns: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    module = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(module.weight, std=0.05)
    return module


def coded(weight: np.ndarray, bits: float, group: int = 0) -> Uniform:
    rows, columns = weight.shape
    known = MatrixStatistics(Sensitivity(np.ones(rows, np.float32), np.ones(columns, np.float32)))
    return ParetoQ(fit=True).code(weight, known, Setting(bits, group))


def array(module: nn.Linear) -> np.ndarray:
    return module.weight.detach().numpy().copy()


def wrapped(module: nn.Linear) -> tuple[nn.Sequential, Network]:
    model = nn.Sequential(module)
    return model, Network("one", model, None, "mean", True, 8)


def train(model: nn.Module, wanted: torch.Tensor, inputs: torch.Tensor, steps: int, rate: float = 1e-3) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("group", [0, 11])
@pytest.mark.parametrize("bits", WIDTHS)
def test_before_any_step_a_weight_is_what_its_code_decodes_to(bits: float, group: int) -> None:
    module = linear(12, 31)
    code = coded(array(module), bits, group)
    model, _ = wrapped(module)
    with straight_through(model, {"0.weight": code}, {"0.weight": paretoq_quantizer(bits)}):
        np.testing.assert_array_equal(module.weight.detach().numpy(), decode(code))


@pytest.mark.parametrize("group", [0, 10])
def test_what_lies_on_a_grid_stays_there(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the grid of a code that is not trained, all rows at once and two at a time."""
    module = linear(7, 31)
    code = coded(array(module), 2.0, group)
    module.weight.data = torch.from_numpy(decode(code)) + 1e-4
    for at_once in (1 << 16, 70):
        monkeypatch.setattr(fake_quantize, "BLOCK", at_once)
        with straight_through(wrapped(module)[0], {"0.weight": code}):
            np.testing.assert_array_equal(module.weight.detach().numpy(), decode(code))


@pytest.mark.parametrize("bits", [4.0, 2.0, 1.58])
@pytest.mark.parametrize("group", [0, 10])
@pytest.mark.parametrize("at_once", [1 << 16, 70])
def test_the_step_of_a_scale_is_relative_and_by_the_gradient_of_lsq(
    bits: float, group: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula written out block by block; all rows at once, and two at a time."""
    monkeypatch.setattr(fake_quantize, "BLOCK", at_once)
    module = linear(6, 30)
    weight, code, quantizer = array(module), coded(array(module), bits, group), paretoq_quantizer(bits)
    model, _ = wrapped(module)
    slope = torch.from_numpy(np.random.default_rng(0).normal(size=weight.shape).astype(np.float32))
    with straight_through(model, {"0.weight": code}, {"0.weight": quantizer}) as grids:
        (module.weight * slope).sum().backward()
        found = grids["0.weight"].moved.grad.numpy()
    blocks = code.scales[0].shape[1]
    scales, width = scale_of(code.scales[0]), 30 // blocks
    reach = {4.0: 0, 2.0: 1, 1.58: 0.5}[bits]
    for row, block in np.ndindex(*scales.shape):
        columns = slice(block * width, (block + 1) * width)
        scaled = weight[row, columns] / scales[row, block]
        integers = code.integers[row, columns]
        clipped = (scaled < min(LEVELS[bits]) - reach) | (scaled > max(LEVELS[bits]) + reach)
        by_scale = np.sum(slope.numpy()[row, columns] * np.where(clipped, integers, integers - scaled))
        by_scale /= np.sqrt(width * max(LEVELS[bits]))
        expected = by_scale * scales[row, block] / np.sqrt(np.mean(weight**2))
        assert found[row, block] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_scale_moves_by_the_share_of_itself_that_a_weight_moves() -> None:
    """The first step of Adam is its rate for every parameter: all scales grow or shrink by ``exp(rate / rms)``."""
    module = linear(16, 64)
    code = coded(array(module), 3.0)
    rms = float(np.sqrt(np.mean(array(module) ** 2)))
    model, _ = wrapped(module)
    rate = rms * float(np.log(2)) / 4  # a quarter of an octave
    with straight_through(model, {"0.weight": code}, {"0.weight": paretoq_quantizer(3)}) as grids:
        train(model, torch.zeros(5, 16), torch.randn(5, 64), steps=1, rate=rate)
        (after,) = trained_codes({"0.weight": code}, grids)["0.weight"].scales
    assert set(np.abs(after - code.scales[0]).ravel()) == {4}


@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_that_are_far_off_are_found(bits: float) -> None:
    """Weights that lie on a grid, scales that start elsewhere: with them trained less is lost than without."""
    module = linear(8, 200)
    code = coded(array(module), bits)
    target = torch.from_numpy(decode(code))
    off = Uniform(code.integers, (code.scales[0] + 10,))
    inputs = torch.randn(64, 200)
    with torch.no_grad():
        module.weight.copy_(target)
    model, network = wrapped(module)
    model[0].weight.requires_grad_(False)
    quantizer = paretoq_quantizer(bits)
    with straight_through(model, {"0.weight": off}, {"0.weight": quantizer}) as grids:
        losses = train(model, inputs @ target.T, inputs, steps=60, rate=2e-3)
        shown = module.weight.detach().clone()
        codes = trained_codes({"0.weight": off}, grids)
    assert min(losses) < 0.2 * losses[0]
    np.testing.assert_array_equal(module.weight.detach(), target, "the weights are as they were")
    anew = rounded_anew(network, "0.weight", codes["0.weight"], 0.0, quantizer)
    np.testing.assert_array_equal(decode(anew), shown.numpy(), "what was trained is what is kept")


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_never_leave_the_range(bits: float) -> None:
    module = linear(8, 100)
    code = coded(array(module), bits)
    with torch.no_grad():
        module.weight.mul_(7)
    _, network = wrapped(module)
    for shift in (0.0, 2.5, -0.7):
        anew = rounded_anew(network, "0.weight", code, shift, paretoq_quantizer(bits))
        assert isinstance(anew, Uniform)
        assert set(np.unique(anew.integers)) <= set(LEVELS[bits])
        if shift >= 0:
            np.testing.assert_array_equal(anew.scales[0], code.scales[0], "never finer")
        else:
            assert (anew.scales[0] > code.scales[0]).all()
    free = rounded_anew(network, "0.weight", code, 0.0)
    assert isinstance(free, Uniform)
    assert set(np.unique(free.integers)) - set(LEVELS[bits]), "without a quantizer they do"


def test_a_budget_holds_by_coarser_grids_and_what_fits_is_left_alone() -> None:
    module = linear(40, 100)
    code = coded(array(module), 2.0)
    _, network = wrapped(module)
    quantizers = {"0.weight": paretoq_quantizer(2)}
    whole = file_bytes(network, {"0.weight": code})
    kept = fit_scales(network, {"0.weight": code}, 2.0 * whole, quantizers=quantizers)["0.weight"]
    np.testing.assert_array_equal(decode(kept), decode(code))
    made = fit_scales(network, {"0.weight": code}, 0.85 * whole, quantizers=quantizers)
    assert 0.8 * whole < file_bytes(network, made) <= 0.85 * whole
    assert set(np.unique(made["0.weight"].integers)) <= set(LEVELS[2.0])  # type: ignore[union-attr]
    with pytest.raises(UnreachableBudget, match="ask for bytes="):
        fit_scales(network, {"0.weight": code}, 0.1 * whole, quantizers=quantizers)


def test_only_some_coders_learn_their_scales() -> None:
    made = [Coding(parameter=name, coder=name, bits=1.58) for name in ("paretoq", "bitnet", "gptq", "deepcabac")]
    assert quantizers_of(made) == {"paretoq": Quantizer(-1, 1, reach=0.5), "bitnet": TERNARY}


def test_a_code_with_more_than_one_grid_is_refused_and_nothing_is_left_behind() -> None:
    module = linear(8, 100)
    weight = array(module)
    scale = exponents_of(np.full((8, 1), 0.1))
    model, _ = wrapped(module)
    with (
        pytest.raises(BadInput, match="one grid"),
        straight_through(
            model, {"0.weight": Uniform(np.zeros((8, 100), np.int32), (scale, scale))}, {"0.weight": TERNARY}
        ),
    ):
        pass
    np.testing.assert_array_equal(module.weight.detach(), weight)
    assert [name for name, _ in model.named_parameters()] == ["0.weight"]


def test_a_matrix_of_zeros_stays_one() -> None:
    module = linear(8, 100)
    nn.init.zeros_(module.weight)
    code = BitNet().code(array(module), MatrixStatistics(Sensitivity(np.ones(8), np.ones(100))), Setting(1.58))
    part = Learned(code, TERNARY, module.weight)
    part(module.weight).sum().backward()
    assert torch.isfinite(part.moved.grad).all()
    assert not part(module.weight).any()


# The flow.

ORDER = ["narrow", "tiny", "--task", "text:text.txt", "--effort", "faster", "--method", "fisher", "--quiet"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    small.write_network(tmp_path / "tiny")
    small.write_text(tmp_path / "text.txt", 90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened_codes(folder: str) -> tuple[dict[str, Any], dict[str, Uniform]]:
    """Return the record of an artifact, and the codes in its file."""
    record = json.loads((Path(folder) / "isthmus.json").read_text())
    model = isthmus.open(folder).model
    sizes = {coding["parameter"]: 0 for coding in record["plan"]["codings"]}
    data = read_codes(Path(folder) / "model.safetensors", sizes)
    found = {}
    for name, packed in data.items():
        code = unpack(packed, tuple(model.get_parameter(name).shape))
        assert isinstance(code, Uniform)
        np.testing.assert_array_equal(decode(code), model.get_parameter(name).detach().numpy())
        found[name] = code
    return record, found


def check(folder: str, codes: set[str], budget: int) -> None:
    """Hold an artifact against its budget and its levels against those of its coders."""
    assert weight_bytes(folder) <= budget / 100 * weight_bytes("tiny")
    record, found = opened_codes(folder)
    assert record["coding_recipe"]["steps"] > 0
    assert {coding["coder"] for coding in record["plan"]["codings"]} == codes
    for coding in record["plan"]["codings"]:
        if coding["coder"] != "deepcabac":
            assert set(np.unique(found[coding["parameter"]].integers)) <= set(LEVELS[coding["bits"]])
    losses = next(one["points"] for one in record["curves"] if one["name"] == "codes: loss")
    assert losses[-1][1] < 0.8 * losses[0][1], "it learns on the grid"


@pytest.mark.parametrize("codes", ["paretoq", "bitnet"])
def test_trained_grids_meet_a_budget_and_are_the_same_for_a_seed(place: Path, codes: str) -> None:
    for name in ("one", "two"):
        assert main([*ORDER, "--to", "bytes=20%", "--codes", codes, "--sites", "none", "-o", name]) == 0
    assert (place / "one" / "model.safetensors").read_bytes() == (place / "two" / "model.safetensors").read_bytes()
    check("one", {codes}, 20)
    if codes == "bitnet":  # four bits are trained too slowly for so few steps to show
        record, found = opened_codes("one")
        original, moved = isthmus.open("tiny").model, []
        for coding in record["plan"]["codings"]:
            first = median_ternary(original.get_parameter(coding["parameter"]).detach().numpy())
            moved.append(abs(int((found[coding["parameter"]].scales[0] - first.scales[0]).item())))
        assert sum(one > 0 for one in moved) > len(moved) / 2, "scales are trained"
        assert max(moved) < 16, "and end within an octave of where they began"


@pytest.mark.parametrize(
    ("codes", "budget", "extra"), [("paretoq", 9, []), ("deepcabac,paretoq", 14, ["--sites", "none"])]
)
def test_two_levels_and_grids_of_both_kinds(place: Path, codes: str, budget: int, extra: list[str]) -> None:
    assert main([*ORDER, "--to", f"bytes={budget}%", "--codes", codes, *extra, "-o", "made"]) == 0
    check("made", set(codes.split(",")), budget)


class Killed(BaseException):
    """Stops a run where it is."""


def test_a_resumed_run_ends_with_the_same_scales(tmp_path: Path) -> None:
    teacher = networks.worded("bert")
    recipe = Recipe(steps=12, learning_rate=5e-3, batch=16, warmup=2, evaluate_every=4, patience=0)
    names = coded_matrices(teacher.model)
    codes = {name: coded(teacher.model.get_parameter(name).detach().numpy(), 2.0) for name in names}
    quantizers = dict.fromkeys(names, paretoq_quantizer(2))

    def run(stages: StageStore | None, progress: Any = silent) -> tuple[list[Any], dict[str, Any]]:
        student = networks.worded("bert")
        with straight_through(student.model, codes, quantizers) as grids:
            recover(student, teacher, small.sentences(80), recipe, stages=stages, save_seconds=0, progress=progress)
            scales = [code.scales[0] for code in trained_codes(codes, grids).values()]  # type: ignore[union-attr]
        return scales, student.model.state_dict()

    def kill(stage: str, done: float, total: float, note: str = "") -> None:
        if done == 7:
            raise Killed

    scales, weights = run(None)
    assert any((own != codes[name].scales[0]).any() for name, own in zip(names, scales, strict=True))
    with pytest.raises(Killed):
        run(StageStore(tmp_path / "stages", {}), kill)
    again, others = run(StageStore(tmp_path / "stages", {}, resume=True))
    for own, other in zip(scales, again, strict=True):
        np.testing.assert_array_equal(own, other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
