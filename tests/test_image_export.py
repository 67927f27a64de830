"""Networks of images in the engines: the same outputs as eager, in floating point and close to it in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pictured
from isthmus.cost.examples import described, one_described, one_example
from isthmus.errors import BadInput
from isthmus.export.bench import bench_networks
from isthmus.export.engines import engine_embed, load_runner, pool_numpy, runner_embed
from isthmus.export.quantized import export_quantized
from isthmus.network import Network, embed
from isthmus.tasks import Task

KINDS = ("classifier", "encoder", "resnet")


def network_of(kind: str) -> Network:
    if kind == "resnet":
        return pictured.resnet()
    return pictured.vit(classes=3 if kind == "classifier" else None)


def task_of(network: Network, count: int = 60) -> Task:
    assert network.images is not None
    return pictured.pictures_task(count, channels=network.images.channels)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_equals_eager(tmp_path: Path, kind: str, engine: str) -> None:
    network = network_of(kind)
    images = task_of(network).train[:7]
    found = engine_embed(network, engine, tmp_path, batch_size=3, threads=1)(images)
    np.testing.assert_allclose(found, embed(network, images), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("kind", "precision"), [("classifier", "w8a8"), ("resnet", "w8a8"), ("resnet", "int8")])
def test_integers_are_close(tmp_path: Path, kind: str, precision: str) -> None:
    pytest.importorskip("nncf")
    network = network_of(kind)
    task = task_of(network, 120)
    path = export_quantized(network, "openvino", precision, task.train, tmp_path)
    found = runner_embed(network, load_runner("openvino", path, 1))(task.held_out.examples)
    exact = embed(network, task.held_out.examples)
    error = np.abs(found - exact).mean() / exact.std()
    assert 0 < error < 0.15


def test_maps_and_tokens_are_pooled_as_eagerly() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(pool_numpy("mean", maps, None), maps.reshape(2, 5, 12).mean(2), rtol=1e-5)
    tokens = rng.normal(size=(2, 7, 5)).astype(np.float32)
    np.testing.assert_allclose(pool_numpy("mean", tokens, None), tokens.mean(1), rtol=1e-5)
    np.testing.assert_array_equal(pool_numpy("cls", tokens, None), tokens[:, 0])


def test_a_bench_of_images() -> None:
    network = pictured.resnet()
    (row,) = bench_networks([network], task_of(network).held_out.passages, batch=8, rounds=2, threads=1)
    assert (row["of"], row["macs_of"]) == ("images of 16 by 16 pixels", "one image of 16 by 16 pixels")
    # The convolutions of a ResNet of widths 8, 16 and 32 on maps of 16, 8 and 4 pixels a side, and the last map.
    stem, first = 27 * 8 * 256, 2 * 72 * 8 * 256
    second, third = (72 + 144) * 16 * 64, (144 + 288) * 32 * 16
    assert row["macs"] == stem + first + second + third + 32 * 3
    assert row["latency_ms"] > 0
    assert list(one_example(network, 5)["pixel_values"].shape) == [1, 3, 16, 16]
    assert (described(network, 3.0), one_described(network, 3)) == (row["of"], row["macs_of"])
    with pytest.raises(BadInput, match="no examples"):
        bench_networks([network], [])
