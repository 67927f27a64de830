"""What each layer carries: the right states are looked at, in every anatomy, and the page and the command show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import isthmus
import networks
import small
from isthmus.cli.main import main
from isthmus.flow import layers
from isthmus.flow.layers import EMBEDDINGS, MEASURES, entering, measure_layers
from isthmus.flow.study import Study, start_study
from isthmus.information.geometry import curvature
from isthmus.information.spectra import anisotropy, matrix_entropy
from isthmus.network import Network, tokenize
from isthmus.report import LayerProfile, ReportData, render
from isthmus.tasks import load_task

TEXTS = small.sentences(120)


def study_of(network: Network) -> Study:
    return start_study(network, load_task(("text", TEXTS)))


def hooks(network: Network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.model.modules())


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_anatomy_has_its_layers_measured(name: str) -> None:
    network = networks.worded(name)
    before = hooks(network)
    found = measure_layers(study_of(network))
    assert [layer.name for layer in found] == [EMBEDDINGS, "layer 0", "layer 1", "layer 2"]
    assert hooks(network) == before
    for layer in found:
        assert set(layer.values) == {measure.name for measure in MEASURES}
        assert all(value is not None and np.isfinite(value) for value in layer.values.values()), layer
    assert len({layer.values["matrix entropy"] for layer in found}) == 4, "each layer has states of its own"


def test_the_states_are_those_that_transformers_returns() -> None:
    """Against ``output_hidden_states``, text by text and without padding."""
    network = networks.worded("bert")
    study = study_of(network)
    texts = [text for group in study.probe.examples for text in group]
    states = []
    for text in texts:
        with torch.inference_mode():
            inputs = tokenize(study.probe.network, [text])
            states.append(
                [state[0].numpy() for state in network.model(**inputs, output_hidden_states=True).hidden_states]
            )
    for place, layer in enumerate(measure_layers(study)):
        vectors = np.stack([one[place].mean(0) for one in states])
        assert layer.values["matrix entropy"] == pytest.approx(matrix_entropy(vectors), rel=1e-4)
        assert layer.values["anisotropy"] == pytest.approx(anisotropy(vectors), rel=1e-4)
        prompts = np.mean([matrix_entropy(one[place]) for one in states])
        assert layer.values["prompt entropy"] == pytest.approx(prompts, rel=1e-4)
        bends = np.mean([bend for one in states if (bend := curvature(one[place])) is not None])
        assert layer.values["curvature"] == pytest.approx(bends, rel=1e-4)


def test_the_same_seed_gives_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(networks.worded("bert"))
    first = measure_layers(study)
    assert measure_layers(study) == first
    other = measure_layers(replace(study, seed=1))
    assert other[1].values["LiDAR"] != first[1].values["LiDAR"], "other misspellings"
    assert other[1].values["anisotropy"] == first[1].values["anisotropy"]
    monkeypatch.setattr(layers, "STRENGTH", 0.0)
    unharmed = measure_layers(study)
    assert unharmed[1].values["InfoNCE"] > first[1].values["InfoNCE"], "what is not disturbed is told apart more easily"


def test_what_enters_is_seen_and_the_hook_goes_even_where_a_run_fails() -> None:
    network = networks.worded("bert")
    with pytest.raises(ZeroDivisionError), entering(network.model, "encoder.layer.0"):
        raise ZeroDivisionError
    assert hooks(network) == 0


def test_the_command_and_the_page_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write_network(tmp_path / "tiny")
    small.write_text(tmp_path / "text.txt")
    assert main(["inspect", "tiny", "--task", "text:text.txt", "-o", "page.html", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "curvature, radians" in printed
    page = Path("page.html").read_text()
    assert "What each layer carries" in page
    assert page.count('class="profile"') == len(MEASURES)
    assert main(["inspect", "tiny", "--task", "text:text.txt", "--json", "--quiet"]) == 0
    data = ReportData.model_validate(json.loads(capsys.readouterr().out))
    found = measure_layers(start_study(isthmus.open("tiny"), isthmus.task("text:text.txt")))
    assert data.layers == [layer.name for layer in found]
    for profile in data.profiles:
        assert profile.values == pytest.approx([layer.values[profile.name] for layer in found])


def test_a_page_without_layers_says_nothing_of_them() -> None:
    fields = {"title": "t", "kind": "inspect", "network": "n", "task": "x", "created": "2026-01-01", "version": "0"}
    nothing = LayerProfile(name="curvature", values=[None, None])
    for more in ({}, {"layers": ["a", "b"], "profiles": [nothing]}):
        assert "What each layer carries" not in render(ReportData.model_validate(fields | more))
    half = LayerProfile(name="curvature", unit="radians", values=[None, 2.0])
    page = render(ReportData.model_validate(fields | {"layers": ["a", "b"], "profiles": [half, nothing]}))
    assert page.count('class="profile"') == 1
    assert "height:100.00%" in page
