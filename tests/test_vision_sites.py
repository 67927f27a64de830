"""The matrix of networks that read images: sites, mask and removal, saved and loaded, predicted and measured."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proofs
import visions
from isthmus import doctor, sites
from isthmus.cost.predict import (
    example_inputs,
)
from isthmus.doctor import checks
from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import ImageInput, Network
from isthmus.sites import Site, Survey, closed_values, discover, gated, narrow_model, survey
from isthmus.sites.inputs import random_inputs
from proofs import some

ALL = (*visions.NAMES, *visions.MODULES)


@cache
def surveyed(name: str) -> tuple[Network, Survey]:
    network = visions.network(name)
    return network, survey(network)


@pytest.mark.parametrize("name", ALL)
def test_mask_equals_removal(name: str) -> None:
    """Of all sites at once; and what is closed does matter to the outputs, which do depend on the image."""
    network, found = surveyed(name)
    kept = some(found.sites, 0)
    assert checks.mask_error(network, found.sites, kept, np.random.default_rng(0)) <= 1e-5
    inputs = checks.some_inputs(network, np.random.default_rng(0))
    before = checks.run(network.model, inputs)
    with torch.no_grad(), gated(network.model, found.sites, closed_values(found.sites, kept)):
        after = checks.run(network.model, inputs)
    for name_, wide in before.items():
        assert (wide - after[name_]).abs().max() > 1e-3 * wide.abs().max()
        if "pixel_values" in inputs:
            assert after[name_].std(0).max() > 1e-4 * after[name_].abs().max()


@pytest.mark.parametrize("name", ALL)
def test_saved_equals_loaded(name: str) -> None:
    network, found = surveyed(name)
    proofs.check_saved_equals_loaded(network, found, some(found.sites, 1))


@pytest.mark.parametrize("name", ALL)
def test_predicted_equals_measured(name: str) -> None:
    network, found = surveyed(name)
    proofs.check_predicted_equals_measured(network, found, some(found.sites, 2))


KINDS: dict[str, dict[str, int]] = {
    "vit": {"width": 1, "layers": 1, "heads": 3, "neurons": 3},
    "vit-encoder": {"width": 1, "layers": 1, "heads": 3, "neurons": 3, "feature": 1},
    "siglip-head": {"layers": 1, "heads": 3, "neurons": 4},
    "swin": {"width": 2, "layers": 1, "heads": 4, "neurons": 4},
    "convnext": {"channels": 4, "neurons": 5},
    "resnet": {"channels": 14},
    "plain": {"channels": 2, "neurons": 1},
    "dense": {"channels": 5},
    "shuffled": {"channels": 3},
    "padded": {"channels": 3},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_sites_there_are(name: str) -> None:
    _, found = surveyed(name)
    assert Counter(site.kind for site in found.sites) == KINDS[name]
    assert len({site.name for site in found.sites}) == len(found.sites)


def test_a_transformers_sites_are_those_of_a_declared_anatomy() -> None:
    """ViT: the stream at its norms, heads by their projections, in the shape that text encoders have."""
    _, found = surveyed("vit")
    by_name = {site.name: site for site in found.sites}
    heads = by_name["layers.1.heads"]
    assert (heads.kind, heads.units, heads.layer) == ("heads", 4, 1)
    assert [part.each for part in heads.slices] == [8] * 7
    assert {attribute.name for attribute in heads.attributes} == {"num_attention_heads"}
    width = by_name["width"]
    names = {part.parameter for part in width.slices}
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "classifier.weight"} <= names
    assert {gate.module for gate in width.gates if gate.where != "norm"} == {"classifier"}, "it reads one token's norm"
    assert by_name["layers"].units == 3


def test_coupled_channels_of_a_network_outside_transformers() -> None:
    """A flattened map repeats a channel, a group leaves as a whole, halves of a shuffle lose equally, pads follow."""
    plain = {site.name: site for site in surveyed("plain")[1].sites}
    flattened = plain["features.3.channels"]
    assert [part.each for part in flattened.slices if part.parameter == "hidden.weight"] == [16]
    assert {part.parameter for part in flattened.slices} >= {"features.4.running_mean", "features.4.running_var"}
    grouped = next(site for site in surveyed("dense")[1].sites if site.name == "mix.channels")
    assert grouped.units == 3
    assert {(part.parameter, part.each) for part in grouped.slices} >= {("grouped.weight", 4), ("normed.weight", 4)}
    stem = next(site for site in surveyed("dense")[1].sites if site.name == "first.channels")
    joined = next(part for part in stem.slices if part.parameter == "second.weight")
    assert joined.owners == (-1,) * 6 + (0, 1, 2, 3)
    shuffled = surveyed("shuffled")[1].sites[0]
    assert {part.each for part in shuffled.slices if part.parameter in ("stem.weight", "last.weight")} == {2}
    network, found = surveyed("padded")
    zeros = next(site for site in found.sites if site.attributes)
    assert zeros.units == 8
    narrow: Any = narrow_model(network.model, found.sites, {zeros.name: [0, 4, 5, 6]})
    assert (narrow.shortcut.before, narrow.shortcut.after) == (1, 3)


def test_sizes_that_code_states_are_followed_or_named() -> None:
    found = surveyed("siglip-head")[1]
    assert not any(site.kind == "width" for site in found.sites)
    assert any(line.startswith("width: ") and "expecting embedding dimension" in line for line in found.left)
    assert any(line.startswith("head: ") and "out_proj.weight is used outside" in line for line in found.left)
    pvt = surveyed("pvt")[1]
    streams = [site for site in pvt.sites if any(part.name == "num_channels" for part in site.attributes)]
    assert streams, "the next patch embedding checks how many channels enter"
    reduced = [
        part.parameter for site in streams for part in site.slices if "sequence_reduction.weight" in part.parameter
    ]
    assert len(reduced) > len(set(reduced)), "a stream and its reduction are reshaped to the same width"


# What is right is found right, and what is wrong is found wrong.


@pytest.mark.parametrize("name", ["resnet-basic", "plain", "clip-text", "vit"])
def test_the_doctor_finds_nothing_wrong(name: str) -> None:
    diagnosis = doctor.diagnose(visions.network(name), seed=1)
    assert diagnosis.ok, [row for row in diagnosis.rows if not row.ok]
    assert {row.check for row in diagnosis.rows} == {"mask", "saved", "exported"}


def test_the_doctor_takes_sites_of_a_large_network_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.doctor.diagnosis.LARGE", 1)
    network, found = surveyed("vit")
    names = [row.site for row in doctor.diagnose(network, export=False).rows if row.check == "mask"]
    assert names == ["width", "layers", "3 sites of kind heads", "3 sites of kind neurons", "all sites"]
    wrong = tuple(
        Site(site.name, site.kind, site.units, site.slices[:-1], site.gates, site.attributes, site.layer)
        if site.name == "layers.1.neurons"
        else site
        for site in found.sites
    )
    monkeypatch.setattr(sites, "survey", lambda _: Survey(wrong))
    with pytest.raises(RuntimeError, match="shape"):
        doctor.diagnose(network, export=False)


@pytest.mark.parametrize("gate", [0, 1])
def test_the_doctor_finds_a_forgotten_gate(gate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, found = surveyed("resnet-basic")
    first = found.sites[0]
    fewer = tuple(one for place, one in enumerate(first.gates) if place != gate)
    wrong = Site(first.name, first.kind, first.units, first.slices, fewer, first.attributes, minimum=first.minimum)
    monkeypatch.setattr(sites, "survey", lambda _: Survey((wrong, *found.sites[1:])))
    diagnosis = doctor.diagnose(network, export=False)
    assert next(row.site for row in diagnosis.rows if not row.ok and row.check == "mask") == first.name


# Networks that cannot be followed, or not wholly.


class Odd(nn.Module):
    """Convolutions around an operator that is not followed."""

    def __init__(self, *, all_odd: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 3)
        self.odd = Transformed()
        self.all_odd = all_odd

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(torch.relu(self.odd(x)))
        x = self.odd(x) if self.all_odd else x
        return self.third(torch.relu(x)).mean((2, 3))


class Transformed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, dim=(1, 2)).real


def wrapped(model: nn.Module) -> Network:
    return Network("odd", model.eval(), None, images=ImageInput(3, 12, 12, (0.0,) * 3, (1.0,) * 3))


def test_what_cannot_be_followed_is_named_and_the_rest_is_narrowed() -> None:
    found = survey(wrapped(Odd()))
    assert [site.name for site in found.sites] == ["second.channels"]
    assert len(found.left) == 1
    assert found.left[0].startswith("odd: ")
    assert "fft" in found.left[0]
    assert doctor.diagnose(wrapped(Odd()), export=False).left == found.left


def test_a_network_without_sites_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedNetwork, match="nothing can be narrowed") as refused:
        discover(wrapped(Odd(all_odd=True)))
    assert "\n" not in str(refused.value)


def test_a_module_that_does_not_say_what_images_it_wants_is_refused() -> None:
    with pytest.raises(BadInput, match="what images it wants"):
        discover(Network("odd", Odd().eval(), None))


def test_the_network_is_as_before() -> None:
    network = visions.network("levit")
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    found = survey(network)
    assert any(site.kind == "heads" for site in found.sites)
    checks.run(network.model, random_inputs(network))  # which fills a cache of what comes of parameters
    assert survey(network) == found
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())


def test_example_inputs_are_images_where_images_are_read() -> None:
    network, _ = surveyed("vit")
    assert example_inputs(network.model, 9, 2)["pixel_values"].shape == (2, 3, 16, 16)
