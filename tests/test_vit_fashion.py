"""The zoo's ViT: it learns, goes on where it was stopped, and is written so that it can be opened."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.errors import IsthmusError
from isthmus.network import embed
from isthmus.storage.opening import open as open_network
from isthmus.storage.stages import StageStore
from isthmus.tasks import load_task
from isthmus.zoo import vit_fashion
from isthmus.zoo.vit_fashion import NAME, Training, accuracy, build, main, read_images, train, write

TINY = Training(epochs=20, batch=32, width=16, layers=2, heads=2, neurons=24, learning_rate=4e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of ten classes, told apart by which half is bright and how bright, as IDX files."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 600).astype(np.uint8)
    images = rng.integers(0, 30, (600, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[14 * (label // 5) : 14 * (label // 5) + 14] += 15 + 50 * (label % 5)
    place = tmp_path_factory.mktemp("fashion")
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (place / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))
    return place


def store(place: Path, training: Training) -> StageStore:
    return StageStore(place / "stages", asdict(training), resume=True)


def test_the_size_is_as_planned() -> None:
    model = build(Training())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 < count < 2_000_000
    assert 2 * count < 5_000_000  # bytes in half precision
    assert model.vit.embeddings.position_embeddings.shape[1] == 50


def test_what_is_validated_is_not_trained_on(folder: Path) -> None:
    images = read_images(folder)
    trained = {image.tobytes() for image in images.train}
    held = {image.tobytes() for image in images.held}
    assert not trained & held
    task = load_task(f"images:{folder}")
    assert {np.asarray(image).tobytes() for image in task.held_out.examples} <= held


def test_it_learns_and_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    images = read_images(folder)
    whole, parted = build(TINY), build(TINY)
    before = accuracy(whole, images)
    reached = train(whole, images, TINY, store(tmp_path / "whole", TINY))
    assert reached > before + 0.2
    steps = round(TINY.epochs * (len(images.train) // TINY.batch))
    train(parted, images, TINY, store(tmp_path / "parted", TINY), most=steps // 3)
    again = build(TINY)
    assert train(again, images, TINY, store(tmp_path / "parted", TINY)) == reached
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_it_is_written_whole_and_opened(folder: Path, tmp_path: Path) -> None:
    model = build(TINY)
    images = read_images(folder)
    wanted = model.eval()(pixel_values=vit_fashion.pixel_values(vit_fashion.WANTED, images.held[:4])).logits.detach()
    size = write(model, tmp_path / NAME, {"validation": 0.5})
    assert size == (tmp_path / NAME / "model.safetensors").stat().st_size
    network = open_network(tmp_path / NAME)
    assert network.images == vit_fashion.WANTED
    found = embed(network, list(load_task(f"images:{folder}").held_out.examples[:4]))
    np.testing.assert_allclose(found, wanted.numpy()[:4], atol=0.02, rtol=0.02)
    assert json.loads((tmp_path / NAME / "training.json").read_text()) == {"validation": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_the_rate_rises_and_falls() -> None:
    rates = [Training().rate_at(step, 200) for step in range(200)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(Training.learning_rate)
    assert rates[-1] < 1e-3 * max(rates)
    assert rates[104] == pytest.approx(0.5 * Training.learning_rate * (1 + math.cos(math.pi * 94 / 190)))


def test_bad_runs_are_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    wild = replace(TINY, learning_rate=1e30)
    with pytest.raises(IsthmusError, match="no longer finite"):
        train(build(wild), read_images(folder), wild, store(tmp_path, wild))


def test_the_shipped_network_opens_and_is_what_its_record_says() -> None:
    """Its weights lie in the package; accuracy is of the first images of the validation part, where data is there."""
    from isthmus.tasks.data import data_folder
    from isthmus.zoo.catalogue import zoo_folder

    place = zoo_folder(NAME)
    record = json.loads((place / "training.json").read_text())
    assert record["training"] == json.loads(json.dumps(asdict(Training())))
    assert record["validation"] >= 0.91
    assert sum(file.stat().st_size for file in place.iterdir()) <= 5_000_000
    assert not [file.name for file in place.iterdir() if file.suffix not in (".json", ".safetensors")]
    network = open_network(NAME)
    assert network.images == vit_fashion.WANTED
    data = data_folder()
    if data is None or not (data / "fashion-mnist").exists():
        pytest.skip("no real data: set ISTHMUS_DATA to its folder")
    held = load_task(f"images:{data / 'fashion-mnist'}").held_out
    found = embed(network, list(held.examples)).argmax(1)
    assert (found == np.asarray(held.labels)).mean() > 0.89
