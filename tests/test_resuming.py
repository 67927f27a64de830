"""Measurements that start at a late layer are those of the whole network, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import networks
import pictured
import small
import visions
from isthmus.relevance import calibrate, standing
from isthmus.relevance.probe import make_probe, measure_closed
from isthmus.relevance.resuming import Resuming
from isthmus.sites import Site, discover, gated


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


@pytest.mark.parametrize("name", ["plain", "dense", "padded", "shuffled"])
def test_modules_before_a_site_stand_still(name: str) -> None:
    network = visions.network(name)
    model, sites = network.model, discover(network)
    generator = torch.Generator().manual_seed(0)
    inputs = tuple({"x": torch.randn(count, 3, 16, 16, generator=generator)} for count in (3, 2))
    closing = {site.name: torch.arange(site.units) % 2.0 for site in sites}
    numbers, running = {id(given["x"]): number for number, given in enumerate(inputs)}, [0]

    def note(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
        running[0] = numbers[id(named["x"])]

    def run(site: Site) -> list[torch.Tensor]:
        with torch.inference_mode(), gated(model, [site], closing):
            return [model(**given) for given in inputs]

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    whole = {site.name: run(site) for site in sites}
    before = list(model.modules())
    stood = 0
    early = standing.Early(model, inputs, lambda: running[0])
    for site in (*sites, *reversed(sites)):  # in any order
        early.start_before([gate.module for gate in site.gates])
        stood += bool(early.held)
        assert all(torch.equal(one, other) for one, other in zip(run(site), whole[site.name], strict=True))
    early.restore()
    handle.remove()
    assert list(model.modules()) == before
    assert stood >= len(sites), "else nothing was saved"


def test_a_network_of_convolutions_is_calibrated_as_without_a_late_start(monkeypatch: pytest.MonkeyPatch) -> None:
    network = pictured.resnet()
    probe = make_probe(network, pictured.pictures_task(60, channels=3).held_out.examples, batch=5)
    sites = discover(network)
    scores = {site.name: np.arange(1.0, site.units + 1) for site in sites}
    runs: list[str] = []
    handle = network.model.get_submodule("layer1").register_forward_hook(lambda *_: runs.append("layer1"))
    resumed = calibrate.to_nats(probe, sites, scores)
    often = len(runs)
    runs.clear()
    monkeypatch.setattr(Resuming, "start_for", lambda *_: None)
    whole = calibrate.to_nats(probe, sites, scores)
    handle.remove()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert often < 0.5 * len(runs)


def test_too_much_to_hold_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MOST_BYTES", 10)
    network = visions.network("plain")
    inputs = ({"x": torch.zeros(2, 3, 16, 16)},)
    early = standing.Early(network.model, inputs, lambda: 0)
    early.start_before(["hidden"])
    assert not early.held


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
    monkeypatch.setattr(Resuming, "start_for", lambda *_: None)
    whole: dict[str, Any] = calibrate.to_nats(probe, sites, scores)
    assert list(whole) == list(resumed)
    for name, nats in whole.items():
        assert np.array_equal(nats, resumed[name])
