"""Batches of images: drawn and moved by seed and step alone, shared among processes, kept small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import pictured
from isthmus.errors import BadInput
from isthmus.examples import Example, image_of_array
from isthmus.network import ImageInput, encode
from isthmus.pixels import moved, random_moves
from isthmus.recovery import image_batches
from isthmus.recovery.drawing import draw, draw_labelled
from isthmus.recovery.image_batches import ImageBatches, LabelledImages


def examples(count: int = 40) -> list[Example]:
    return [image_of_array(image, str(index)) for index, image in enumerate(pictured.pictures(count)[0])]


def pixels_of(batches: ImageBatches, step: int) -> Tensor:
    return torch.cat([batch.student["pixel_values"] for batch in batches.step(step)])


def test_a_move_is_a_shift_and_a_mirror() -> None:
    wanted = ImageInput(1, 3, 4, (0.5,), (0.5,))
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    black = -1.0  # pixels of 0 as the network gets them
    down = moved(image, torch.tensor([[1, 0, 0]]), wanted)[0, 0]
    torch.testing.assert_close(down, torch.cat([torch.full((1, 4), black), image[0, 0, :2]]))
    left = moved(image, torch.tensor([[0, -1, 1]]), wanted)[0, 0]
    torch.testing.assert_close(left, torch.cat([image[0, 0].flip(1)[:, 1:], torch.full((3, 1), black)], dim=1))
    torch.testing.assert_close(moved(image, torch.zeros(1, 3, dtype=torch.long), wanted), image)


def test_moves_follow_from_the_seed_and_reach_an_eighth() -> None:
    wanted = ImageInput(3, 32, 24, (0.5,) * 3, (0.5,) * 3)
    moves = random_moves(wanted, 4000, (0, 1))
    assert torch.equal(moves, random_moves(wanted, 4000, (0, 1)))
    assert not torch.equal(moves, random_moves(wanted, 4000, (0, 2)))
    assert (moves.min(0).values.tolist(), moves.max(0).values.tolist()) == ([-4, -3, 0], [4, 3, 1])
    assert abs(float(moves[:, 2].double().mean()) - 0.5) < 0.05


def test_steps_follow_from_the_seed_whatever_came_before() -> None:
    network, images = pictured.vit(), examples()
    first, second = (ImageBatches(images, network, network, size=16, seed=3) for _ in range(2))
    drawn = [pixels_of(first, step) for step in range(5)]
    for step in (4, 1, 0, 3, 2):
        assert torch.equal(pixels_of(second, step), drawn[step])
    assert not torch.equal(drawn[0], drawn[2])
    other = ImageBatches(images, network, network, size=16, seed=4)
    assert not torch.equal(pixels_of(other, 0), drawn[0])
    indices = [batch.index for step in range(len(first)) for batch in first.step(step)]
    assert len(torch.cat(indices).unique()) == 2 * 16  # an epoch shows no image twice


def test_without_augmentation_images_are_as_they_are() -> None:
    network, images = pictured.vit(), examples()
    batches = draw(images, network, network, size=16)
    assert (batches.fixed, batches.count, len(batches)) == (True, 40, 2)
    whole = encode(network, images)["pixel_values"]
    for batch in [*batches.step(1), *batches.once()]:
        assert torch.equal(batch.teacher["pixel_values"], whole[batch.index])
    assert torch.cat([batch.index for batch in batches.once()]).tolist() == list(range(40))
    augmented = draw(images, network, network, size=16, augment=True)
    assert not augmented.fixed
    assert torch.equal(torch.cat([batch.student["pixel_values"] for batch in augmented.once()]), whole)


def test_processes_share_every_step() -> None:
    network, images = pictured.vit(), examples()
    (whole,) = ImageBatches(images, network, network, size=15).step(2)
    parts = [ImageBatches(images, network, network, size=15, rank=rank, world=2).step(2)[0] for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.student["pixel_values"], whole.student["pixel_values"][rank::2])
    assert sum(part.weight for part in parts) / 2 == pytest.approx(1.0)
    with pytest.raises(BadInput, match="give more images"):
        ImageBatches(images[:1], network, network, rank=0, world=2)


def test_large_images_pass_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = pictured.vit(), examples()
    monkeypatch.setattr(image_batches, "MICRO_PIXELS", 16 * 16 * 10)
    parts = ImageBatches(images, network, network, size=35).step(0)
    assert [len(part.index) for part in parts] == [9, 9, 8, 9]
    assert sum(part.weight for part in parts) == pytest.approx(1.0)


def test_labelled_images_are_shifted_but_not_mirrored() -> None:
    network, images = pictured.vit(), examples()
    targets = list(range(40))
    batches = draw_labelled(images, targets, network, size=8, seed=1)
    assert isinstance(batches, LabelledImages)
    step = batches.step(3)
    assert torch.equal(
        step.inputs["pixel_values"],
        LabelledImages(images, targets, network, size=8, seed=1).step(3).inputs["pixel_values"],
    )
    whole = encode(network, images)["pixel_values"]
    for pixels, label in zip(step.inputs["pixel_values"], step.target.tolist(), strict=True):
        shifts = [torch.tensor([[down, right, 0]]) for down in range(-2, 3) for right in range(-2, 3)]
        found = [torch.equal(moved(whole[label : label + 1], shift, pictured.GREY)[0], pixels) for shift in shifts]
        assert any(found)
    assert np.isclose(step.weight, 1.0)


def test_networks_that_want_other_images_are_refused() -> None:
    network = pictured.vit()
    other = replace(network, images=ImageInput(1, 16, 16, (0.4,), (0.25,)))
    with pytest.raises(BadInput, match="want images to be unlike"):
        ImageBatches(examples(), network, other)
