"""Measurements that start at a late layer are those of the whole network, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import networks
import small
from isthmus.relevance import calibrate
from isthmus.relevance.probe import make_probe, measure_closed
from isthmus.relevance.resuming import Resuming
from isthmus.sites import discover


@pytest.mark.parametrize("family", networks.NAMES)
def test_a_late_start_changes_no_measurement(family: str) -> None:
    network = networks.worded(family)
    probe = make_probe(network, small.sentences(12), batch=5)
    sites = discover(network)
    closing = {}
    for site in sites:
        if site.layer is not None:
            value = torch.ones(site.units)
            value[: site.units // 2] = 0
            closing[site.name] = (site, value)
    whole = {name: measure_closed(probe, [site], {name: value}) for name, (site, value) in closing.items()}
    before = list(network.model.modules())
    runs: list[str] = []
    first = network.model.get_submodule(next(site.module for site in sites if site.kind == "layers"))[0]  # type: ignore[index]
    handle = first.register_forward_hook(lambda *_: runs.append("first"))
    with Resuming(probe, sites) as resuming:
        for name, (site, value) in reversed(closing.items()):  # in any order
            resuming.start_at(site.layer)
            runs.clear()
            assert measure_closed(probe, [site], {name: value}) == whole[name]
            assert bool(runs) == (site.layer == 0)
    handle.remove()
    assert list(network.model.modules()) == before


def test_a_layer_is_found_by_the_name_of_its_parameter() -> None:
    network = networks.worded("bert")
    probe = make_probe(network, small.sentences(8))
    with Resuming(probe, discover(network)) as resuming:
        assert resuming.layer_of("encoder.layer.2.output.dense.weight") == 2
        assert resuming.layer_of("embeddings.word_embeddings.weight") == 0
        assert resuming.layer_of("encoder.layers.weight") == 0


def test_the_model_is_as_before_after_an_error() -> None:
    network = networks.worded("bert")
    probe = make_probe(network, small.sentences(8))
    layers = list(network.model.get_submodule("encoder.layer").children())

    def fail() -> None:
        with Resuming(probe, discover(network)) as resuming:
            resuming.start_at(2)
            resuming.start_at(len(layers) + 1)

    with pytest.raises(IndexError):
        fail()
    assert list(network.model.get_submodule("encoder.layer").children()) == layers


def test_relevance_is_what_it_was_without_a_late_start(monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks.worded("bert")
    probe = make_probe(network, small.sentences(12))
    sites = discover(network)
    generator = np.random.default_rng(0)
    scores = {site.name: generator.random(site.units) for site in sites}
    resumed = calibrate.to_nats(probe, sites, scores)
    monkeypatch.setattr(Resuming, "start_at", lambda *_: None)
    whole: dict[str, Any] = calibrate.to_nats(probe, sites, scores)
    assert list(whole) == list(resumed)
    for name, nats in whole.items():
        assert np.array_equal(nats, resumed[name])
