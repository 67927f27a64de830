"""Every score and action of tokens through one matrix: masked as removed, saved as loaded, alone as in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import networks
from isthmus.bottlenecks.tokens import registry
from isthmus.bottlenecks.tokens.costing import TokenCost, from_decisions, to_decisions, token_cost
from isthmus.bottlenecks.tokens.engine import attach, attached, detach, narrowed
from isthmus.bottlenecks.tokens.narrowing import entering, narrow_tokens, tokens_of
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths
from isthmus.cost.examples import one_example
from isthmus.cost.measure import measure_macs
from isthmus.errors import BadArtifact, BadInput
from isthmus.network import Network
from isthmus.storage.artifact import save_artifact
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from tokened import WHERE, inputs_of, network_of, policy, ran

NETWORKS = list(WHERE)
HALVING = ("similarity", "information-degree")
PAIRS = [
    (score, action)
    for score in registry.SCORES
    for action in registry.ACTIONS
    if not (score in HALVING and action in ("pause", "finalize"))
]


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Network, dict[str, torch.Tensor]]]:
    return {name: (network_of(name), inputs_of(name)) for name in NETWORKS}


@pytest.fixture(scope="module")
def costs(made: Any) -> dict[str, TokenCost]:
    found = {name: token_cost(network, WHERE[name]) for name, (network, _) in made.items()}
    for name, (network, _) in made.items():
        assert found[name].whole() == measure_macs(network.model, one_example(network, WHERE[name].total))
    return found


def of(name: str, network: Network, spec: str) -> Network:
    return narrow_tokens(network, policy(spec), WHERE[name])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("score", "action"), PAIRS)
def test_every_score_and_action(name: str, score: str, action: str, made: Any, costs: dict[str, TokenCost]) -> None:
    network, inputs = made[name]
    spec = f"{score}:{action}:share=60%@0,1"
    small = of(name, network, spec)
    whole, found = ran(network, inputs), ran(small, inputs)
    assert found.shape == whole.shape
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, whole, atol=1e-4)
    assert torch.equal(ran(small, inputs), found)
    # What is predicted is what enters the layers, and what is multiplied there.
    place = WHERE[name]
    expected = lengths(policy(spec), place.depth, place.total, place.prefix)
    assert entering(small, place.layers, place.depth, inputs) == expected
    assert min(expected) < place.total
    cost = costs[name]
    assert cost.of_policy(policy(spec)) == measure_macs(small.model, one_example(network, place.total))
    assert cost.of_policy(policy(spec)) < cost.whole()


ALONE = [f"{score}:{action}:{schedule}" for score, action in PAIRS for schedule in ("share=60%@0,1", "count=7@0,5@2")]
ALONE += [f"{score}:drop:mass=70%@0,1" for score in ("class-attention", "received-attention")]


def test_a_text_in_a_batch_is_what_it_is_alone(made: Any) -> None:
    network, inputs = made["bert"]
    for spec in ALONE:
        small = of("bert", network, spec)
        together = ran(small, inputs)
        for row in (0, len(together) - 1):
            count = int(inputs["attention_mask"][row].sum())
            alone = ran(small, {key: value[row : row + 1, :count] for key, value in inputs.items()})
            assert torch.allclose(alone[0], together[row], atol=2e-5), (spec, row)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("action", ["drop", "finalize"])
def test_dropping_is_masking_and_ignoring(name: str, action: str, made: Any) -> None:
    """The class token of a network whose tokens leave is that of one whose attention does not see them."""
    network, inputs = made[name]
    place = WHERE[name]
    spec = f"class-attention:{action}:share=50%@0,2"
    kept = kept_places(network, place, spec, inputs)
    model = network.model
    layers = model.get_submodule(place.layers)
    seen: dict[str, torch.Tensor] = {}

    def masking(index: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            mask = torch.zeros(args[0].shape[:2], dtype=torch.bool)
            mask.scatter_(1, kept[index], True)
            if "attention_mask" in inputs:
                mask &= inputs["attention_mask"].bool()
            seen["last"] = mask
            return (args[0], mask[:, None, None, :], *args[2:]), kwargs

        return hook

    handles = [
        layer.register_forward_pre_hook(masking(index), with_kwargs=True)
        for index, layer in enumerate(layers)
        if index in kept
    ]
    try:
        masked = classes(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    removed = classes(of(name, network, spec), inputs)
    assert torch.allclose(masked, removed, atol=1e-5)
    assert not torch.allclose(classes(network, inputs), removed, atol=1e-4)


def classes(network: Network, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the class token's state, or the logits that are read from it."""
    with torch.inference_mode():
        output = network.model(**inputs)
    found: torch.Tensor = output.logits if network.pooling == "logits" else output.last_hidden_state[:, 0]
    return found


