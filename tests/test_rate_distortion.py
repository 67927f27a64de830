"""Sensitivity against derivatives taken with plain autograd; rounding against the theory of high rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import networks
import small
from isthmus.bottlenecks.bits.rate_distortion import SLOPE, DeepCabac, cheaper, quantize, steps
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.relevance.probe import make_probe
from isthmus.relevance.sensitivity import Sensitivity, collect_sensitivity, predicted_nats, token_frequency
from isthmus.storage import entropy
from isthmus.storage.coded import decode, scale_of


def weights(rows: int = 300, columns: int = 200, seed: int = 0) -> tuple[np.ndarray, Sensitivity]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    return weight, Sensitivity(rng.gamma(2, 1, rows), rng.gamma(2, 1, columns))


def bits(integers: np.ndarray) -> float:
    shares = np.unique(integers, return_counts=True)[1] / integers.size
    return float(-(shares * np.log2(shares)).sum())


def test_every_weight_loses_the_same_where_rates_are_high():
    weight, sensitivity = weights()
    coded = quantize(weight, *steps(sensitivity, 0.05), slope=0)
    error = decode(coded) - weight
    lost = predicted_nats({"w": sensitivity}, {"w": error})
    # Steps are rounded to sixteenths of an octave, so squares are off by 4 % at most.
    assert lost == pytest.approx(0.05**2 / 24 * weight.size, rel=0.04)
    each = 0.5 * sensitivity.rows[:, None] * sensitivity.columns * error**2
    assert each[:150].mean() == pytest.approx(each[150:].mean(), rel=0.05)


def test_twice_the_step_is_a_bit_less():
    weight, sensitivity = weights()
    fine, coarse = (bits(quantize(weight, *steps(sensitivity, step), slope=0).integers) for step in (0.05, 0.1))
    assert fine - coarse == pytest.approx(1, abs=0.03)


def test_rounding_by_rate_and_distortion_costs_less_than_to_the_nearest():
    weight, sensitivity = weights()
    step = 1.5
    cost = {}
    for slope in (0.0, SLOPE):
        coded = quantize(weight, *steps(sensitivity, step), slope=slope)
        lost = predicted_nats({"w": sensitivity}, {"w": decode(coded) - weight}) / (step**2 / 2)
        counts = entropy.count([(coded.integers.ravel(), np.zeros(weight.size, dtype=np.uint8))])[1]
        cost[slope] = lost + SLOPE * 8 * entropy.coded_bytes(counts)
    assert cost[SLOPE] < cost[0.0]


@pytest.mark.parametrize("wanted", [4.0, 3.25])
def test_nominal_bits_are_what_normal_weights_take(wanted: float) -> None:
    weight, sensitivity = weights()
    alike = DeepCabac(tempering=0.0).code(weight, MatrixStatistics(sensitivity), Setting(wanted))
    assert bits(alike.integers) == pytest.approx(wanted, abs=0.02)
    unlike = DeepCabac(tempering=1.0).code(weight, MatrixStatistics(sensitivity), Setting(wanted))
    step = scale_of(unlike.scales[0]) * scale_of(unlike.scales[1])
    entropy_of_each = 0.5 * np.log2(2 * np.pi * np.e * weight.var() / step**2)
    assert entropy_of_each.mean() == pytest.approx(wanted, abs=0.02)


def test_a_weight_takes_the_nearest_integer_or_the_next_towards_zero():
    exact = np.linspace(-3.4, 3.4, 500).astype(np.float32).reshape(20, 25)
    nearest = np.rint(exact).astype(np.int32)
    chosen = cheaper(exact, nearest, 0.2)
    assert set(np.unique(np.abs(nearest) - np.abs(chosen))) <= {0, 1}
    np.testing.assert_array_equal(cheaper(exact, nearest, 0.0), nearest)


def test_sensitivity_of_a_linear_map_is_that_of_its_factors():
    """Against derivatives by the outputs, taken one batch at a time with plain autograd."""
    network = networks.worded("bert")
    probe = make_probe(network, small.sentences(16))
    name = "encoder.layer.1.intermediate.dense.weight"
    found = collect_sensitivity(probe, [name], small.sentences(16), seed=3)[name]
    from isthmus.network import pool
    from isthmus.relevance.statistics import sampled_loss

    generator = torch.Generator().manual_seed(3)
    seen: dict[str, torch.Tensor] = {}
    module = network.model.get_submodule(name.rpartition(".")[0])
    handle = module.register_forward_hook(lambda _, args, output: seen.update(x=args[0], y=output))
    (inputs,) = probe.inputs
    output = pool(network, network.model(**inputs), inputs["attention_mask"])
    (slope,) = torch.autograd.grad(sampled_loss(output, network.pooling, generator), [seen["y"]])
    handle.remove()
    texts, tokens = slope.shape[:2]
    np.testing.assert_allclose(found.rows, slope.double().square().sum((0, 1)) / texts, rtol=1e-4)
    np.testing.assert_allclose(
        found.columns, seen["x"].detach().double().square().sum((0, 1)) / (texts * tokens), rtol=1e-4
    )
    assert all(parameter.requires_grad for parameter in network.model.parameters())


def test_sensitivity_orders_the_true_change_of_a_network():
    network = networks.worded("bert")
    texts = small.sentences(64)
    probe = make_probe(network, texts)
    modules = network.model.named_modules()
    names = [f"{path}.weight" for path, module in modules if isinstance(module, nn.Linear) and "pooler" not in path]
    found = collect_sensitivity(probe, names, texts)
    assert found.keys() == set(names)
    assert all(np.isfinite(one.rows).all() and one.rows.min() >= 0 and one.columns.max() > 0 for one in found.values())


def test_tokens_never_seen_count_as_half_seen():
    network = networks.worded("bert")
    texts = small.sentences(30)
    frequency = token_frequency(network.tokenizer, texts)
    assert frequency.min() == pytest.approx(0.5 / 30)
    assert frequency[network.tokenizer.cls_token_id] == 1
