"""Images through the whole flow: the same steps as texts take, on a small ViT and a small CNN."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import isthmus
import pictured
import quick
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.flow.efforts import CONVOLUTION_RATE, convolutional, recipe_for
from isthmus.flow.study import start_study
from isthmus.flow.suiting import check_suits
from isthmus.network import Network, embed
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.train import recover
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.relevance.statistics import collect
from isthmus.sites import discover, narrow_model
from isthmus.storage.artifact import save_artifact
from isthmus.storage.stages import StageStore
from isthmus.tasks import Task, evaluate, load_task

RECIPE = Recipe(steps=12, learning_rate=1e-3, batch=16, warmup=2, precision="fp32", evaluate_every=6, patience=0)


@cache
def case(kind: str) -> tuple[Network, Task]:
    if kind == "encoder":
        wide = {"hidden_size": 64, "intermediate_size": 128}  # so that codes weigh more than their tables
        return pictured.vit(classes=None, **wide), pictured.pictures_task(labelled=False)
    task = pictured.pictures_task(channels=3 if kind == "resnet" else 1)
    return pictured.learned(pictured.resnet() if kind == "resnet" else pictured.vit(), task), task


def half(network: Network) -> tuple[Network, dict[str, list[int]]]:
    """Return a network with half of its stream and of its layers' neurons, or of the channels within its blocks."""
    sites = discover(network)
    kinds = ("width", "neurons")
    inner = [site for site in sites if site.kind in kinds or (site.kind == "channels" and "layer" in site.name)]
    kept = {site.name: list(range(0, site.units, 2)) for site in inner}
    return network.with_model(narrow_model(network.model, sites, kept)), kept


def test_texts_and_images_are_not_mixed_up() -> None:
    network, task = pictured.vit(), load_task(("text", [f"passage {number}" for number in range(30)]))
    with pytest.raises(BadInput, match="reads images, and text:data holds texts"):
        check_suits(network, task)
    with pytest.raises(BadInput, match="reads images, not texts"):
        embed(network, ["a text"])
    reader = Network("reader", torch.nn.Identity(), None)
    with pytest.raises(BadInput, match="reads texts, and images:data holds images"):
        check_suits(reader, pictured.pictures_task(30))


def test_what_is_converted_is_said() -> None:
    assert check_suits(pictured.vit(), pictured.pictures_task(30)) == ()
    (grey,) = check_suits(pictured.resnet(), pictured.pictures_task(30))
    assert grey == "30 of 30 images are grey: they are given to the network as colour"
    (colour,) = check_suits(pictured.vit(), pictured.pictures_task(30, channels=3))
    assert "30 of 30 images are in colour" in colour
    images, labels = pictured.pictures(30)
    (size,) = check_suits(pictured.vit(), load_task(("images", (images[:, :12], labels))))
    assert size == "images of 12 by 16 pixels: each is resized to the network's 16 by 16"


def test_unlabelled_images_and_a_classifier_agree_on_the_metric() -> None:
    network, _ = case("encoder")
    task = pictured.pictures_task(60, labelled=False)
    reference = embed(network, task.held_out.examples)
    assert evaluate(lambda images: embed(network, images), task, reference).value == pytest.approx(1.0)
    labelled = pictured.pictures_task(120)
    probed = evaluate(lambda images: embed(network, images), labelled)  # by a linear probe on embeddings
    assert probed.name == "accuracy"
    assert probed.value > 0.5


@pytest.mark.parametrize("kind", ["classifier", "encoder", "resnet"])
def test_relevance_is_measured_on_images(kind: str) -> None:
    network, task = case(kind)
    study = start_study(network, task)
    assert measure_network(study.probe, network) == pytest.approx(0, abs=1e-6)
    found = collect(study.probe, study.sites, frozenset({"activations", "gradients"}))
    for site in study.sites:
        for values in (found.activations[site.name], found.squares[site.name]):
            assert values.shape == (site.units,)
            assert np.isfinite(values).all()
        if site.kind != "feature":  # the embedding does not pass through the pooler
            assert found.squares[site.name].sum() > 0


