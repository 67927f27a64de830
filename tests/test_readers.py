"""What reads a site, solved anew as units close: against least squares done apart, and that all is put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import networks
import pictured
import small
from isthmus.examples import Image
from isthmus.flow.solving import solve
from isthmus.flow.study import cut, start_study
from isthmus.network import Network, encode, outputs
from isthmus.recovery.norms import batch_norms, estimate_norms, restate_norms
from isthmus.relevance import readers as module
from isthmus.relevance.calibrate import removal_order
from isthmus.relevance.probe import measure_network
from isthmus.relevance.readers import Reader, close_all, find_readers
from isthmus.relevance.registry import get
from isthmus.relevance.statistics import collect
from isthmus.sites import discover
from test_relevance import calibration, probe_of

TEXTS = small.sentences(40)


def image_list(count: int, channels: int) -> list[Image]:
    return [image for image, _ in pictured.pictures_task(count, channels=channels).labelled]


def readers_of(network: Network, examples: list[str] | list[Image]) -> dict[str, Reader]:
    return find_readers(network, discover(network), examples)


def entering(network: Network, examples: list[str]) -> torch.Tensor:
    """Return what enters the second layer's projection of neurons, no padding, shape ``(tokens, units)``."""
    inputs, rows = encode(network, examples), []
    handle = network.model.get_submodule("encoder.layer.1.output.dense").register_forward_pre_hook(
        lambda _, args: rows.append(args[0][inputs["attention_mask"].bool()])
    )
    with torch.no_grad():
        outputs(network, inputs)
    handle.remove()
    return rows[0].double()


def test_a_linear_reader_is_ridge_regression_on_what_stays() -> None:
    network = networks.worded("bert")
    reader = readers_of(network, TEXTS)["layers.1.neurons"]
    rows = entering(network, TEXTS)
    centred = rows - rows.mean(0)
    weight = reader.module.weight.detach().double()
    damping = module.DAMPING * float(centred.square().mean()) * len(rows)
    closed = [3, 4, 11]
    stays = [unit for unit in range(reader.site.units) if unit not in closed]
    # The damping holds weights at what they were: rows of their own beside the data's.
    held = np.sqrt(damping) * np.eye(reader.site.units)
    design = np.concatenate([centred.numpy(), held])
    wanted = np.linalg.lstsq(design[:, stays], design @ weight.numpy().T, rcond=None)[0].T
    found = reader.without(closed)
    assert np.allclose(found[:, stays].numpy(), wanted, atol=1e-4), "its products are summed in float32"
    assert not found[:, closed].any()

    before, bias = weight.clone(), reader.module.bias
    assert bias is not None
    old = rows @ before.T + bias.detach()
    with reader.closed(closed):
        new = rows @ reader.module.weight.detach().double().T + bias.detach()
        assert torch.allclose(new.mean(0), old.mean(0), atol=1e-5), "the mean goes into the bias"
    assert torch.equal(reader.module.weight.detach().double(), before)


def test_the_order_closes_the_unit_of_least_error_each_time() -> None:
    reader = readers_of(networks.worded("bert"), TEXTS)["layers.1.heads"]
    order, errors = reader.order()
    weight, damped = reader.module.weight.detach().double(), reader.moments.damped()

    def error(closed: list[int]) -> float:
        change = weight - reader.without(closed)
        return float((change @ damped @ change.T).trace())

    gone: list[int] = []
    for unit, added in zip(order.tolist(), errors.tolist(), strict=True):
        left = [other for other in range(reader.site.units) if other not in gone]
        tried = {other: error([*gone, other]) for other in left}
        assert unit == min(tried, key=lambda other: tried[other])
        assert added == pytest.approx(tried[unit] - error(gone), rel=1e-4)
        gone.append(unit)
    assert len(order) == reader.site.units - reader.site.minimum


