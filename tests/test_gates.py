"""Gates: open they change nothing, closed they remove, in between gradients flow; afterwards no trace is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import networks
from isthmus.sites import Gate, Site, closed_values, discover, gated, narrow_model
from isthmus.sites.gates import gated_norm

FAST = settings(max_examples=20, deadline=None)


def hooks(model: nn.Module) -> int:
    """Count every hook in a model, and what torch keeps beside them."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, table)) for module in model.modules() for table in tables)


def output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    found = model(**inputs)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def open_values(sites: tuple[Site, ...], value: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {site.name: torch.full((site.units,), value, dtype=dtype) for site in sites}


# The norm that counts open units only.


@FAST
@given(mask=st.lists(st.booleans(), min_size=12, max_size=12).filter(any), bias=st.booleans())
def test_a_gated_norm_is_the_narrower_norm(mask: list[bool], bias: bool) -> None:
    generator = torch.Generator().manual_seed(sum(mask))
    norm = nn.LayerNorm(12, eps=1e-5, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(12, generator=generator))
    stream = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    gate = torch.tensor(mask, dtype=torch.float64)
    keep = torch.tensor(mask)
    narrow = nn.LayerNorm(int(keep.sum()), eps=1e-5, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        narrow.weight.copy_(norm.weight[keep])
        if bias:
            narrow.bias.copy_(norm.bias[keep])
        found = gated_norm(norm, stream, gate)
        torch.testing.assert_close(found[..., keep], narrow(stream[..., keep]), rtol=1e-10, atol=1e-12)
        assert not found[..., ~keep].any()
        torch.testing.assert_close(gated_norm(norm, stream, torch.ones(12)), norm(stream), rtol=1e-6, atol=1e-6)


def test_a_norm_with_every_unit_closed_stays_finite() -> None:
    assert not gated_norm(nn.LayerNorm(4), torch.randn(2, 3, 4), torch.zeros(4)).any()


# Open, closed, in between.


@pytest.mark.parametrize("name", networks.NAMES)
def test_open_gates_change_nothing_and_leave_nothing(name: str) -> None:
    model = networks.tiny(name).model.double()
    sites, inputs = discover(networks.tiny(name)), networks.tokens()
    with torch.no_grad():
        before = output(model, inputs)
        with gated(model, sites, open_values(sites)):
            assert hooks(model) > 0
            torch.testing.assert_close(output(model, inputs), before, rtol=1e-9, atol=1e-9)
        assert hooks(model) == 0
        assert torch.equal(output(model, inputs), before)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_half_open_gate_halves_what_passes(name: str) -> None:
    """Half a head is the network whose output projection reads that head by half; so is half a neuron."""
    network = networks.tiny(name)
    model, inputs = network.model.double(), networks.tokens()
    for kind in ("heads", "neurons"):
        site = next(site for site in discover(network) if site.kind == kind)
        value = torch.ones(site.units)
        value[1] = 0.5
        (gate,) = site.gates
        with torch.no_grad():
            with gated(model, [site], {site.name: value}):
                found = output(model, inputs)
            weight = model.get_parameter(f"{gate.module}.weight")
            kept = weight.clone()
            weight[:, gate.block : 2 * gate.block] *= 0.5
            wanted = output(model, inputs)
            weight.copy_(kept)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_half_open_layer_is_half_way_past_it() -> None:
    network = networks.tiny("bert")
    layers = next(site for site in discover(network) if site.kind == "layers")
    inputs = networks.tokens()
    with torch.no_grad():
        states = network.model(**inputs, output_hidden_states=True).hidden_states
        with gated(network.model, [layers], {"layers": torch.tensor([1.0, 1.0, 0.5])}):
            found = network.model(**inputs).last_hidden_state
    torch.testing.assert_close(found, (states[2] + states[3]) / 2)


@pytest.mark.parametrize("name", ["bert-classifier", "electra", "modernbert-classifier", "mpnet"])
def test_gradients_by_gates_are_those_of_finite_differences(name: str) -> None:
    network = networks.tiny(name)
    model, sites, inputs = network.model.double(), discover(network), networks.tokens()
    direction = torch.randn(output(model, inputs).shape, generator=torch.Generator().manual_seed(0)).double()

    def loss(values: dict[str, Tensor]) -> Tensor:
        with gated(model, sites, values):
            return (output(model, inputs) * direction).mean()

    # Below one, for the norm's weights are cut off above.
    values = {key: value.requires_grad_(True) for key, value in open_values(sites, 0.9, torch.float64).items()}
    found = torch.autograd.grad(loss(values), list(values.values()), allow_unused=True)
    # ModernBERT turns queries and keys in single precision, which a smaller step would drown in.
    step, close = (1e-3, 1e-3) if "modernbert" in name else (1e-5, 1e-5)
    with torch.no_grad():
        for site, gradient in zip(sites, found, strict=True):
            unit = site.units // 2
            sides = []
            for sign in (1, -1):
                moved = {key: value.detach().clone() for key, value in values.items()}
                moved[site.name][unit] += sign * step
                sides.append(float(loss(moved)))
            wanted = (sides[0] - sides[1]) / (2 * step)
            passed = 0.0 if gradient is None else float(gradient[unit])  # None: an output that is not looked at
            assert passed == pytest.approx(wanted, rel=close, abs=close * 1e-4), site.name


def test_only_named_sites_are_gated() -> None:
    network = networks.tiny("bert")
    sites = discover(network)
    with gated(network.model, sites, {"layers.1.neurons": torch.ones(48)}):
        assert hooks(network.model) == 1


def test_closed_values() -> None:
    sites = (
        Site("a", "neurons", 4, gates=(Gate("x", "input"),)),
        Site("vocabulary", "vocabulary", 9),
        Site("b", "heads", 2, gates=(Gate("y", "input"),)),
    )
    values = closed_values(sites, {"a": [1, 3], "vocabulary": [0]})
    assert {name: value.tolist() for name, value in values.items()} == {"a": [0, 1, 0, 1]}


# Whatever happens, nothing is left behind.


def test_an_exception_within_leaves_no_hook() -> None:
    network = networks.tiny("roberta")
    sites = discover(network)
    with pytest.raises(RuntimeError, match="stop"), gated(network.model, sites, open_values(sites)):
        raise RuntimeError("stop")
    assert hooks(network.model) == 0


def test_an_exception_in_the_forward_pass_leaves_no_hook() -> None:
    network = networks.tiny("distilbert")
    sites = discover(network)
    values = open_values(sites)
    values["layers.0.heads"] = torch.ones(3)
    with pytest.raises(RuntimeError), gated(network.model, sites, values):
        network.model(**networks.tokens())
    assert hooks(network.model) == 0


def test_an_exception_while_gates_are_put_in_leaves_no_hook() -> None:
    network = networks.tiny("bert")
    sites = discover(network)
    lost = replace(sites[-1], gates=(Gate("no.such.module", "input"),))
    with pytest.raises(AttributeError), gated(network.model, [*sites[:-1], lost], open_values(sites)):
        pass
    assert hooks(network.model) == 0


def test_gates_within_gates_are_undone_one_by_one() -> None:
    network = networks.tiny("bert")
    sites = discover(network)
    heads = [site for site in sites if site.kind == "heads"]
    with torch.no_grad():
        before = output(network.model, networks.tokens())
        with gated(network.model, heads, open_values(sites)):
            count = hooks(network.model)
            with gated(network.model, sites, open_values(sites, 0.5)):
                assert hooks(network.model) > count
            assert hooks(network.model) == count
        assert torch.equal(output(network.model, networks.tokens()), before)


def test_narrowing_leaves_the_original_as_it_was() -> None:
    network = networks.tiny("mpnet")
    sites = discover(network)
    before = {name: parameter.clone() for name, parameter in network.model.state_dict().items()}
    narrowed = narrow_model(network.model, sites, {"heads": [0, 2], "layers": [1], "width": list(range(0, 32, 2))})
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.model.state_dict().items())
    shared = {parameter.data_ptr() for parameter in network.model.parameters()}
    assert not any(parameter.data_ptr() in shared for parameter in narrowed.parameters())
