"""Budgets of bytes: structure and bits decided together, trained on the grid, fitted to the byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import isthmus
import networks
import quick
import small
from isthmus.allocation.joint import Joint, choose, search, spend
from isthmus.allocation.problem import Allocation
from isthmus.bottlenecks.coder import Setting
from isthmus.bottlenecks.curves import Candidate, between, coded_matrices
from isthmus.cli.main import main
from isthmus.errors import UnreachableBudget
from isthmus.flow import joint
from isthmus.flow.coding import JointProblem, coarser, rounded_anew
from isthmus.network import embed
from isthmus.plan import Coding, load_plan
from isthmus.recovery.straight import straight_through
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Uniform, decode, exponents_of, scale_of
from isthmus.storage.weights import weight_bytes

ORDER = ["narrow", "tiny", "--task", "text:text.txt", "--effort", "faster", "--method", "fisher", "--quiet"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small.write_network(tmp_path / "tiny")
    small.write_text(tmp_path / "text.txt", 90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("budget", "effort"), [("bytes=40%", "none"), ("bytes=14%", "none"), ("bytes=12%", "faster")])
def test_a_budget_of_bytes_is_met_by_codes(place: Path, budget: str, effort: str) -> None:
    assert main([*ORDER, "--to", budget, "-o", "made", "--effort", effort]) == 0
    limit = float(budget.partition("=")[2].rstrip("%")) / 100 * weight_bytes("tiny")
    assert weight_bytes("made") <= limit
    record = json.loads((place / "made" / "isthmus.json").read_text())
    assert record["measurements"]["narrowed"]["bytes"] == weight_bytes("made")
    codings = record["plan"]["codings"]
    assert codings
    if budget != "bytes=40%":  # the finest codes there are take less than that
        assert weight_bytes("made") >= 0.985 * limit
    if effort == "none":
        assert record["plan"]["predicted"]["bytes"] == weight_bytes("made")
    text = small.sentences(20)
    opened = isthmus.open("made")
    plain = AutoModel.from_pretrained("made").eval()
    np.testing.assert_array_equal(embed(opened, text), embed(replace(opened, model=plain), text))


def test_the_same_seed_gives_the_same_file(place: Path) -> None:
    for name in ("one", "two"):
        assert main([*ORDER, "--to", "bytes=12%", "-o", name]) == 0
    assert (place / "one" / "model.safetensors").read_bytes() == (place / "two" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("codes", ["deepcabac", "vptq", "residual-codebook,deepcabac"])
def test_training_never_ends_worse_than_it_began(place: Path, codes: str) -> None:
    assert main([*ORDER, "--to", "bytes=14%", "--codes", codes, "-o", "made"]) == 0
    assert weight_bytes("made") <= 0.14 * weight_bytes("tiny")
    record = json.loads((place / "made" / "isthmus.json").read_text())
    nats = record["measurements"]["distortion"]
    assert nats["measured_after_recovery"] <= nats["measured_before_recovery"]
    tuned = [curve for curve in record["curves"] if curve["name"] == "tuned codes: divergence"]
    assert bool(tuned) == (codes != "deepcabac"), "codes that are looked up are tuned"
    for curve in tuned:
        losses = [loss for _, loss in curve["points"]]
        assert losses == sorted(losses, reverse=True)


def test_units_go_beside_codes_that_look_up_or_factor(place: Path) -> None:
    """What is left of a matrix may have columns that the vectors measured on the whole do not fill."""
    asked = [*ORDER, "--to", "bytes=9%", "--codes", "vptq,alds", "--effort", "none"]
    assert main([*asked, "-o", "made"]) == 0
    assert weight_bytes("made") <= 0.09 * weight_bytes("tiny")
    plan = json.loads((place / "made" / "isthmus.json").read_text())["plan"]
    assert plan["predicted"]["params"] < plan["original"]["params"], "units went"


def test_a_plan_with_codes_replays(place: Path) -> None:
    task = ["--task", "text:text.txt", "--method", "fisher", "--quiet"]
    assert main(["plan", "tiny", *task, "--to", "bytes=13%", "-o", "plan.json"]) == 0
    assert {coding.coder for coding in load_plan("plan.json").codings} == {"deepcabac"}
    assert (
        main(
            [
                "narrow",
                "tiny",
                "--task",
                "text:text.txt",
                "--plan",
                "plan.json",
                "--effort",
                "none",
                "-o",
                "made",
                "--quiet",
            ]
        )
        == 0
    )
    assert main([*ORDER, "--to", "bytes=13%", "--effort", "none", "-o", "direct"]) == 0
    assert (place / "made" / "model.safetensors").read_bytes() == (place / "direct" / "model.safetensors").read_bytes()
    assert weight_bytes("made") == load_plan("plan.json").predicted["bytes"]


def test_without_codes_bytes_are_met_by_structure(place: Path) -> None:
    # The layers of a random network carry nothing: were they free to go, they would, and less be left than may be.
    kinds = "vocabulary,width,heads,neurons,feature"
    assert main([*ORDER, "--to", "bytes=70%", "--codes", "none", "--sites", kinds, "-o", "made"]) == 0
    record = json.loads((place / "made" / "isthmus.json").read_text())
    assert record["plan"]["codings"] == []
    assert 0.65 * weight_bytes("tiny") <= weight_bytes("made") <= 0.7 * weight_bytes("tiny")
    assert record["plan"]["predicted"]["bytes"] == weight_bytes("made")
    assert record["plan"]["predicted"]["params"] < record["plan"]["original"]["params"], "units went"


@pytest.mark.parametrize(("second", "kept"), [((0.25, 0.15), "second"), ((0.5, 0.3), "first")])
def test_nats_that_do_not_add_up_are_corrected(
    monkeypatch: pytest.MonkeyPatch, second: tuple[float, float], kept: str
) -> None:
    """Units lose twice and codes three times what was predicted: the second plan counts them so."""
    candidate = Candidate("deepcabac", Setting(3.0), 3.0, 0.01)
    study: Any = None
    problem = JointProblem(study, {"a": np.array([0.1, 0.2])}, {"m": (candidate,)}, {}, {}, {})
    none: Any = None
    answers = [
        joint.Fitted(none, (), 1, (0.1, 0.1), (0.2, 0.3)),
        joint.Fitted(none, (), 2, (0.2, 0.2), second),
    ]
    asked: list[JointProblem] = []

    def fitted(given: JointProblem, _: object) -> joint.Fitted:
        asked.append(given)
        return answers[len(asked) - 1]

    monkeypatch.setattr(joint, "_fitted", fitted)
    found, best, notes = joint._corrected(problem, lambda *_: None)
    np.testing.assert_allclose(asked[1].nats["a"], [0.2, 0.4])
    assert asked[1].curves["m"][0].nats == pytest.approx(0.03)
    assert (found, best) == ((asked[1], answers[1]) if kept == "second" else (problem, answers[0]))
    assert "0.100 nats predicted of units and 0.100 of codes, 0.200 and 0.300 measured" in notes[0]
    assert len(notes) == (2 if kept == "second" else 3)


def test_nats_that_add_up_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    none: Any = None
    problem = JointProblem(none, {}, {}, {}, {}, {})
    monkeypatch.setattr(joint, "_fitted", lambda *_: joint.Fitted(none, (), 1, (0.1, 0.2), (0.105, 0.19)))
    assert joint._corrected(problem, lambda *_: None)[0] is problem


@pytest.mark.parametrize(("alone", "kept"), [(0.08, "alone"), (0.2, "mixed")])
def test_one_coder_alone_is_kept_where_it_loses_less(monkeypatch: pytest.MonkeyPatch, alone: float, kept: str) -> None:
    """Of two coders one is predicted to lose nearly as little as both: it is measured; the other is not."""
    made = {name: Candidate(name, Setting(3.0), 3.0, nats) for name, nats in (("deepcabac", 0.011), ("vptq", 0.03))}
    none: Any = None
    problem = JointProblem(none, {}, {"m": tuple(made.values())}, {}, {}, {})

    def searched(at: Any, _: object) -> tuple[Joint, list[Joint]]:
        nats = at.__self__.curves["m"][0].nats
        return Joint(0.0, none, {}, nats, 1.0), []

    codings = tuple(Coding(parameter=name, coder=name, bits=3.0) for name in made)
    mixed = joint.Fitted(Joint(0.0, none, {}, 0.01, 1.0), codings, 1, (0.0, 0.01), (0.0, 0.1))
    single = joint.Fitted(Joint(0.0, none, {}, 0.011, 1.0), codings[:1], 1, (0.0, 0.011), (0.0, alone))
    monkeypatch.setattr(joint, "search", searched)
    monkeypatch.setattr(
        joint, "_fitted", lambda given, _: single if len(given.curves["m"]) == 1 else pytest.fail("all")
    )
    _, best, notes = joint._with_one_coder(problem, mixed, [], lambda *_: None)
    assert best is (single if kept == "alone" else mixed)
    assert [note for note in notes if "deepcabac alone" in note]
    assert not [note for note in notes if "vptq alone" in note]


@pytest.mark.parametrize(
    ("budget", "sites", "method", "kinds"),
    [
        ("params=80%", "neurons", "vib", {"neurons"}),
        ("params=75%", "neurons,heads", "fisher", {"neurons", "heads"}),
        ("bytes=13%", "none", "fisher", set()),
    ],
)
def test_only_kinds_that_may_lose_units_do(place: Path, budget: str, sites: str, method: str, kinds: set[str]) -> None:
    assert main([*ORDER, "--to", budget, "--sites", sites, "--method", method, "-o", "made"]) == 0
    record = json.loads((place / "made" / "isthmus.json").read_text())
    assert {decision["kind"] for decision in record["plan"]["decisions"]} == kinds
    currency, _, share = budget.partition("=")
    measured = record["measurements"]["narrowed"][currency] / record["measurements"]["original"][currency]
    assert 0.97 * float(share[:-1]) / 100 <= measured <= float(share[:-1]) / 100


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--to", "params=80%", "--sites", "nuerons"], "did you mean neurons"),
        (["--to", "params=80%", "--sites", "none"], "the smallest this network can become is params=100%"),
        (["--to", "bytes=12%", "--codes", "deepcabak"], "did you mean deepcabac"),
        (["--to", "bytes=0.2%"], "bytes"),
    ],
)
def test_bad_input_is_one_line(place: Path, capsys: pytest.CaptureFixture[str], extra: list[str], words: str) -> None:
    assert main([*ORDER, *extra, "-o", "made"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert words in told[-1]
    assert not (place / "made").exists()


def grid(weight: np.ndarray) -> Uniform:
    scale = exponents_of(np.full((len(weight), 1), 0.11))
    return Uniform(np.rint(weight / scale_of(scale)).astype(np.int32), (scale,))


def test_weights_are_rounded_where_they_are_read_and_move_as_if_they_were_not() -> None:
    model = networks.tiny("bert").model
    names = coded_matrices(model)
    codes = {name: grid(model.get_parameter(name).detach().numpy()) for name in names}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = networks.tokens()
    decoded = networks.tiny("bert").model
    with torch.no_grad():
        for name, code in codes.items():
            decoded.get_parameter(name).copy_(torch.from_numpy(decode(code)))
    decoded.zero_grad()
    expected = decoded(**inputs).last_hidden_state
    expected.square().sum().backward()
    with straight_through(model, codes):
        found = model(**inputs).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        found.square().sum().backward()
        for name in names:
            path = name.rpartition(".")[0]
            original = model.get_submodule(path).parametrizations.weight.original
            torch.testing.assert_close(original.grad, decoded.get_parameter(name).grad)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_scales_grow_by_what_is_asked_in_the_mean() -> None:
    exponents = np.arange(1000, dtype=np.int32)[:, None]
    for octaves in (0.01, 0.2, -0.13):
        moved = coarser(exponents, octaves)
        assert (moved - exponents).mean() / 16 == pytest.approx(octaves, abs=1e-3)
        assert np.ptp(moved - exponents) <= 1


def test_grids_far_finer_than_the_weights_can_be_written() -> None:
    network = networks.tiny("bert")
    name = "encoder.layer.0.output.dense.weight"
    code = grid(network.model.get_parameter(name).detach().numpy())
    finer = rounded_anew(network, name, code, 40.0)
    assert decode(unpack(pack(finer), finer.shape)).shape == finer.shape


def candidates() -> dict[str, tuple[Candidate, ...]]:
    fine, coarse = Candidate("c", Setting(3.0), 3.1, 0.01), Candidate("c", Setting(1.5), 1.7, 0.05)
    return {"a": tuple(between([fine, coarse])), "b": tuple(between([fine, Candidate("c", Setting(1.5), 1.7, 0.4)]))}


def test_between_measurements_nats_follow_the_line_and_beyond_them_theory() -> None:
    found = {one.setting.bits: one for one in candidates()["a"]}
    assert found[3.0].nats == pytest.approx(0.01)
    assert found[1.5].nats == pytest.approx(0.05)
    assert found[2.25].nats == pytest.approx((0.01 * 0.05) ** 0.5)
    assert found[4.0].nats == pytest.approx(0.0025)
    assert found[3.0].bits == pytest.approx(3.1)
    assert found[8.0].bits == pytest.approx(8.1)


def test_the_choice_is_the_best_of_all_at_its_bytes() -> None:
    """Against every pair of settings."""
    curves, entries = candidates(), {"a": 1000.0, "b": 3000.0}

    def cost(pair: tuple[Candidate, Candidate]) -> tuple[float, float]:
        return sum(one.nats for one in pair), pair[0].bits * 1000 / 8 + pair[1].bits * 3000 / 8

    everything = [cost((a, b)) for a in curves["a"] for b in curves["b"]]
    for price in (1e-6, 1e-5, 1e-4):
        chosen = choose(curves, entries, price)
        nats, size = cost((chosen["a"], chosen["b"]))
        assert nats <= min(other for other, held in everything if held <= size * (1 + 1e-12)) * (1 + 1e-12)


def test_bytes_that_are_left_over_are_spent_where_they_save_most() -> None:
    """Two matrices of few settings, against every pair of settings; and nothing is spent that is not there."""
    few = {
        "a": tuple(Candidate("c", Setting(bits), bits, nats) for bits, nats in ((4, 0.01), (2, 0.3), (1, 0.5))),
        "b": tuple(Candidate("c", Setting(bits), bits, nats) for bits, nats in ((4, 0.02), (2, 0.1), (1, 0.9))),
    }
    weights = {"a": 800.0, "b": 1600.0}
    coarsest = {name: found[-1] for name, found in few.items()}
    pairs = [
        ((a.bits - 1) * 100 + (b.bits - 1) * 200, a.nats + b.nats, {"a": a, "b": b}) for a in few["a"] for b in few["b"]
    ]
    for spare in (0.0, 150.0, 200.0, 500.0, 700.0, 900.0):
        found = spend(few, weights, coarsest, spare)
        taken = sum(weights[name] * (one.bits - 1) / 8 for name, one in found.items())
        assert taken <= spare
        least = min(nats for size, nats, _ in pairs if size <= spare)
        assert sum(one.nats for one in found.values()) == pytest.approx(least)
    gone = spend(few, {"a": 800.0, "b": 0.0}, coarsest, 1e6)
    assert gone == {"a": few["a"][0], "b": coarsest["b"]}


def test_the_price_is_searched_where_the_least_is_lost() -> None:
    def solve(price: float) -> Joint:
        if price < 1e-8:
            raise UnreachableBudget("too dear")
        return Joint(price, Allocation({}, {}, {}), {}, (np.log10(price) + 6.3) ** 2, 0.0)

    best, everything = search(solve, tuple(10.0**power for power in range(-10, -3)), refine=4)
    assert np.log10(best.price) == pytest.approx(-6.3, abs=0.1)
    assert [one.price for one in everything] == sorted(one.price for one in everything)
    with pytest.raises(UnreachableBudget, match="too dear"):
        search(solve, (1e-10, 1e-9))