def test_a_convolution_is_solved_on_its_patches_and_its_norm_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POSITIONS", 1 << 20)  # all places, each once: drawn with replacement otherwise
    monkeypatch.setattr(torch, "randint", lambda most, size, generator: torch.arange(size[0]))
    network, examples = pictured.resnet(), image_list(48, 3)
    assert restate_norms(network, examples)
    reader = next(one for name, one in readers_of(network, examples).items() if name.startswith("layer2.0.conv1"))
    norm = network.model.get_submodule("layer2.0.bn2")
    assert reader.norm is norm
    maps: list[torch.Tensor] = []
    handle = reader.module.register_forward_hook(lambda _, args, output: maps.append(output.double()))
    with torch.no_grad():
        outputs(network, encode(network, examples))
        with reader.closed([0, 5]):
            outputs(network, encode(network, examples))
            flat = maps[1].transpose(0, 1).flatten(1)
            assert torch.allclose(norm.running_mean.double(), flat.mean(1), atol=1e-4)  # type: ignore[union-attr,operator]
            assert torch.allclose(norm.running_var.double(), flat.var(1), rtol=1e-3)  # type: ignore[union-attr,operator]
            centred = [one.transpose(0, 1).flatten(1) for one in maps]
            centred = [one - one.mean(1, keepdim=True) for one in centred]
            solved = float((centred[1] - centred[0]).square().sum())
            weight = reader.module.weight.clone()
            with torch.no_grad():
                reader.module.weight.add_(1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
                reader.module.weight[:, [0, 5]] = 0
                outputs(network, encode(network, examples))
            other = maps[-1].transpose(0, 1).flatten(1)
            moved = float((other - other.mean(1, keepdim=True) - centred[0]).square().sum())
            assert solved < moved, "no weights nearby do better"
    handle.remove()


def test_columns_of_a_convolution_are_those_that_unfolding_gives() -> None:
    network, examples = pictured.resnet(), image_list(8, 3)
    reader = next(one for name, one in readers_of(network, examples).items() if name.startswith("layer1.0.conv1"))
    weight = reader.module.weight.detach()
    pixels = torch.randn(1, weight.shape[1], 6, 6, generator=torch.Generator().manual_seed(0))
    unit = 3
    only = torch.zeros_like(pixels)
    only[:, unit] = pixels[:, unit]
    columns = reader.columns[unit]
    patches = F.unfold(pixels, 3, padding=1)[0]
    wanted = F.conv2d(only, weight, padding=1)[0].flatten(1)
    assert torch.allclose(weight.flatten(1)[:, columns] @ patches[columns], wanted, atol=1e-5)


def test_closed_whole_and_cut_compute_the_same() -> None:
    network, examples = pictured.resnet(), image_list(48, 3)
    sites = discover(network)
    found = find_readers(network, sites, examples)
    kept = {name: tuple(range(0, one.site.units, 2)) for name, one in found.items()}
    assert close_all(found, kept) == len(found)
    study = start_study(network, pictured.pictures_task(80, channels=3))
    inputs = encode(network, examples)
    with torch.no_grad():
        assert torch.allclose(outputs(network, inputs), outputs(cut(study, kept), inputs), atol=1e-4)


def test_restated_norms_compute_what_they_did_and_estimate_as_they_are() -> None:
    network, examples = pictured.resnet(), image_list(100, 3)
    inputs = encode(network, examples)
    with torch.no_grad():
        before = outputs(network, inputs)
        assert restate_norms(network, examples)
        after = outputs(network, inputs)
        stated = [norm.running_var.clone() for norm in batch_norms(network.model)]  # type: ignore[union-attr]
        estimate_norms(network, examples)
    assert torch.allclose(before, after, atol=1e-4)
    for norm, wanted in zip(batch_norms(network.model), stated, strict=True):
        assert torch.allclose(norm.running_var, wanted, rtol=1e-3)  # type: ignore[arg-type]
    assert not restate_norms(pictured.vit(), examples[:4])


def test_solved_readers_come_closer_than_norms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = pictured.pictures_task(200, channels=3)
    study = start_study(pictured.learned(pictured.resnet(), task, steps=40), task)
    kept = {site.name: tuple(range(0, site.units, 2)) for site in study.sites if "conv1" in site.name}
    student = cut(study, kept)
    solved = solve(study, student, kept)
    monkeypatch.setattr("isthmus.flow.solving.find_readers", lambda *_: {})
    plain = solve(study, student, kept)
    assert solved is not None
    assert measure_network(study.probe, solved) < measure_network(study.probe, plain or student)


def test_the_surgeon_leaves_units_in_the_order_of_its_readers() -> None:
    probe, sites = probe_of("bert")
    relevance = get("surgeon").scores(calibration("bert"), collect(probe, sites, frozenset({"gradients"}), seed=0))
    assert {"layers.0.heads", "layers.2.neurons"} <= set(relevance.readers)
    assert "width" not in relevance.readers
    for name, reader in relevance.readers.items():
        order, _ = reader.order()
        assert removal_order(relevance.nats[name], reader.site.fixed)[: len(order)].tolist() == order.tolist()
