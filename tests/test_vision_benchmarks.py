"""Vision networks beside others: what is handed over is the same network, and what is concluded and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import peer, vision_tokens
from benchmarks.pruning_networks import KINDS, set_weights, spelled_out, tensors_of
from benchmarks.vision_page import pruning_section, tokens_section
from benchmarks.vision_pruning import conclude, run, wanted_points

import pictured
from isthmus.cost.measure import measure_macs
from isthmus.errors import BadInput
from isthmus.network import encode, outputs


def test_written_shortcuts_give_the_same_outputs() -> None:
    network = pictured.resnet()
    inputs = encode(network, pictured.pictures_task(40, channels=3).train[:4])
    with torch.inference_mode():
        before = outputs(network, inputs)
        spelled_out(network.model)
        torch.testing.assert_close(outputs(network, inputs), before)
    kind = KINDS["cifar-resnet"]
    config: Any = network.model.config
    again = set_weights(kind.build(config.to_dict()), tensors_of(network.model))
    with torch.inference_mode():
        torch.testing.assert_close(kind.output(again(**inputs)), before)


def test_a_vit_is_built_anew_with_its_heads() -> None:
    network, kind = pictured.vit(), KINDS["vit"]
    config: Any = network.model.config
    again = set_weights(kind.build(config.to_dict()), tensors_of(network.model))
    example = kind.example(config.to_dict())
    with torch.inference_mode():
        torch.testing.assert_close(kind.output(again(**example)), kind.output(network.model(**example)))
    assert kind.cost(again, example) == measure_macs(network.model, example)
    assert set(kind.heads(again, 8).values()) == {4}
    assert kind.settle(again, 8)["vit.layers.0.attention"] == {"num_attention_heads": 4}


def outcomes(ours: float) -> list[dict[str, Any]]:
    rows = []
    for seed in (0, 1):
        for method, metric in (("isthmus", ours + 0.01 * seed), ("torch-pruning magnitude", 0.8)):
            figures = {"metric": metric, "macs": 500 - (method != "isthmus"), "before": 1.0, "after": 0.5}
            rows.append({"method": method, "effort": "", "share": 0.5, "seed": seed, **figures})
    return rows


@pytest.mark.parametrize(("ours", "met"), [(0.82, True), (0.801, False)])
def test_what_is_concluded_and_shown(ours: float, met: bool) -> None:
    found = conclude(outcomes(ours), 1.0)
    assert found["met"] is met
    assert found["leads"]["torch-pruning magnitude"] == pytest.approx(100 * (ours + 0.005 - 0.8))
    assert found["apart"] == pytest.approx(1 / 499)
    record = {
        "versions": {"torch-pruning": "1"}, "steps": 3, "images": 5000, "original": {"metric": 0.9, "macs": 1000.0},
    }  # fmt: skip
    text = "\n".join(pruning_section([{"network": "vit", "record": record, "points": outcomes(ours), **found}]))
    assert "| vit | ≥ 1 points ahead |" in text
    assert ("| yes |" in text) is met
    assert not conclude([], 1.0)["met"]


def test_points_go_by_turns() -> None:
    labels = [point.label for point in wanted_points([0, 1])]
    assert labels == ["isthmus", "torch-pruning magnitude", "torch-pruning taylor"] * 2


def test_unknown_networks_are_refused(tmp_path: Any) -> None:
    with pytest.raises(BadInput, match="unknown network 'vgg'"):
        run(tmp_path, networks=["vgg"], seeds=[0])


def test_the_policy_is_chosen_by_what_it_loses_on_images_to_tune_on() -> None:
    original = {"metric": 0.9, "milliseconds": 10.0, "macs": 100}
    shared = {"gone": 0.41, "macs": 60}
    points = [
        {"policy": "a:merge", "nats": 0.2, "metric": 0.899, "milliseconds": 5.0, **shared},
        {"policy": "b:merge", "nats": 0.1, "metric": 0.895, "milliseconds": 7.0, **shared},
        {"policy": vision_tokens.RANDOM, "nats": 0.0, "metric": 0.9, "milliseconds": 7.0, **shared},
    ]
    found = vision_tokens.conclude(original, points)
    assert found["chosen"] == "b:merge"
    assert found["lost"] == pytest.approx(0.5)
    assert found["met"]
    record = {"threads": None, "images": 5000, "batch": 32}
    text = "\n".join(tokens_section({"original": original, "points": points, "record": record, **found}))
    assert "| `b:merge` | 41.0% | 60.0% | 0.1000 | 89.50% | 7.0 | 70.0% |" in text
    assert "| yes |" in text


@pytest.mark.skipif(not (peer.VENV / ".installed").exists(), reason="Torch-Pruning is not installed: make bench")
@pytest.mark.parametrize("kind", ["vit", "cifar-resnet"])
def test_what_comes_back_is_what_was_pruned(kind: str, tmp_path: Path) -> None:
    network = pictured.vit() if kind == "vit" else pictured.resnet()
    if kind != "vit":
        spelled_out(network.model)
        network.model.config.image_size = 16
    task = pictured.pictures_task(60, channels=1 if kind == "vit" else 3)
    example = KINDS[kind].example(network.model.config.to_dict())
    whole = measure_macs(network.model, example)
    handed = peer.Handed(network, kind, int(0.7 * whole), 0.05)
    gradients = peer.label_gradients(network, task.labelled[:20])
    settings = peer.ask(peer.torch_pruning(), tmp_path, handed, "group taylor", gradients)
    assert settings
    for setting in settings:
        made = peer.rebuild(handed, tmp_path, setting)
        assert 0.95 * handed.target <= measure_macs(made.model, example) == setting["cost"] <= handed.target
    assert measure_macs(network.model, example) == whole
