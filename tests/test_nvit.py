"""Hessian-aware saliency: its formula by hand, the price of what a unit costs, and the way to the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isthmus.cost.predict import kept_counts, parameter_rate
from isthmus.network import outputs
from isthmus.progress import silent
from isthmus.relevance.estimator import Calibration
from isthmus.relevance.nvit import HessianLatency
from isthmus.relevance.statistics import Statistics, gradients_at
from test_relevance import calibration, probe_of

NAME = "bert-classifier"


def towards(share: float) -> Calibration:
    given = calibration(NAME)
    rates = {"params": parameter_rate(given.network.model, given.sites)}
    whole = {"params": float(rates["params"](kept_counts(given.sites)))}
    return replace(given, rates=rates, limits={"params": share * whole["params"]}, original=whole)


def test_saliency_is_the_square_of_weights_times_gradients() -> None:
    probe, sites = probe_of(NAME)
    site = next(site for site in sites if site.kind == "neurons")
    name = next(part.parameter for part in site.slices if part.dim == 1)
    model = probe.network.model
    (inputs,) = probe.inputs
    logits = outputs(probe.network, inputs)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    weight = model.get_parameter(name)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), weight)
    wanted = (weight * slope).sum(0).square().detach().numpy() / len(labels)
    _, found = gradients_at(probe, [site], 0, silent)
    np.testing.assert_allclose(found[site.name], wanted, rtol=1e-3, atol=1e-9)


def test_closed_units_are_closed_while_others_are_estimated() -> None:
    probe, sites = probe_of(NAME)
    site = next(site for site in sites if site.kind == "heads")
    shut = np.zeros(site.units, dtype=bool)
    shut[0] = True
    open_, closed = (gradients_at(probe, [site], 0, silent, one)[1][site.name] for one in (None, {site.name: shut}))
    assert not np.allclose(open_[1:], closed[1:])


def test_units_leave_until_the_budget_holds() -> None:
    given = towards(0.8)
    method = HessianLatency(rounds=3)
    found = method.scores(given, Statistics()).nats
    stays = {name: int((score >= method.rounds).sum()) for name, score in found.items()}
    counts = {**kept_counts(given.sites), **{name: float(count) for name, count in stays.items() if name != "layers"}}
    cost = float(given.rates["params"](counts)) / given.original["params"]
    assert cost <= 0.8
    assert cost > 0.7
    assert len(set(found["layers"])) == 1, "layers are left to be measured"
    again = method.scores(given, Statistics()).nats
    assert all(np.array_equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("price", [0.0, 50.0])
def test_what_costs_more_leaves_sooner_at_a_price(price: float) -> None:
    given = towards(0.8)
    found = HessianLatency(rounds=1, price=price).scores(given, Statistics()).nats
    left = {site.kind: 0 for site in given.sites}
    for site in given.sites:
        left[site.kind] += int((found.get(site.name, np.ones(1)) < 1).sum())
    if price:  # a head or a unit of the stream costs some hundred weights, a neuron two rows
        assert left["heads"] + left["width"] > 0
        assert left["neurons"] == 0
    else:
        assert left["neurons"] > 0
