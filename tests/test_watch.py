"""Watching a training run: its checkpoints in order, the plane of each, the words for it, a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import pictured
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.flow.watching import blocks, check_labelled, checkpoints, watch_folder
from isthmus.information.plane import InformationPlane
from isthmus.information.plane_points import PlanePoint, points_from_json
from isthmus.information.result import Information
from isthmus.network import Network, encode
from isthmus.report.plane import narrated
from isthmus.storage.artifact import save_artifact
from isthmus.tasks import Task

OPTIONS: dict[str, Any] = {"samples": 60, "label_estimator": "ross"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Task, Network]:
    """Three checkpoints of a small classifier of images that learns, and what lies beside them."""
    place = tmp_path_factory.mktemp("run")
    images, labels = pictured.pictures(240)
    np.savez(place / "pictures.npz", images=images, labels=labels)
    task = pictured.pictures_task()
    network = pictured.vit()
    for step in (0, 30, 100):
        if step:
            pictured.learned(network, task, 15)
        save_artifact(network, place / f"checkpoint-{step}", {"network": "vit"})
    (place / "runs-7").mkdir()
    (place / "notes").write_text("")
    return place, task, network


def test_checkpoints_come_by_step(run: tuple[Path, Task, Network], tmp_path: Path) -> None:
    assert [(step, path.name) for step, path in checkpoints(run[0])] == [
        (0, "checkpoint-0"), (30, "checkpoint-30"), (100, "checkpoint-100"),
    ]  # fmt: skip
    for name in ("a-3", "b-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="a-3 and b-3 are both of step 3"):
        checkpoints(tmp_path)


def test_points_are_those_of_the_network_in_training(run: tuple[Path, Task, Network]) -> None:
    place, task, network = run
    path = blocks(network.model)[-1]
    points = [point for found in watch_folder(place, task, paths=[path], **OPTIONS) for point in found]
    assert [(point.step, point.path) for point in points] == [(0, path), (30, path), (100, path)]
    chosen = np.sort(np.random.default_rng(0).permutation(len(task.held_out.examples))[:60])
    examples = [task.held_out.examples[place] for place in chosen]
    labels = np.asarray(task.held_out.labels)[chosen]
    plane = InformationPlane(network.model, [path], encode(network, examples), labels, label_estimator="ross")
    (last,) = plane.record(100)
    assert points[-1].input == last.input
    assert points[-1].label == last.label
    assert (points[-1].label.nats or 0) > (points[0].label.nats or 0) + 0.1, "the classes are learnt"


def test_the_command_tells_and_draws(
    run: tuple[Path, Task, Network], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _, network = run
    (path, *_) = blocks(network.model)
    command = ["watch", str(place), "--task", f"images:{place / 'pictures.npz'}", "--at", path, "--samples", "40"]
    command += ["--label-estimator", "ross", "--noise", "4", "-q"]
    assert main([*command, "-o", str(tmp_path / "plane.html")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["step 0", "step 30", "step 100", path, "page"]
    page = (tmp_path / "plane.html").read_text()
    assert said[3].replace("&", "&amp;") in page
    assert page.count('<svg class="chart"') == 3
    assert main([*command, "--json"]) == 0
    assert [point.step for point in points_from_json(capsys.readouterr().out)] == [0, 30, 100]


def test_a_run_that_goes_on_is_followed(run: tuple[Path, Task, Network], tmp_path: Path) -> None:
    _, task, network = run
    looks: list[int] = []

    def wait() -> bool:
        looks.append(len(looks))
        folder = tmp_path / "checkpoint-2"
        if looks == [0]:
            folder.mkdir()
            (folder / "config.json").write_text('{"model_type": "vit"}')  # half written
        if looks == [0, 1]:
            (folder / "config.json").unlink()
            folder.rmdir()
            save_artifact(network, folder, {"network": "vit"})
        return len(looks) < 4

    found = list(watch_folder(tmp_path, task, paths=["vit"], wait=wait, **OPTIONS))
    assert [point.step for points in found for point in points] == [2]
    assert len(looks) == 4


def test_blocks_are_what_repeats() -> None:
    assert blocks(pictured.vit().model, 2) == [blocks(pictured.vit().model)[0], blocks(pictured.vit().model)[-1]]
    assert len(blocks(pictured.vit().model)) == 3
    assert blocks(pictured.resnet().model) == ["layer1.0", "layer2.0", "layer3.0"]
    with pytest.raises(BadInput, match="name modules of it with --at"):
        blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def point(step: int, nats: float | None, half: float = 0.1) -> PlanePoint:
    interval = None if nats is None else (nats - half, nats + half)
    found = Information(nats, interval, None, "noisy", 10, (1, 1), (), None if nats is not None else "too much")
    return PlanePoint(step, "layer", 0.5, found, found)


def test_a_layer_is_called_compressed_only_beyond_the_intervals() -> None:
    (fell,) = narrated([point(0, 1.0), point(10, 3.0), point(20, 2.0)])
    assert "I(X; T) 1 nats, 3 at step 10, then compressed to 2 at step 20" in fell
    (alike,) = narrated([point(0, 1.0, 1.0), point(10, 3.0, 1.0), point(20, 2.0, 1.0)])
    assert "I(X; T) 1 to 2 nats at step 20" in alike
    (gaps,) = narrated([point(0, None), point(10, 3.0)])
    assert "I(T; Y) 3 nats (estimable at 1 of 2 steps)" in gaps
    assert "not estimable at any of 1 steps" in narrated([point(0, None)])[0]


def test_bad_input(run: tuple[Path, Task, Network], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = run[0]
    (tmp_path / "text.txt").write_text("\n".join(f"a sentence of words {one}" for one in range(40)))
    (tmp_path / "empty").mkdir()
    pictures = f"images:{place / 'pictures.npz'}"
    for folder, task, options, words in (
        (place, f"text:{tmp_path / 'text.txt'}", [], "have no classes"),
        (tmp_path / "none", pictures, [], "no such folder"),
        (tmp_path / "empty", pictures, [], "look for checkpoint-500"),
        (place, pictures, ["--samples", "1"], "give 2 or more"),
        (place, pictures, ["--at", "vit.none"], "unknown module"),
        (place, pictures, ["--follow", "0"], "above 0"),
    ):
        assert main(["watch", str(folder), "--task", task, "-q", *options]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(BadInput, match="have no classes"):
        check_labelled(pictured.pictures_task(labelled=False))
