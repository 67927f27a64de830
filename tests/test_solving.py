"""Solving after a cut: it brings the network closer, the same each time, or is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isthmus
import quick
import small
from isthmus.errors import IsthmusError
from isthmus.flow import recovering, solving
from isthmus.flow.coding import file_bytes
from isthmus.flow.solving import solve
from isthmus.flow.study import Study, cut, start_study
from isthmus.network import tokenize
from isthmus.recovery.train import Recovered, recover
from isthmus.relevance.probe import measure_network
from isthmus.storage.opening import open as open_network


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("solving")
    network = open_network(small.write_network(folder / "tiny"))
    return start_study(network, isthmus.task(f"text:{small.write_text(folder / 'text.txt', 400)}"))


def halved(study: Study) -> dict[str, tuple[int, ...]]:
    return {site.name: tuple(range(0, site.units, 2)) for site in study.sites if site.kind in ("heads", "neurons")}


def test_what_is_solved_is_closer_and_the_same_each_time(study: Study) -> None:
    kept = halved(study)
    student = cut(study, kept)
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    solved, again = solve(study, student, kept), solve(study, student, kept)
    assert solved is not None
    assert again is not None
    assert measure_network(study.probe, solved) < 0.8 * measure_network(study.probe, student)
    for name, tensor in solved.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
        assert tensor.shape == before[name].shape
        assert torch.equal(student.model.state_dict()[name], before[name]), "what was given is left as it is"


def test_it_is_left_out_where_it_is_of_no_use(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = halved(study)
    whole = replace(study.network, name="whole")
    assert solve(study, whole, {}) is None, "nothing was lost, so nothing can come closer"
    apart = cut(study, kept)
    monkeypatch.setattr(solving, "reconstruct", _refuse)
    assert solve(study, apart, kept) is None


def _refuse(*arguments: object, **named: object) -> None:
    raise IsthmusError("reconstruction: no text has the same tokens in both networks; give more texts")


def test_texts_are_bounded_by_their_tokens(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "TOKENS", 60)
    texts = solving._examples(study)
    counts = [int(tokenize(study.network, [text])["attention_mask"].sum()) for text in study.examples]
    assert list(texts) == list(study.examples[: len(texts)])
    assert sum(counts[: len(texts)]) <= 60 < sum(counts[: len(texts) + 1])
    monkeypatch.setattr(solving, "TOKENS", 1)
    assert len(solving._examples(study)) == 1


def test_without_training_it_is_solved_and_the_record_says_by_how_much(study: Study, tmp_path: Path) -> None:
    made = isthmus.narrow(
        study.network, study.task, to="params=70%", method="magnitude", effort="none", out=tmp_path / "small"
    )
    distortion = made.record["measurements"]["distortion"]
    assert distortion["measured_after_recovery"] <= distortion["measured_before_recovery"]
    opened = open_network(tmp_path / "small")
    assert measure_network(study.probe, opened) == pytest.approx(distortion["measured_after_recovery"], rel=1e-4)


@pytest.mark.parametrize("codes", ["deepcabac", "paretoq,finequant"])
def test_what_was_solved_still_keeps_a_budget_of_bytes(study: Study, tmp_path: Path, codes: str) -> None:
    asked = {"to": "params=80%,bytes=20%", "sites": "heads,neurons", "method": "magnitude", "codes": codes}
    made = isthmus.narrow(study.network, study.task, out=tmp_path / "small", effort="none", **asked)
    assert made.record["plan"]["decisions"], "units go too"
    rows = made.record["measurements"]
    assert rows["narrowed"]["bytes"] <= 0.2 * rows["original"]["bytes"]
    assert rows["distortion"]["measured_after_recovery"] <= rows["distortion"]["measured_before_recovery"]


def test_other_weights_than_the_plan_fitted_are_fitted_anew(study: Study) -> None:
    plan = isthmus.plan(study.network, study.task, to="bytes=20%", sites="none", codes="deepcabac")
    with torch.no_grad():
        student = cut(study, {})
        for weight in student.model.parameters():
            weight.copy_(weight.sign() * weight.abs().mean())
    limit = 0.2 * plan.original["bytes"]
    as_planned, anew = (file_bytes(student, recovering._codes(study, plan, student, spare)) for spare in (None, 0.0))
    assert as_planned < 0.9 * limit
    assert 0.99 * limit < anew <= limit


def test_training_that_spoils_leaves_what_was_solved(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"to": "params=80%,bytes=20%", "sites": "heads,neurons", "method": "magnitude", "codes": "deepcabac"}
    untrained = isthmus.narrow(study.network, study.task, out=tmp_path / "untrained", effort="none", **asked)

    def spoil(*arguments: Any, **named: Any) -> Recovered:
        done = recover(*arguments, **named)
        with torch.no_grad():
            for parameter in done.network.model.parameters():
                parameter.mul_(torch.linspace(-2, 2, parameter.numel()).view_as(parameter))
        return done

    monkeypatch.setattr(recovering, "recover", spoil)
    spoilt = isthmus.narrow(study.network, study.task, out=tmp_path / "spoilt", effort="faster", **asked)
    expected, found = (made.record["measurements"]["distortion"] for made in (untrained, spoilt))
    assert found == expected
    assert expected["measured_after_recovery"] < expected["measured_before_recovery"]
