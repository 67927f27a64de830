"""Experts: where a mixture of experts keeps them, how they are closed, and how they are run so as to be followed.

A router gives each token to the few experts it rates highest. An expert leaves with its row of the router and its
matrices; one that is closed is not rated, so that tokens go to the next best, as they do once it is removed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.sites.site import Attribute, Gate, Site, Slice

EVERY = "isthmus_every_expert"
EAGER = "eager"
_EVEN = 8
"""Of numbers of 16 bits, as many must fill a row as transformers' usual way of running experts demands."""
_COUNT = "num_experts"


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts within a network.

    Parameters
    ----------
    block, router, experts : str
        Paths of the modules: the block that holds the other two, what rates, and what holds all experts' matrices.
    count, chosen : int
        Experts there are, and to how many of them a token goes.
    """

    block: str
    router: str
    experts: str
    count: int
    chosen: int


def mixtures(model: nn.Module) -> list[Mixture]:
    """Return the mixtures of experts of a network of transformers, in order."""
    found = []
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not _holds_experts(module):
            continue
        block = path.rpartition(".")[0]
        count = int(getattr(module, _COUNT))
        for name, part in modules[block].named_children():
            weight = getattr(part, "weight", None)
            if (
                isinstance(weight, Tensor)
                and weight.shape[:1] == (count,)
                and type(getattr(part, "top_k", None)) is int
            ):
                found.append(Mixture(block, f"{block}.{name}", path, count, int(part.top_k)))
    return found


def _holds_experts(module: nn.Module) -> bool:
    """Return whether a module runs its experts through transformers' interface of experts."""
    return type(getattr(module, "is_concatenated", None)) is bool and type(getattr(module, _COUNT, None)) is int


def expert_sites(model: nn.Module, layers: Site | None) -> list[Site]:
    """Return a site of experts for each mixture; as many must stay as a token goes to."""
    sites = []
    modules = dict(model.named_modules())
    for one in mixtures(model):
        tensors = [
            f"{one.router}.weight",
            *(f"{one.experts}.{name}" for name in dict(modules[one.experts].named_parameters())),
        ]
        inside = layers is not None and one.block.startswith(f"{layers.module}.")
        layer = int(one.block[len(layers.module) + 1 :].partition(".")[0]) if layers is not None and inside else None
        sites.append(
            Site(
                f"{one.block}.experts" if layer is None else f"layers.{layer}.experts",
                "experts",
                one.count,
                tuple(Slice(name, 0) for name in tensors),
                (Gate(one.router, "router"),),
                tuple(
                    Attribute(path, _COUNT)
                    for path in (one.block, one.router, one.experts)
                    if type(getattr(modules[path], _COUNT, None)) is int
                ),
                layer,
                one.chosen,
            )
        )
    return sites


def router_hooks(router: Any, value: Tensor) -> list[Any]:
    """Let a router rate open experts only, as if the closed ones were not there; what it gives an expert is scaled.

    Parameters
    ----------
    router : nn.Module
        Returns logits, scores and indices of the experts chosen, the latter two ``(tokens, chosen)``.
    value : Tensor, shape ``(experts,)``
        From 0 (closed) to 1 (open).
    """
    keep = (value.detach() != 0).nonzero().reshape(-1)
    whole: list[nn.Parameter] = []

    def enter(*_: Any) -> None:
        if len(keep) < len(value):
            whole.append(router.weight)
            router.weight = nn.Parameter(router.weight.detach().index_select(0, keep), requires_grad=False)

    def leave(_: nn.Module, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, scores, chosen = output
        if whole:
            chosen = keep[chosen]
        return logits, scores * value[chosen].to(scores.dtype), chosen

    def restore(*_: Any) -> None:
        if whole:
            router.weight = whole.pop()

    return [
        router.register_forward_pre_hook(enter),
        router.register_forward_hook(leave),
        router.register_forward_hook(restore, always_call=True),
    ]


def suit_experts(model: nn.Module) -> None:
    """Let a narrowed network run its experts one by one where their rows no longer suit products by groups."""
    part: Any
    for part in model.modules():
        if _holds_experts(part):
            sizes = {size for tensor in part.parameters() if tensor.dim() == 3 for size in tensor.shape[1:]}
            if any(size % _EVEN for size in sizes):
                part.config._experts_implementation = EAGER


@contextmanager
def run_by(model: nn.Module, how: str) -> Iterator[None]:
    """Run a network's experts by an implementation of transformers' (or `EVERY`); as before afterwards."""
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if _holds_experts(part)}
    before = [(config, config._experts_implementation) for config in configs.values()]
    if before:
        # Imported here, for it imports what waits for this package; see `isthmus._loader`.
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(EVERY, every_expert)
    try:
        for config, _ in before:
            config._experts_implementation = how
        yield
    finally:
        for config, was in before:
            config._experts_implementation = was


def every_expert(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run all experts on all tokens and add up what the router asked for: no shape depends on values.

    Parameters
    ----------
    hidden_states : Tensor, shape ``(tokens, width)``
    top_k_index, top_k_weights : Tensor, shape ``(tokens, chosen)``
    """
    given = hidden_states.new_zeros(hidden_states.shape[0], module.num_experts)
    given = given.scatter(1, top_k_index, top_k_weights.to(hidden_states.dtype))
    parts = []
    for expert in range(module.num_experts):
        inner = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", expert, hidden_states)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        made = _linear(module, "down_proj", expert, inner)
        if module.has_post_expert_norm:
            made = module.post_expert_norm(made)
        parts.append(made * given[:, expert, None])
    return functools.reduce(torch.add, parts)


def _linear(module: Any, name: str, expert: int, entering: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(entering, weight.T if module.is_transposed else weight, bias)
