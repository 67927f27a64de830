"""Claims about trained codes: rules on made-up results, and the points themselves on a tiny network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from claims import bitnet_b158_reloaded as bitnet
from claims import paretoq
from claims.coding import Claim, Point, Workbench, run
from claims.equal_bytes import DRAWS
from claims.paretoq import pareto
from claims.tables import render
from claims.trained import Anew, Lsq, Recoded, Trainer, coded_anew, weight_of
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED

import networks
import small
from isthmus.bottlenecks.bits.bitnet import BitNet, median_ternary
from isthmus.bottlenecks.bits.fake_quantize import paretoq_quantizer
from isthmus.bottlenecks.bits.paretoq import ParetoQ
from isthmus.bottlenecks.coder import Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import Uniform, decode, scale_of
from isthmus.tasks.task import HeldOut, Task

CLAIMS = (paretoq.CLAIM, bitnet.CLAIM)
every_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.slug)


def outcome(arm: str, level: float, size: float, relative: float, nats: float, **more: Any) -> dict[str, Any]:
    """Return a made-up outcome; resamples are a hundredth of a point apart."""
    return {
        "arm": arm,
        "level": level,
        "seed": 0,
        "bytes": size,
        "bits": level,
        "relative": relative,
        "nats": nats,
        "nats_by_group": [nats * factor for factor in (0.9, 1.0, 1.1)],
        "resamples": [relative + 1e-4 * (draw % 2) for draw in range(DRAWS)],
        **more,
    }


def line(arm: str, at: tuple[float, ...] = paretoq.WIDTHS, shift: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """Return outcomes on straight lines of score and of the logarithm of nats."""
    return [outcome(arm, each, 100 * each, 0.9 + 0.02 * each + shift, math.exp(-each), **more) for each in at]


@pytest.mark.parametrize(
    ("before", "levels", "verdict"), [((9, 9), 2, HOLDS), ((9, 0), 2, MIXED), ((0, 0), 2, FAILS), ((9, 9), 17, FAILS)]
)
def test_every_width_is_trained(before: tuple[float, float], levels: int, verdict: str) -> None:
    rows = line("paretoq", (4.0, 3.0), before=before[0], levels=levels) + line(
        "paretoq", (1.0,), before=before[1], levels=levels
    )
    assert paretoq.every_width(rows)["verdict"] == verdict


@pytest.mark.parametrize(("few", "verdict"), [(0.16, HOLDS), (0.14, MIXED), (0.09, FAILS)])
def test_how_far_weights_move(few: float, verdict: str) -> None:
    rows = line("paretoq", (4.0, 3.0), moved=0.1) + line("paretoq", (2.0, 1.58), moved=0.9)
    assert paretoq.drift([*rows, *line("paretoq", (1.0,), moved=few)])["verdict"] == verdict
    assert paretoq.drift(line("paretoq", (4.0,), moved=0.1))["verdict"] == UNTESTED


@pytest.mark.parametrize(
    ("shifts", "verdict"), [((-0.01, -0.01), HOLDS), ((-0.01, 0.01), MIXED), ((0.01, 0.01), FAILS), ((0, 0), MIXED)]
)
def test_own_quantizers_against_one(shifts: tuple[float, float], verdict: str) -> None:
    rows = line("paretoq") + line("lsq", (2.0,), shifts[0]) + line("lsq", (1.58,), shifts[1])
    assert paretoq.own_form(rows)["verdict"] == verdict
    assert paretoq.own_form(line("paretoq"))["verdict"] == UNTESTED


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, HOLDS), (0.0, FAILS), (-0.01, FAILS)])
def test_between_one_bit_and_four(shift: float, verdict: str) -> None:
    rows = line("paretoq", (4.0, 1.0)) + line("paretoq", (3.0, 2.0, 1.58), shift)
    assert paretoq.trade_off(rows)["verdict"] == verdict
    some = line("paretoq", (4.0, 2.0, 1.58, 1.0)) + line("paretoq", (3.0,), 0.01)
    assert paretoq.trade_off(some)["verdict"] == MIXED
    assert paretoq.trade_off(line("paretoq", (4.0, 3.0)))["verdict"] == UNTESTED


def test_what_no_other_beats() -> None:
    rows = [outcome("a", level, size, score, 1) for level, size, score in ((4, 9, 0.9), (3, 5, 0.95), (1, 2, 0.5))]
    assert pareto([*rows, outcome("a", 2, 5, 0.8, 1)]) == [3, 1]


@pytest.mark.parametrize(("relative", "verdict"), [(0.99, HOLDS), (0.96, MIXED), (0.9, FAILS)])
def test_likeness(relative: float, verdict: str) -> None:
    assert bitnet.likeness([outcome("median", 1.58, 9, relative, 1)])["verdict"] == verdict
    assert bitnet.likeness([])["verdict"] == UNTESTED


@pytest.mark.parametrize(
    ("shift", "size", "verdict"),
    [(0.01, 101, HOLDS), (0.01, 103, MIXED), (-0.01, 99, FAILS), (-0.01, 90, MIXED), (0.0, 100, MIXED)],
)
def test_the_median_against_the_mean(shift: float, size: float, verdict: str) -> None:
    rows = [outcome("median", 1.58, size, 0.9 + shift, 0.1), outcome("mean", 1.58, 100, 0.9, 0.1)]
    rows.append(outcome("median, trained", 1.58, 1, 0.1, 9))  # shown beside, and not what decides
    assert bitnet.median_or_mean(rows)["verdict"] == verdict
    assert bitnet.median_or_mean([rows[0], rows[2]])["verdict"] == UNTESTED


@pytest.mark.parametrize(("bits", "exact", "verdict"), [(2, 3, HOLDS), (2.1, 3, FAILS), (2, 2, FAILS)])
def test_two_bits_and_back(bits: float, exact: int, verdict: str) -> None:
    rows = [outcome("median", bits, 9, 1, 1, exact=exact, matrices=3)]
    assert bitnet.packed(rows)["verdict"] == verdict
    rows.append(outcome("median", 1.6, 9, 1, 1, exact=3, matrices=3))
    assert bitnet.packed(rows)["verdict"] == (verdict if verdict == HOLDS else MIXED)


# The points.


@cache
def bench() -> Trainer:
    """Return a tiny network with made-up pairs of sentences, trained for a few steps."""
    text = small.sentences(260)
    rng = np.random.default_rng(0)
    held = HeldOut(left=tuple(text[180:220]), right=tuple(text[220:260]), scores=tuple(rng.uniform(size=40).tolist()))
    task = Task("sts", "made up", tuple(text[:180]), held, "spearman", "f" * 64)
    network = networks.worded("bert")
    network.model.encoder.layer = network.model.encoder.layer[:1]
    network.model.config.num_hidden_layers = 1
    return Trainer(Workbench(network, task, say=lambda _: None), steps=8)


def test_texts_that_are_trained_on_are_not_those_that_are_measured() -> None:
    own = bench()
    measured = {text for probe in own.probes for group in probe.examples for text in group}
    assert own.texts
    assert not measured & set(own.texts)
    assert not set(own.task.held_out.passages) & set(own.texts)


@pytest.mark.parametrize("label", ["paretoq", "lsq"])
def test_a_point_is_trained_and_its_levels_are_those_of_its_quantizer(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = bench().recipe
    monkeypatch.setattr(Trainer, "recipe", property(lambda self: replace(usual, learning_rate=5e-3)))
    own = bench()
    (arm,) = (one for one in paretoq.CLAIM.arms if one.label == label)
    point = Point(label, 2.0, 0)
    start = own.codes(arm, 2.0, 0)
    student, made = own.train(arm, point, start)
    again = own.measure(arm, point)
    assert again["levels"] == 4
    assert again["packed"].keys() == made.keys()
    assert again["moved"] == pytest.approx(
        sum(np.abs(weight_of(student, name) - weight).sum() for name, weight in own.weights.items())
        / sum(np.abs(weight).sum() for weight in own.weights.values())
    )
    assert 0 < again["moved"] < 0.5
    assert any((made[name].scales[0] != start[name].scales[0]).any() for name in made)  # type: ignore[union-attr]
    for name, code in made.items():
        assert isinstance(code, Uniform)
        scaled = weight_of(student, name) / scale_of(code.scales[0])
        expected = np.clip(np.rint(scaled), -2, 1) if label == "lsq" else np.clip(2 * np.floor(scaled / 2) + 1, -3, 3)
        np.testing.assert_array_equal(code.integers, expected)
    assert own.network.model.get_parameter(own.names[0]).requires_grad
    np.testing.assert_array_equal(weight_of(own.network, own.names[0]), own.weights[own.names[0]])


@pytest.mark.parametrize("mean", [False, True])
def test_a_scale_that_follows_is_that_of_the_weights_at_the_end(mean: bool) -> None:
    own = bench()
    (arm,) = (one for one in bitnet.CLAIM.arms if one.label == ("mean" if mean else "median"))
    student, made = own.train(arm, Point(arm.label, 1.58, 0), own.codes(arm, 1.58, 0))
    for name, code in made.items():
        # The pooler takes no part in the mean over tokens.
        assert np.array_equal(weight_of(student, name), own.weights[name]) == name.startswith("pooler")
        expected = median_ternary(weight_of(student, name), mean=mean)
        np.testing.assert_array_equal(decode(code), decode(expected))


def test_weights_coded_anew_are_read_as_their_codes_and_all_move() -> None:
    own = bench()
    name = own.names[-1]
    model = networks.worded("bert").model
    part = Recoded(Anew(BitNet()), own.statistics[name], Setting(1.58))
    weight = weight_of(own.network, name)
    with coded_anew(model, {name: part}):
        module = model.get_submodule(name.rpartition(".")[0])
        with torch.no_grad():
            module.parametrizations.weight.original.copy_(torch.from_numpy(weight))
        np.testing.assert_array_equal(module.weight.detach().numpy(), decode(median_ternary(weight)))
        (gradient,) = torch.autograd.grad(module.weight.sum(), module.parametrizations.weight.original)
        assert (gradient == 1).all()
    np.testing.assert_array_equal(model.get_parameter(name).detach().numpy(), weight)


def test_the_shared_form_of_three_bits_is_that_of_paretoq() -> None:
    own = bench()
    name = own.names[0]
    for bits in (4.0, 3.0):
        codes = [
            coder.code(own.weights[name], own.statistics[name], Setting(bits)) for coder in (Lsq(), ParetoQ(fit=True))
        ]
        np.testing.assert_array_equal(decode(codes[0]), decode(codes[1]))
        assert Lsq.quantizer(bits) == paretoq_quantizer(bits)
    assert Lsq.quantizer(2).low == -2


@every_claim
def test_quick_run_goes_on_where_it_stopped(claim: Claim, tmp_path: Path) -> None:
    out, said = tmp_path / "claim.json", list[str]()
    short = Trainer(bench(), steps=2)
    verdict = run(claim, short, out, seeds=(0,), quick=True, say=said.append)
    assert (verdict == "unfinished") == (claim is paretoq.CLAIM), "the other has one level an arm, all measured"
    result = json.loads(out.read_text())
    assert {one["arm"] for one in result["points"]} == {one.label for one in claim.arms}
    assert "2 steps" in result["experiment"]
    assert result["record"]["steps"] == 2
    page = render([result])
    assert f"## {claim.slug}: {verdict}" in page
    assert f"`{result['points'][0]['arm']}` | {result['points'][0]['setting']}" in page
    first = out.read_text()
    run(claim, short, out, seeds=(0,), quick=True, say=said.append)
    assert out.read_text() == first
    assert "0 points to measure" in " ".join(said)
    with pytest.raises(BadInput, match="another steps"):
        run(claim, Trainer(bench(), steps=3), out, seeds=(0,), quick=True, say=said.append)
    if claim is bitnet.CLAIM:
        assert all(one["exact"] == one["matrices"] == len(bench().names) for one in result["points"])
