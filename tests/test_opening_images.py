"""Networks of images: opened from a folder or memory, and saved again with what they want images to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pictured
from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import ImageInput, embed
from isthmus.storage.artifact import save_artifact
from isthmus.storage.opening import open as open_network
from isthmus.storage.processors import PROCESSOR_FILE, image_input

CONFIG = {"num_channels": 3, "image_size": 30}
HALF = (0.5, 0.5, 0.5)
SCALED = {"image_mean": HALF, "image_std": HALF}


@pytest.mark.parametrize("kind", ["classifier", "encoder", "resnet"])
def test_saved_is_opened(tmp_path: Path, kind: str) -> None:
    made = {"classifier": pictured.vit, "encoder": lambda: pictured.vit(classes=None), "resnet": pictured.resnet}[
        kind
    ]()
    save_artifact(made, tmp_path / "saved", {"made": kind})
    opened = open_network(tmp_path / "saved")
    assert (opened.images, opened.pooling, opened.normalize) == (made.images, made.pooling, made.normalize)
    images: Any = list(pictured.pictures(5, channels=made.images.channels)[0])  # type: ignore[union-attr]
    np.testing.assert_array_equal(embed(opened, images), embed(made, images))
    # What an original's processor says is kept word for word.
    file = tmp_path / "saved" / PROCESSOR_FILE
    text = json.dumps({**json.loads(file.read_text()), "kept": 1})
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / PROCESSOR_FILE).write_text(text)
    save_artifact(replace(made, source=tmp_path / "original"), tmp_path / "again", {})
    assert (tmp_path / "again" / PROCESSOR_FILE).read_text() == text


def test_a_module_needs_to_be_told_of_its_images() -> None:
    model = pictured.vit().model
    with pytest.raises(BadInput, match="reads images; say how"):
        open_network(model)
    assert open_network(model, images=pictured.GREY).images == pictured.GREY

    class Processor:
        def to_dict(self) -> dict[str, Any]:
            return {"size": {"height": 16, "width": 16}, "image_mean": [0.5], "image_std": [0.25]}

    assert open_network(model, images=Processor()).images == pictured.GREY
    with pytest.raises(BadInput, match="images is a int"):
        open_network(model, images=3)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    pictured.vit().model.save_pretrained(tmp_path / "saved")
    with pytest.raises(BadInput, match=PROCESSOR_FILE):
        open_network(tmp_path / "saved")
    (tmp_path / "saved" / PROCESSOR_FILE).write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        open_network(tmp_path / "saved")


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        ({"size": 20, **SCALED}, ImageInput(3, 20, 20, HALF, HALF)),
        ({"size": {"height": 8, "width": 9}, "do_normalize": False}, ImageInput(3, 8, 9, (0.0,) * 3, (1.0,) * 3)),
        ({"do_resize": False, "image_mean": 0.5, "image_std": 0.5}, ImageInput(3, 30, 30, HALF, HALF)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "resample": 3, **SCALED},
            ImageInput(3, 224, 224, HALF, HALF, 256, "bicubic"),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, **SCALED},
            ImageInput(3, 224, 224, HALF, HALF, 256),
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.95, **SCALED},
            ImageInput(3, 384, 384, HALF, HALF, None),
        ),
    ],
)  # fmt: skip
def test_processors_are_understood(processor: dict[str, Any], wanted: ImageInput) -> None:
    assert image_input(processor, CONFIG, "here") == wanted


def test_scales_other_than_one_are_folded_into_mean_and_std() -> None:
    images = torch.arange(256.0).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    for processor, values in (
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, images / 127.5 - 1),
        ({"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}, (images - 100) / 50),
    ):
        wanted = image_input({"size": 16, **processor}, CONFIG, "here")
        mean, std = (torch.tensor(part).reshape(-1, 1, 1) for part in (wanted.mean, wanted.std))
        torch.testing.assert_close((images / 255 - mean) / std, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "error"),
    [
        ({"do_flip_channel_order": True, "size": 8}, UnsupportedNetwork),
        ({"resample": 1, "size": 8}, UnsupportedNetwork),
        ({"size": {"width": 8}}, BadInput),
        ({"size": 8, "image_mean": [0.1, 0.2], "image_std": [1, 1]}, BadInput),
        ({"size": 8, "image_std": 0}, BadInput),
    ],
)
def test_processors_that_cannot_be_followed(processor: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        image_input(processor, CONFIG, "here")
