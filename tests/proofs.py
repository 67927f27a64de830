"""What must hold of every network whose sites are found by following its tensors."""

from __future__ import annotations

import numpy as np
import pytest

from isthmus.cost.measure import count_parameters, measure_macs
from isthmus.cost.predict import bytes_rate, kept_counts, macs_rate, parameter_rate, predicted_shapes, saved_tensors
from isthmus.doctor import checks
from isthmus.network import Network
from isthmus.sites import Site, Survey, narrow_model
from isthmus.sites.inputs import random_inputs

Kept = dict[str, list[int]]


def some(sites: tuple[Site, ...], seed: int) -> Kept:
    """Keep at random between half and all but one of the units of every site."""
    generator = np.random.default_rng(seed)
    kept = {}
    for site in sites:
        count = int(generator.integers(max(site.minimum, site.units // 2), site.units))
        kept[site.name] = sorted(generator.permutation(site.units)[:count].tolist())
    return kept


def check_saved_equals_loaded(network: Network, found: Survey, kept: Kept) -> None:
    """Opened again it gives the same; and it is narrower."""
    narrow = checks.narrowed(network, found.sites, kept)
    assert count_parameters(narrow.model) < count_parameters(network.model)
    assert checks.saved_error(network, narrow, kept, np.random.default_rng(0)) == 0.0


def check_predicted_equals_measured(network: Network, found: Survey, kept: Kept) -> None:
    """Parameters, bytes, multiply-accumulates and shapes, of the whole network and of a narrowed one."""
    inputs = random_inputs(network)
    params, size = parameter_rate(network.model, found.sites), bytes_rate(network.model, found.sites)
    macs = macs_rate(network.model, found.sites, 12, inputs)
    for own in ({}, kept):
        counts = kept_counts(found.sites, own)
        narrow = narrow_model(network.model, found.sites, own)
        saved = saved_tensors(narrow)
        assert params(counts) == count_parameters(narrow)
        assert size(counts) == sum(tensor.numel() * tensor.element_size() for tensor in saved.values())
        assert macs(counts) == pytest.approx(measure_macs(narrow, inputs), abs=0.5)
        assert predicted_shapes(network.model, found.sites, own) == {
            key: tuple(tensor.shape) for key, tensor in saved.items()
        }
