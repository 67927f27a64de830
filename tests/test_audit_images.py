"""The audit of images: corruptions, columns, pictures, given slices, and the whole from end to end on tiny networks."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import isthmus
import pictured
import small
from isthmus.audit.features import encoder_of, features_of
from isthmus.audit.givens import read_columns
from isthmus.audit.imagecolumns import image_columns, likeness_columns, place_columns
from isthmus.audit.imagecorruptions import IMAGE_CORRUPTIONS, SMALL, corrupt_image
from isthmus.audit.readers import fit_head
from isthmus.audit.reading import names_of, read_task
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.examples import Image, image_of_array
from isthmus.network import ImageInput, Network
from isthmus.pixels import pixel_values, scaled_pixels, small_pixels
from isthmus.report import AuditData, render_audit
from isthmus.report.pictures import picture, png
from isthmus.storage.artifact import save_artifact
from test_audit_flow import read_page

Capture = pytest.CaptureFixture[str]


def noisy(height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    return image_of_array(rng.integers(0, 256, (height, width, channels)).astype(np.uint8), f"noisy {seed}")


def flat(value: int, side: int = 40) -> Image:
    return image_of_array(np.full((side, side, 3), value, np.uint8), f"flat {value}")


def distance(image: Image, kind: str, severity: int, seed: int = 0) -> float:
    changed = np.asarray(corrupt_image(image, kind, severity, seed), dtype=float)
    return float(np.abs(changed - np.asarray(image, dtype=float)).mean())


# Corruptions.


def test_noise_and_impulses_have_their_strength() -> None:
    middle = flat(128, 200)
    for low, image in ((False, middle), (True, flat(128, SMALL - 1))):
        strengths = IMAGE_CORRUPTIONS["noise"].small if low else IMAGE_CORRUPTIONS["noise"].large
        noise = np.asarray(corrupt_image(image, "noise", 1, 0), dtype=float) / 255
        assert noise.std() == pytest.approx(strengths[0], rel=0.05)
    hit = np.asarray(corrupt_image(middle, "impulses", 3, 0))
    assert np.isin(hit, (0, 128, 255)).all()
    assert (hit != 128).mean() == pytest.approx(0.09, abs=0.01)
    assert (hit == 255).sum() == pytest.approx((hit == 0).sum(), rel=0.1)


def test_light_is_that_of_the_formula() -> None:
    image = noisy(80, 80)
    whole = np.asarray(image) / 255
    mean = whole.mean(axis=(0, 1))
    contrast = np.asarray(corrupt_image(image, "contrast", 2, 0))
    assert np.abs(contrast - 255 * (mean + 0.3 * (whole - mean))).max() <= 0.5 + 1e-9
    colour = image_of_array(np.tile(np.array([[[100, 50, 0]]], np.uint8), (80, 80, 1)), "orange")
    value = 100 / 255 + 0.2  # the largest channel; the others keep their share of it, which is hue and saturation
    bright = np.asarray(corrupt_image(colour, "brightness", 2, 0))[0, 0]
    assert bright.tolist() == [round(255 * value), round(255 * value / 2), 0]
    assert np.asarray(corrupt_image(flat(0, 80), "brightness", 5, 0)).tolist() == np.full((80, 80, 3), 128).tolist()
    assert np.asarray(corrupt_image(flat(250, 80), "brightness", 5, 0)).max() == 255


def test_blur_and_jpeg() -> None:
    point = np.zeros((81, 81, 1), np.uint8)
    point[40, 40] = 255
    blurred = np.asarray(corrupt_image(image_of_array(point, "point"), "blur", 1, 0), dtype=float)[..., 0]
    assert blurred[40, 40] == pytest.approx(255 / (2 * np.pi), abs=1)  # of deviation 1 pixel
    assert blurred[40, 41] / blurred[40, 40] == pytest.approx(np.exp(-0.5), abs=0.03)
    written = io.BytesIO()
    image = noisy(70, 70)
    Pillow.fromarray(np.asarray(image)).save(written, "JPEG", quality=25)
    theirs = np.asarray(Pillow.open(written))
    assert np.array_equal(np.asarray(corrupt_image(image, "jpeg", 1, 0)), theirs)


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_keep_shape_and_seed_and_grow(kind: str, channels: int) -> None:
    image = noisy(32, 32, channels)
    once = corrupt_image(image, kind, 3, 0)
    assert once.shape == image.shape
    assert once == corrupt_image(image, kind, 3, 0)
    assert (once == corrupt_image(image, kind, 3, 1)) is not IMAGE_CORRUPTIONS[kind].drawn
    assert 0 < distance(image, kind, 1) < distance(image, kind, 3) < distance(image, kind, 5)
    plain = image_of_array(np.asarray(image)[..., 0], "plain")
    assert np.asarray(corrupt_image(plain, kind, 2, 0)).shape == (32, 32)


def test_corruptions_that_are_not_there_are_refused() -> None:
    with pytest.raises(BadInput, match="did you mean noise"):
        corrupt_image(noisy(), "nois", 1, 0)
    for severity in (0, 6):
        with pytest.raises(BadInput, match="from 1 to 5"):
            corrupt_image(noisy(), "noise", severity, 0)


@pytest.mark.parametrize("edge", [None, 20, 40])
def test_scaled_pixels_are_what_the_network_sees(edge: int | None) -> None:
    wanted = ImageInput(3, 24, 24, (0.5,) * 3, (0.2,) * 3, shortest_edge=edge)
    for image in (noisy(31, 50, seed=1), noisy(24, 24, seed=2), noisy(60, 28, 1, seed=3)):
        scaled = scaled_pixels(wanted, image)
        assert torch.equal(pixel_values(wanted, [scaled]), pixel_values(wanted, [image]))


# What is said of images.


def test_image_columns() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :8, 0] = 200  # the left half
    spot = np.zeros((16, 16, 3), np.uint8)
    spot[6:10, 6:10] = 255
    images = [image_of_array(one, "x") for one in (red, spot)]
    columns = {column.name: column.values for column in image_columns(images)}
    assert columns["brightness"] == pytest.approx((0.299 * 100 / 255, 16 / 256))
    assert columns["contrast"][1] == pytest.approx(np.sqrt(1 / 16 * 15 / 16))
    assert columns["detail"][0] == pytest.approx(0.299 * 200 / 255 / 30)  # one step of thirty, in half of the steps
    assert columns["hue"] == ("red", "none")
    assert columns["colourfulness"] == pytest.approx((100 / 255, 0))
    assert columns["symmetry"] == pytest.approx((-1, 1))
    assert columns["middle brighter than edge"] == (False, True)
    assert "pixels" not in columns
    corner = np.zeros((16, 16), np.uint8)
    corner[:3, :3] = 9
    lit = [image_of_array(corner, "x"), images[1], image_of_array(255 - corner, "x")]
    places = {column.name: column.values for column in place_columns(lit)}
    assert places["brightest"][:2] == ("top left", "middle centre")
    assert places["darkest"][2] == "top left"
    grey = [noisy(16, 16, 1), noisy(8, 16, 3)]
    more = {column.name: column.values for column in image_columns(grey)}
    assert more["pixels"] == (256, 128)
    assert more["width over height"] == (1, 2)
    assert more["is grey"] == (True, False)
    bare = {column.name for column in image_columns([noisy(channels=1, seed=seed) for seed in range(3)])}
    assert not {"hue", "colourfulness"} & bare


@pytest.mark.parametrize(("colour", "name"), [((9, 9, 200), "blue"), ((9, 200, 9), "green"), ((200, 200, 9), "yellow")])
def test_hues(colour: tuple[int, int, int], name: str) -> None:
    image = image_of_array(np.full((8, 8, 3), colour, np.uint8), "x")
    assert {column.name: column.values for column in image_columns([image])}["hue"] == (name,)


def test_likeness_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3)[np.arange(60) % 3]
    (column,) = likeness_columns(centres * 5 + 0.05 * rng.normal(size=(60, 3)), [str(number) for number in range(60)])
    for cluster in range(3):
        assert all(int(name) % 3 == cluster for name in column.values[cluster::3])
    assert likeness_columns(np.eye(30), ["x"] * 30) == ()


def test_given_columns_are_matched_by_file_and_by_place(tmp_path: Path) -> None:
    first, second, third = (noisy(seed=seed) for seed in range(3))
    files = [image_of_array(np.asarray(one), f"set/{name}/1.png") for one, name in ((first, "cat"), (second, "dog"))]
    table = tmp_path / "more.csv"
    table.write_text("file,light\ncat/1.png,dim\ndog/1.png,full\n", encoding="utf-8")
    columns, _ = read_columns(table, tuple((one,) for one in files))
    assert columns[0].values == ("dim", "full")
    placed = image_of_array(np.asarray(third), "x.npz: images 17")
    table.write_text("image,light\n17,dim\n3,full\n", encoding="utf-8")
    columns, warnings = read_columns(table, ((placed,), (files[0],)))
    assert columns[0].values == ("dim", None)
    assert "no row for 1 of 2" in warnings[0]
    table.write_text("image,light\n1.png,dim\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"1\.png fits 2 images"):
        read_columns(table, tuple((one,) for one in files))
    table.write_text("text,light\n1.png,dim\n", encoding="utf-8")
    with pytest.raises(BadInput, match="name image in its header"):
        read_columns(table, ((placed,),))


# Pictures.


def test_a_picture_is_a_png_of_the_image() -> None:
    for image in (noisy(20, 30), noisy(20, 30, 1)):
        data = base64.b64decode(picture(image).removeprefix("data:image/png;base64,"))
        shown = np.asarray(Pillow.open(io.BytesIO(data)))
        assert np.array_equal(shown.reshape(20, 30, -1), np.asarray(image))
    large = small_pixels(noisy(200, 100), 48)
    assert large.shape == (48, 24, 3)
    assert Pillow.open(io.BytesIO(png(large))).size == (24, 48)
    assert small_pixels(np.zeros((500, 2), np.uint8), 48).shape == (48, 1, 1)


# The readers.


def test_loss_of_labelled_images_is_one_less_the_accuracy() -> None:
    from isthmus.flow.verifying import measure_quality

    task = pictured.pictures_task(200, channels=1)
    reading = read_task(task)
    everything = np.arange(len(reading.examples))
    for network in (pictured.vit(), pictured.vit(classes=None)):
        head = fit_head(network, reading)
        read = head.read(reading.examples, everything)
        assert 1 - read.loss.mean() == pytest.approx(measure_quality([network], task)[0].value)
        assert head.features.shape[1] == 32
    assert len(set(names_of(reading).values())) == len(set(reading.examples))


def test_features_of_a_classifier_without_an_encoder_are_what_its_head_takes() -> None:
    network, task = pictured.resnet(), pictured.pictures_task(60, channels=3)
    images = task.held_out.examples
    features = features_of(encoder_of(network), images)
    assert features.shape == (len(images), 32)
    head = network.model.linear
    logits = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert np.allclose(logits, features_of(network, images), atol=1e-5)
    assert not any(module._forward_hooks for module in network.model.modules())


# From end to end.


@pytest.fixture(scope="module")
def pair() -> tuple[Network, Network]:
    """Two ResNets, one that has learned and one that has learned less."""
    task = pictured.pictures_task(300, channels=3)
    first, second = (pictured.learned(pictured.resnet(seed), task, steps) for seed, steps in ((0, 40), (1, 10)))
    return replace(first, name="first"), replace(second, name="second")


@pytest.fixture(scope="module")
def report(pair: tuple[Network, Network]) -> AuditData:
    images, labels = pictured.pictures(320, channels=3, seed=1)
    rows = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    task = isthmus.task(("images", {"train": rows[:200], "validation": rows[200:]}))
    return isthmus.audit(*pair, task, transfer=[pictured.pictures_task(200, channels=3, seed=2)]).report


def test_an_audit_of_images_has_every_part_but_position(report: AuditData) -> None:
    assert report.loss_name == "error"
    assert report.exemplars is not None
    assert report.exemplars.count > 0
    assert report.exemplars.accuracy_all is not None
    assert report.damage is not None
    names = {row.name for row in report.damage.rows}
    assert {"class 0", "class 1", "class 2"} <= names
    assert any(name.startswith("brightness ") for name in names)
    assert report.discovered is not None
    assert report.robustness is not None
    rows = {(row.kind, row.strength): row for row in report.robustness.rows}
    assert set(rows) == {(kind, severity) for kind in IMAGE_CORRUPTIONS for severity in (1, 3, 5)}
    assert rows["noise", 1].seeds == 2
    assert rows["blur", 1].seeds == 1
    assert len(report.calibration) == len(report.selective) == 2
    assert len(report.neighbours) == 1
    assert report.position == []
    assert any("not measured on images" in warning for warning in report.warnings)
    assert report.transfer is not None
    assert {cell.column for cell in report.transfer.cells} >= {"many-shot", "few-shot 5"}


def test_the_page_shows_the_images(report: AuditData) -> None:
    assert AuditData.model_validate_json(report.model_dump_json()) == report
    page = render_audit(report)
    text = read_page(page)
    assert "Position bias" not in text
    assert report.exemplars is not None
    assert {row.text for row in report.exemplars.rows} <= set(report.pictures)
    assert page.count('<img class="picture" src="data:image/png;base64,') >= len(report.exemplars.rows)


def test_images_without_labels_and_given_slices(tmp_path: Path) -> None:
    images, _ = pictured.pictures(260, seed=3)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "train.npy", images[:200])
    np.save(tmp_path / "set" / "test.npy", images[200:])
    rows = [f"{index},{'odd' if index % 2 else 'even'}" for index in range(60)]
    (tmp_path / "given.csv").write_text("index,turn\n" + "\n".join(rows) + "\n", encoding="utf-8")
    encoders = [replace(pictured.vit(classes=None, seed=seed), name=str(seed)) for seed in (0, 1)]
    task = isthmus.task(f"images:{tmp_path / 'set'}")
    found = isthmus.audit(*encoders, task, slices=tmp_path / "given.csv", parts="exemplars,slices,neighbours").report
    assert found.loss_name == "divergence, nats"
    assert found.networks[0].loss.value == 0
    assert found.networks[1].loss.value > 0
    assert found.damage is not None
    assert {"turn even", "turn odd"} <= {row.name for row in found.damage.rows}
    with pytest.raises(BadInput, match="give labelled images"):
        isthmus.audit(pictured.vit(), replace(pictured.vit(), name="b"), task)
    small.write_text(tmp_path / "text.txt", 60)
    with pytest.raises(BadInput, match="reads images"):
        isthmus.audit(*encoders, isthmus.task(f"text:{tmp_path / 'text.txt'}"))


def test_the_command(pair: tuple[Network, Network], tmp_path: Path, capsys: Capture) -> None:
    images, labels = pictured.pictures(180, channels=3, seed=4)
    np.savez(tmp_path / "set.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    for network in pair:
        save_artifact(network, tmp_path / network.name, {})
    command = ["audit", *(str(tmp_path / one.name) for one in pair), "--task", f"images:{tmp_path / 'set.npz'}", "-q"]
    page = tmp_path / "page.html"
    assert main([*command, "--parts", "exemplars,slices,position", "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert "exemplars: the networks disagree on" in out
    assert "so not measured on images" in out
    assert "<img" in page.read_text(encoding="utf-8")