def kept_places(network: Network, place: Any, spec: str, inputs: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return the places of the tokens that enter each layer, as a network with narrowed tokens has them."""
    small = narrow_tokens(network, policy(spec), place)
    found: dict[int, torch.Tensor] = {}

    def hook(index: int) -> Any:
        def see(_: Any, args: Any, kwargs: Any) -> None:
            held = kwargs["isthmus_watch"].held
            if held.changed:
                real = torch.ones_like(held.places, dtype=torch.bool) if held.real is None else held.real
                # Fillers point at the class token, which is there anyway.
                found[index] = torch.where(real, held.places, 0)

        return see

    for index, layer in enumerate(small.model.get_submodule(place.layers)):
        layer.register_forward_pre_hook(hook(index), with_kwargs=True)
    ran(small, inputs)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_all_tokens_give_the_very_same_output(name: str, made: Any) -> None:
    network, inputs = made[name]
    for action in registry.ACTIONS:
        small = of(name, network, f"received-attention:{action}:share=100%@0,2")
        assert torch.equal(ran(small, inputs), ran(network, inputs))
    assert torch.equal(ran(of(name, network, "similarity:merge:count=99@1"), inputs), ran(network, inputs))


SAVED = (
    "similarity:merge:share=60%@0,1",
    "received-attention(every=2):drop:count=9@0",
    "class-attention:pause(layers=2):share=50%@0",
)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("spec", SAVED)
def test_saved_equals_loaded(name: str, spec: str, made: Any, tmp_path: Path) -> None:
    network, inputs = made[name]
    small = of(name, network, spec)
    save_artifact(small, tmp_path / "small", {})
    opened = open_network(tmp_path / "small")
    assert next(iter(attached(opened.model).values())).policy == policy(spec)
    with torch.inference_mode():
        one, two = small.model(**inputs), opened.model(**inputs)
    first, second = (out.logits if network.pooling == "logits" else out.last_hidden_state for out in (one, two))
    assert torch.equal(first, second)
    assert fingerprint(opened) == fingerprint(small) != fingerprint(network)
    # A network that was opened can be saved again, by transformers alone too.
    opened.model.save_pretrained(tmp_path / "again")
    again = type(opened.model).from_pretrained(tmp_path / "again")
    assert len(attached(again)) == WHERE[name].depth
    # The policy comes back from a plan's decisions.
    place = WHERE[name]
    assert from_decisions(to_decisions(policy(spec), place), place) == policy(spec)


def test_the_context_leaves_nothing_behind(made: Any) -> None:
    network, inputs = made["vit"]
    before = ran(network, inputs)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.model.modules()]
    names = [name for name, _ in network.model.named_modules()]
    half = policy("random:drop:share=50%@0")

    def stopped() -> None:
        with narrowed(network.model, "vit.layers", half, prefix=1):
            assert not torch.equal(ran(network, inputs), before)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert torch.equal(ran(network, inputs), before)
    assert [name for name, _ in network.model.named_modules()] == names
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.model.modules()] == hooks
    assert network.model.config._attn_implementation == "sdpa"


def test_gradients_flow_through_what_stays(made: Any) -> None:
    network, inputs = made["bert-classifier"]
    small = of("bert-classifier", network, "similarity:merge:share=60%@0,1").model.train()
    small(**inputs).logits.sum().backward()
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all()
        for name, parameter in small.named_parameters()
        if "pooler" in name or "layer.3" in name
    )


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_where_the_tokens_of_a_network_are(name: str, made: Any) -> None:
    assert tokens_of(made[name][0]) == WHERE[name]


BAD = {
    "class-attention:drop:share=0%@0": "none of an example's would stay after layer 0",
    "class-attention:drop:count=1@1": "none of an example's would stay after layer 1",
    "class-attention:drop:mass=0%@1": "none of an example's would stay",
    "class-attention:drop:share=50%@3": "after layer 3 none follows",
    "class-attention:drop:share=120%@1": "give 100% or less",
    "class-attention:drop:share=50%": "names no layer",
    "class-attention:drop:share=half@1": "is not a share",
    "class-attention:drop": "cannot be read",
    "class-attention:drop:share=50%@2,1": "rising numbers of layers",
    "clas-attention:drop:share=50%@1": "did you mean class-attention",
    "class-attention:dropp:share=50%@1": "did you mean drop",
    "class-attention(rows=2):drop:share=50%@1": "does not take these options",
    "received-attention(every=0):drop:share=50%@1": "give 1 or more",
    "class-attention:pause(layers=0):share=50%@1": "give 1 or more",
    "similarity:merge:share=30%@1": "pairs tokens, so no more than 8 of 17",
    "similarity:pause:share=60%@1": "give merge or drop",
    "similarity:drop:mass=50%@1": "no share of attention",
    "class-attention:merge:mass=50%@1": "as many tokens of every example",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_policies_get_one_clear_line(spec: str, made: Any) -> None:
    with pytest.raises(BadInput, match=BAD[spec]) as caught:
        of("vit", made["vit"][0], spec)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_followed_is_refused(made: Any) -> None:
    network, _ = made["vit"]
    small = of("vit", network, "random:drop:share=50%@0")
    with pytest.raises(BadInput, match="narrowed already"):
        narrow_tokens(small, policy("random:drop:share=50%@0"), WHERE["vit"])
    headless = replace(WHERE["vit"], prefix=0)
    with pytest.raises(BadInput, match="this network has none"):
        narrow_tokens(network, policy("class-attention:drop:share=50%@0"), headless)
    small.model.set_attn_implementation("eager")
    with pytest.raises(BadInput, match="did not show its attention"):
        ran(of_eager(network), inputs_of("vit"))


def of_eager(network: Network) -> Network:
    small = of("vit", network, "class-attention:drop:share=50%@0")
    small.model.set_attn_implementation("eager")
    return small


def test_a_layer_between_layers_is_noticed(made: Any) -> None:
    network, inputs = made["bert"]
    small = of("bert", network, "random:drop:share=50%@0")
    layer = small.model.get_submodule("encoder.layer.1")
    layer.register_forward_hook(lambda module, args, output: output * 1.0)
    with pytest.raises(BadInput, match="what enters layer 2 is not what left"):
        ran(small, inputs)
    detach(small.model)
    assert not attached(small.model)


DROPPED = {"score": {"name": "random"}, "action": {"name": "drop"}}
HALF = {"name": "share", "shares": [[0, 500]]}
EDITED: list[dict[str, Any]] = [
    {"layers": "vit.nowhere"},
    {"layers": 3},
    {"prefix": -1},
    {"restore": "yes"},
    {"more": 1},
    {"policy": {"score": {"name": "chance"}}},
    {"policy": {**DROPPED, "score": {"name": "random", "seed": "x"}, "schedule": HALF}},
    {"policy": {**DROPPED, "schedule": {"name": "share", "shares": [[0]]}}},
    {"policy": {**DROPPED, "schedule": {"name": "share", "shares": [[9, 500]]}}},
    {"policy": {**DROPPED, "schedule": {"name": "mass", "mass": 1.5, "at": [0]}}},
    {"policy": {**DROPPED, "schedule": {"name": "hours"}}},
]


@pytest.mark.parametrize("change", EDITED)
def test_a_config_that_was_edited_is_refused(change: dict[str, Any], made: Any) -> None:
    from isthmus.bottlenecks.tokens import saving

    network, _ = made["vit"]
    small = of("vit", network, "random:drop:share=50%@0")
    data = saving.describe(small.model)
    assert data is not None
    fresh = network_of("vit").model
    modules = dict(fresh.named_modules())
    with pytest.raises(BadArtifact, match="does not fit the model"):
        saving.apply(fresh, {**data, **change}, lambda path: path if path in modules else None)


def test_a_plan_of_another_network_is_refused() -> None:
    place = WHERE["vit"]
    decisions = to_decisions(policy("random:drop:share=50%@0,1"), place)
    other = to_decisions(policy("class-attention:drop:share=50%@2"), place)
    with pytest.raises(BadInput, match="several policies"):
        from_decisions((*decisions, *other), place)
    with pytest.raises(BadInput, match=r"site layers\.1\.tokens is not one"):
        from_decisions(decisions, replace(place, depth=2))
    with pytest.raises(BadInput, match="which a plan cannot hold"):
        to_decisions(policy("class-attention:drop:mass=50%@1"), place)
    assert from_decisions((), place) is None


def test_attaching_fits_any_depth() -> None:
    model = networks.tiny("distilbert").model
    attach(model, "transformer.layer", policy("received-attention:drop:share=60%@0"), prefix=1, restore=True)
    inputs = networks.tokens()
    with torch.inference_mode():
        assert model(**inputs).last_hidden_state.shape == (3, 9, 32)
    assert isinstance(next(iter(attached(model).values())).policy, TokenNarrowing)
