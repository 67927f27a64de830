"""Compressed inputs: the codecs, accuracy and correlations against direct computations, the command and its page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import pictured
from isthmus.audit.inputs import InputCurve, Sent, compress_image, measure_inputs, psnr, rank_correlation
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.flow.inputs import deep_distance, measure_sent
from isthmus.network import embed
from isthmus.report.inputs import said
from isthmus.storage.artifact import save_artifact


def test_a_codec_keeps_the_shape_and_counts_the_file() -> None:
    rows = np.linspace(0, 255, 32)
    colour = np.stack([np.add.outer(rows, rows * share) / 2 for share in (0.2, 0.6, 1.0)], axis=-1).astype(np.uint8)
    for image in (colour, colour[..., 0]):
        for codec in ("jpeg", "webp"):
            fine, many = compress_image(image, codec, 95)
            coarse, few = compress_image(image, codec, 1)
            assert fine.shape == coarse.shape == image.shape
            assert few < many
            errors = [((one.astype(float) - image) ** 2).mean() for one in (fine, coarse)]
            assert errors[0] < errors[1]
    file = io.BytesIO()
    Image.fromarray(colour).save(file, "JPEG", quality=40, optimize=True)
    arrived, size = compress_image(colour, "jpeg", 40)
    assert size == len(file.getvalue())
    assert np.array_equal(arrived, np.asarray(Image.open(file)))


def sent(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[tuple[str, int], Sent]]:
    """Losses follow one distance and not the other."""
    rng = np.random.default_rng(seed)
    right, losses, hard = np.ones(count), rng.uniform(size=count), rng.uniform(size=count)
    made = {}
    for place, quality in enumerate((90, 50, 10)):
        deep = hard * (place + 1)
        wrong = rng.uniform(size=count) < 0.3 * place
        squared = rng.uniform(size=count) * (1, 5, 3)[place]
        size = np.full(count, 900.0 - 300 * place)
        made["jpeg", quality] = Sent(1.0 - wrong, losses + deep + 0.2 * rng.normal(size=count), size, squared, deep)
    return right, losses, made


def test_figures_are_those_of_a_direct_computation() -> None:
    right, losses, made = sent()
    curve = measure_inputs(right, losses, made, raw_bytes=3072, name="net")
    drops, deep, squared, within = [], [], [], []
    for row, one in zip(curve.rows, made.values(), strict=True):
        drops.append(1 - one.right.mean())
        assert (row.accuracy.value, row.drop.value) == pytest.approx((one.right.mean(), drops[-1]))
        assert row.drop.low <= row.drop.value <= row.drop.high
        assert row.nats.value == pytest.approx((one.losses - losses).mean())
        assert row.psnr == pytest.approx(10 * np.log10(255**2 / one.squared.mean()))
        deep.append(one.deep.mean())
        squared.append(one.squared.mean())
        within.append([stats.spearmanr(value, one.losses - losses).statistic for value in (one.deep, one.squared)])
    first, second, gap = curve.told
    assert first.settings.value == pytest.approx(stats.spearmanr(deep, drops).statistic) == pytest.approx(1)
    assert second.settings.value == pytest.approx(stats.spearmanr(squared, drops).statistic) == pytest.approx(0.5)
    means = np.mean(within, axis=0)
    assert (first.images.value, second.images.value) == pytest.approx(tuple(means))
    assert gap.images.value == pytest.approx(means[0] - means[1])
    assert gap.images.low > 0.5, "one distance tells the losses, the other does not"
    assert psnr(0.0) == float("inf")


def test_rank_correlations_of_many_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (5, 9)).astype(float), rng.normal(size=(5, 9))
    expected = [stats.spearmanr(one, two).statistic for one, two in zip(x, y, strict=True)]
    assert rank_correlation(x, y) == pytest.approx(expected)
    assert np.isnan(rank_correlation(np.ones((1, 3)), y[:1, :3])).all()


def test_bytes_are_told_down_to_the_first_loss() -> None:
    right, losses, made = sent()
    curve = measure_inputs(right, losses, made, raw_bytes=3072, name="net")
    least = curve.least_bytes("jpeg", 0.99)
    assert least is not None
    assert least.quality == 90
    assert curve.least_bytes("webp", 0.99) is None
    worst = min(row.accuracy.value for row in curve.rows)
    coarse = curve.least_bytes("jpeg", worst)
    assert coarse is not None
    assert coarse.quality == 10
    (line,) = said([curve])
    assert line.replace("\u00a0", " ") == (
        "net, jpeg: keeps 99.0 % of the accuracy down to 900 B an image (quality 90; pixels take 3.07 kB)"
    )
    none = InputCurve("net", curve.accuracy, 3072, curve.rows[2:], curve.told)
    assert "at no quality" in said([none])[0]


def test_networks_read_what_arrives() -> None:
    task = pictured.pictures_task(120, channels=3)
    network = pictured.learned(pictured.resnet(), task, 25)
    found = measure_sent([network], task, codecs=("jpeg",), qualities=(90, 20, 1), images=20)
    (curve,) = found.curves
    chosen = np.sort(np.random.default_rng(0).permutation(len(task.held_out.examples))[:20])
    images = [np.asarray(task.held_out.examples[place]) for place in chosen]
    labels = np.asarray(task.held_out.labels)[chosen]
    for row in curve.rows:
        arrived, sizes = zip(*(compress_image(one, "jpeg", row.quality) for one in images), strict=True)
        logits = torch.from_numpy(embed(network, arrived))
        assert row.accuracy.value == pytest.approx((logits.argmax(1).numpy() == labels).mean())
        assert row.bytes == np.mean(sizes)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        clean = torch.nn.functional.cross_entropy(torch.from_numpy(embed(network, images)), torch.from_numpy(labels))
        assert row.nats.value == pytest.approx(float(loss - clean), abs=1e-4)
    assert curve.raw_bytes == images[0].size
    assert [row.deep for row in curve.rows] == sorted(row.deep for row in curve.rows)
    assert found.images == 20


def test_deep_distances_are_of_directions() -> None:
    first = {"a": torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "b": torch.tensor([[1.0, 1.0], [0.0, 3.0]])}
    second = {"a": torch.tensor([[3.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([[2.0, 2.0], [0.0, 1.0]])}
    assert deep_distance(first, second) == pytest.approx([0.0, 0.5])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = pictured.pictures(90)
    np.savez(tmp_path / "pictures.npz", images=images, labels=labels)
    save_artifact(pictured.vit(), tmp_path / "vit", {"network": "vit"})
    task = f"images:{tmp_path / 'pictures.npz'}"
    command = ["inputs", str(tmp_path / "vit"), "--task", task, "--codecs", "jpeg", "--images", "10", "-q"]
    assert main([*command, "--qualities", "90,20,2", "-o", str(tmp_path / "page.html"), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [row["quality"] for row in found["curves"][0]["rows"]] == [90, 20, 2]
    page = (tmp_path / "page.html").read_text()
    assert page.count('<svg class="chart"') == 1
    assert "the first less the second" in page
    for options, words in (
        (["--qualities", "90,no"], "not numbers"),
        (["--qualities", "90,120"], "give 1 to 100"),
        (["--codecs", "jpg"], "did you mean jpeg"),
        (["--qualities", "90"], "1 settings"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("\n".join(f"a sentence of words {one}" for one in range(40)))
    assert main(["inputs", str(tmp_path / "vit"), "--task", f"text:{tmp_path / 'text.txt'}", "-q"]) == 2
    assert "holds texts" in capsys.readouterr().err
    with pytest.raises(BadInput, match="no classifier of images"):
        measure_sent([pictured.vit(classes=None)], pictured.pictures_task(60), qualities=(90,))
    with pytest.raises(BadInput, match="have no labels"):
        measure_sent([pictured.vit()], pictured.pictures_task(60, labelled=False), qualities=(90,))