@pytest.mark.parametrize("kind", ["classifier", "encoder", "resnet"])
def test_recovery_brings_images_back_and_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    network, task = case(kind)
    probe = make_probe(network, task.held_out.examples)
    images = task.train[:100]
    whole, kept = half(network)
    before = measure_network(probe, whole)
    recipe = Recipe(steps=25, learning_rate=2e-3, batch=32, warmup=2, precision="fp32", evaluate_every=0)
    recover(whole, network, images, recipe, kept=kept)
    assert measure_network(probe, whole) < before

    class Stop(Exception):
        pass

    def stop(stage: str, done: float, total: float, note: str = "") -> None:
        if done == 7:
            raise Stop

    def run(folder: Path, resume: bool, progress: object = None) -> dict[str, torch.Tensor]:
        student, own = half(network)
        stages = StageStore(folder, {"kind": kind}, resume=resume)
        shown = {} if progress is None else {"progress": progress}
        recover(student, network, images, RECIPE, kept=own, stages=stages, save_seconds=0, **shown)  # type: ignore[arg-type]
        return {name: value.clone() for name, value in student.model.state_dict().items()}

    undisturbed = run(tmp_path / "a", False)
    with pytest.raises(Stop):
        run(tmp_path / "b", False, stop)
    for name, value in run(tmp_path / "b", True).items():
        assert torch.equal(value, undisturbed[name]), name


def test_convolutions_are_trained_at_a_rate_of_their_own() -> None:
    assert (convolutional(pictured.resnet()), convolutional(pictured.vit())) == (True, False)
    plain, own = (recipe_for("fast", 0.7, classifier=True, convolutional=which) for which in (False, True))
    assert own == replace(plain, learning_rate=CONVOLUTION_RATE)
    assert own.learning_rate > 5 * plain.learning_rate


def test_labels_count_in_recovery() -> None:
    network, task = case("classifier")
    weights = []
    for labels in (0.0, 0.5):
        student, kept = half(network)
        recipe = Recipe(steps=4, learning_rate=1e-3, batch=16, precision="fp32", evaluate_every=0, labels=labels)
        recover(student, network, task.train[:60], recipe, kept=kept, task=task)
        weights.append(student.model.get_parameter("classifier.weight").clone())
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("kind", "budget", "method", "effort"),
    [("classifier", "params=50%", "vib", "faster"), ("encoder", "bytes=40%", "fisher", "none"),
     ("resnet", "params=60%,macs=90%", "fisher", "none")],
)  # fmt: skip
def test_a_budget_is_met(
    kind: str, budget: str, method: str, effort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "resnet":  # which is exported, timed and measured like a user's
        quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    network, task = case(kind)
    made = isthmus.narrow(network, task, to=budget, method=method, effort=effort, out=tmp_path / "small")
    rows = made.record["measurements"]
    for limit in budget.split(","):
        currency, share = limit.split("=")
        assert rows["narrowed"][currency] <= float(share[:-1]) / 100 * rows["original"][currency]
    opened = isthmus.load(tmp_path / "small")
    assert opened.images == network.images
    np.testing.assert_array_equal(embed(opened, task.held_out.examples), embed(made.network, task.held_out.examples))
    page = (tmp_path / "small" / "report.html").read_text()
    assert "16 by 16 pixels" in page
    assert "one text of" not in page


def test_the_command_narrows_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    network, _ = case("classifier")
    save_artifact(network, tmp_path / "vit", {})
    images, labels = pictured.pictures(240, channels=3)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    task = f"images:{tmp_path / 'set.npz'}"
    common = ["--task", task, "--quiet"]
    assert main(["inspect", str(tmp_path / "vit"), *common, "-o", str(tmp_path / "page.html"), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["warnings"] == ["240 of 240 images are in colour: they are given as grey"]
    assert page["quality"]["metric_name"] == "accuracy"
    narrow = ["narrow", str(tmp_path / "vit"), "--to", "params=70%", "--effort", "none", "--method", "magnitude"]
    assert main([*narrow, *common, "-o", str(tmp_path / "small")]) == 0
    assert "note: 240 of 240 images are in colour" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "vit"), str(tmp_path / "small"), *common]) == 0
    said = capsys.readouterr().out
    assert "images of 16 by 16 pixels" in said
    assert main(["inspect", str(tmp_path / "vit"), "--task", f"images:{tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
