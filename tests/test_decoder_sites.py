"""The matrix of decoders: sites, mask and removal, saved and loaded, generated, exported, predicted and measured."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import decoders
import proofs
from isthmus.doctor import checks
from isthmus.network import Network
from isthmus.sites import Site, Survey, narrow_model, survey
from isthmus.sites.experts import EVERY, router_hooks, run_by
from isthmus.sites.norms import gated_rms_norm, rms_epsilon

FULL = {"width": 1, "layers": 1, "heads": 2, "neurons": 2}
#: Neurons are those of experts, which share a tensor: they stay.
MIXED = {"width": 1, "layers": 1, "heads": 2, "experts": 2}
KINDS = {
    **dict.fromkeys(decoders.NAMES, FULL),
    # The code of the network looks up by a layer's place whether it looks at a window only.
    "gemma2": {"width": 1, "heads": 2, "neurons": 2},
    "gemma3": {"width": 1, "heads": 2, "neurons": 2},
    # Its code cuts queries from keys at a place that the config says.
    "phi3": {"width": 1, "layers": 1, "neurons": 2},
    "falcon-mqa": {"width": 1, "layers": 1, "neurons": 2},
    **dict.fromkeys(decoders.MIXTURES, MIXED),
    "qwen2-moe": {**MIXED, "neurons": 2},
}


@cache
def surveyed(name: str) -> tuple[Network, Survey]:
    network = decoders.network(name)
    return network, survey(network)


def some(found: tuple[Site, ...], seed: int) -> proofs.Kept:
    """Keep some units of every site; of the layers not the first."""
    kept = proofs.some(found, seed)
    return {**kept, "layers": [1]} if "layers" in kept else kept


@pytest.mark.parametrize("name", decoders.NAMES)
def test_mask_equals_removal(name: str) -> None:
    network, found = surveyed(name)
    assert Counter(site.kind for site in found.sites) == KINDS[name]
    kept = some(found.sites, 0)
    assert checks.mask_error(network, found.sites, kept, np.random.default_rng(0)) <= 1e-5
    inputs = checks.some_inputs(network, np.random.default_rng(0))
    narrowed = narrow_model(network.model, found.sites, kept)
    wide, narrow = (checks.run(one, inputs)["logits"] for one in (network.model, narrowed))
    assert (wide - narrow).abs().max() > 1e-3 * wide.abs().max()


@pytest.mark.parametrize("name", decoders.NAMES)
def test_saved_equals_loaded_and_goes_on_alike(name: str) -> None:
    """Opened again it gives the same logits, and generates with its cache what the narrowed one finds likeliest."""
    network, found = surveyed(name)
    proofs.check_saved_equals_loaded(network, found, some(found.sites, 1))


@pytest.mark.parametrize("name", decoders.NAMES)
def test_predicted_equals_measured(name: str) -> None:
    network, found = surveyed(name)
    proofs.check_predicted_equals_measured(network, found, some(found.sites, 2))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2-moe"])
def test_exported_equals_eager(name: str) -> None:
    network, found = surveyed(name)
    narrow = checks.narrowed(network, found.sites, some(found.sites, 3))
    assert checks.export_error(narrow, np.random.default_rng(0)) <= 1e-4


def test_a_unit_of_grouped_queries_is_all_that_read_the_same_keys() -> None:
    """Four query heads of 8 on two of keys and values: a unit has 16 rows of queries and 8 of each of the others."""
    by_name = {site.name: site for site in surveyed("llama")[1].sites}
    heads = by_name["layers.1.heads"]
    rows = {part.parameter.split(".")[-2]: part.each for part in heads.slices}
    assert (heads.units, rows) == (2, {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16})
    shared = {site.name: site for site in surveyed("gemma-mqa")[1].sites}["layers.1.heads"]
    assert shared.units == 4
    assert {part.parameter.split(".")[-2] for part in shared.slices} == {"q_proj", "o_proj"}
    assert [(one.name, one.factor) for one in shared.attributes] == [("num_key_value_groups", 1)]


def test_layers_of_unequal_widths_are_numbered_anew() -> None:
    network, found = surveyed("llama")
    kept = {"layers": [1], "layers.0.neurons": [3], "layers.1.neurons": [0, 5, 7]}
    narrow: Any = narrow_model(network.model, found.sites, kept)
    (layer,) = narrow.model.layers
    assert (layer.self_attn.layer_idx, layer.mlp.up_proj.out_features) == (0, 3)
    whole: Any = network.model
    assert [one.self_attn.layer_idx for one in whole.model.layers] == [0, 1]


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_norm_by_the_mean_square_is_told_and_closed(name: str) -> None:
    """Against the formula: closed entries are no part of the mean, whatever the weight is made of."""
    norm: Any = surveyed(name)[0].model.get_submodule("model.norm")
    epsilon = rms_epsilon(norm)
    assert epsilon == surveyed(name)[0].model.config.rms_norm_eps
    stream = torch.randn(2, 3, 32, dtype=torch.float64).float() * 1e-3  # where what is added to the mean counts
    gate = torch.ones(32)
    gate[[0, 7, 30]] = 0
    found = gated_rms_norm(stream, norm(stream), gate, epsilon)
    left = [index for index in range(32) if index not in (0, 7, 30)]
    weight = norm.weight.detach().double() + (1 if name == "gemma" else 0)
    part = stream.double()[..., left]
    wanted = weight[left] * part / torch.sqrt(part.square().mean(-1, keepdim=True) + epsilon)
    assert torch.allclose(found[..., left].double(), wanted, rtol=1e-5)
    assert not found[..., [0, 7, 30]].any()


@pytest.mark.parametrize("module", [nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.GroupNorm(1, 8)])
def test_other_modules_are_no_such_norms(module: nn.Module) -> None:
    assert rms_epsilon(module) is None


def test_a_closed_expert_is_not_rated_and_its_tokens_go_to_the_next_best() -> None:
    """Against the formula: softmax over open experts only, the highest two, which share what they get."""
    network, found = surveyed("mixtral")
    router: Any = network.model.get_submodule("model.layers.1.mlp.gate")
    site = next(one for one in found.sites if one.name == "layers.1.experts")
    assert (site.units, site.minimum) == (5, 2)
    tokens = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    value = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0])
    weight = router.weight
    handles = router_hooks(router, value)
    with torch.no_grad():
        _, scores, chosen = router(tokens)
        for handle in handles:
            handle.remove()
        assert router.weight is weight
        rated = torch.softmax(tokens @ weight[[0, 2, 3]].T, -1).topk(2)
    wanted = torch.tensor([0, 2, 3])[rated.indices]
    assert torch.equal(chosen, wanted)
    shared = rated.values / rated.values.sum(-1, keepdim=True)
    assert torch.allclose(scores, shared * value[wanted])


@pytest.mark.parametrize("name", decoders.MIXTURES)
def test_running_every_expert_changes_nothing(name: str) -> None:
    model = surveyed(name)[0].model
    inputs = checks.some_inputs(surveyed(name)[0], np.random.default_rng(0))
    usual: Any = model.config
    before = usual._experts_implementation
    wanted = checks.run(model, inputs)["logits"]
    with run_by(model, EVERY):
        assert torch.allclose(checks.run(model, inputs)["logits"], wanted, atol=1e-5)
    assert usual._experts_implementation == before
