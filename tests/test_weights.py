"""The weights that a unit owns, in a network whose units lie scattered in tensors and take running statistics along."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import pictured
from isthmus.relevance.estimator import Calibration
from isthmus.relevance.magnitude import Magnitude
from isthmus.relevance.probe import Probe
from isthmus.relevance.statistics import Statistics
from isthmus.sites import discover, narrow_model


def energy(model: nn.Module) -> float:
    return float(sum(parameter.detach().double().square().sum() for parameter in model.parameters()))


def test_the_energy_of_a_unit_is_what_leaves_with_it() -> None:
    network = pictured.resnet()
    sites = discover(network)
    probe = Probe(network, (), (), ())
    calibration = Calibration(network, sites, (), probe, np.zeros(0))
    scores = Magnitude().scores(calibration, Statistics()).nats
    whole = energy(network.model)
    assert any(part.owners for site in sites for part in site.slices), "else nothing lies scattered"
    for site in sites:
        assert scores[site.name].shape == (site.units,)
        for unit in (0, site.units - 1):
            rest = [other for other in range(site.units) if other != unit]
            left = energy(narrow_model(network.model, sites, {site.name: rest}))
            assert scores[site.name][unit] ** 2 == pytest.approx(whole - left, rel=1e-6)
