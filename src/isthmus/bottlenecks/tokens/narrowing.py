"""Narrowing the tokens of a network: where its layers are, what stands before an example's tokens, and the trial."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.engine import attach, attached
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths
from isthmus.errors import BadInput, IsthmusError, UnsupportedNetwork
from isthmus.network import Network
from isthmus.sites import LAYERS, discover
from isthmus.sites.inputs import random_inputs

_PROBE = 12  # tokens of the text that a network is tried on


@dataclass(frozen=True)
class Tokens:
    """The tokens of a network.

    Parameters
    ----------
    layers : str
        The path of the list of layers that they run through.
    depth : int
        How many layers that is.
    total : int
        How many tokens an image has; of text, which has any number, those of the example it was tried on.
    prefix : int
        How many of them come before the example's own: class tokens, registers.
    free : bool
        Whether examples differ in length, as texts do.
    """

    layers: str
    depth: int
    total: int
    prefix: int
    free: bool


def tokens_of(network: Network) -> Tokens:
    """Return where the tokens of a network are.

    Raises
    ------
    BadInput
        If they are narrowed already.
    UnsupportedNetwork
        If it has no one list of layers that all of its tokens run through.
    """
    if attached(network.model):
        raise BadInput(f"network {network.name}: its tokens are narrowed already; give it as it was before")
    site = next((site for site in discover(network) if site.name == LAYERS), None)
    if site is None:
        raise UnsupportedNetwork(f"network {network.name}: has no list of layers that tokens run through")
    total = entering(network, site.module, site.units)[0]
    prefix = 1 if network.images is None else total - _patches(network)
    if prefix < 0:
        raise UnsupportedNetwork(
            f"network {network.name}: fewer tokens enter its first layer than an image has patches, so they do not "
            "stay apart; narrow networks whose tokens all run through all layers"
        )
    return Tokens(site.module, site.units, total, prefix, network.images is None)


def entering(network: Network, layers: str, depth: int, inputs: dict[str, Tensor] | None = None) -> tuple[int, ...]:
    """Run a network once and return how many tokens enter each layer, shape ``(depth,)``.

    Parameters
    ----------
    inputs : dict of str to Tensor, optional
        Of one example or more; random ones by default.

    Raises
    ------
    UnsupportedNetwork
        If what enters a layer is not ``(B, tokens, width)``.
    """
    seen: dict[int, int] = {}

    def seeing(index: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if isinstance(hidden, Tensor) and hidden.dim() == 3:
                seen[index] = hidden.shape[1]

        return hook

    found = network.model.get_submodule(layers)
    handles = [
        layer.register_forward_pre_hook(seeing(index), with_kwargs=True) for index, layer in enumerate(found.children())
    ]
    try:
        with torch.inference_mode():
            network.model(**(random_inputs(network, 2, length=_PROBE) if inputs is None else inputs))
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != depth:
        raise UnsupportedNetwork(
            f"network {network.name}: what enters its layers at {layers} is no row of tokens; narrow other sites"
        )
    return tuple(seen[index] for index in range(depth))


def _patches(network: Network) -> int:
    config: Any = network.model.config
    images = network.images
    size = getattr(config, "patch_size", None)
    if images is None or size is None:
        raise UnsupportedNetwork(f"network {network.name}: does not say of what size its patches are")
    high, wide = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    return (images.height // high) * (images.width // wide)


def narrow_tokens(network: Network, policy: TokenNarrowing, tokens: Tokens | None = None) -> Network:
    """Return a network whose tokens leave it from layer to layer.

    What reads all places behind the last layer (a mean over a text's tokens) still finds all of them there.

    Parameters
    ----------
    policy : TokenNarrowing
    tokens : Tokens, optional
        What `tokens_of` found.

    Returns
    -------
    Network
        A copy; the network that was given stays as it is.

    Raises
    ------
    BadInput
        If the policy does not fit the network.
    UnsupportedNetwork
        If its tokens cannot be followed.
    """
    found = tokens_of(network) if tokens is None else tokens
    policy.check(found.depth, found.prefix)
    expected = lengths(policy, found.depth, found.total, found.prefix)
    model = copy.deepcopy(network.model)
    attach(model, found.layers, policy, prefix=found.prefix, restore=reads_all(network))
    made = replace(network, model=model)
    try:
        seen = entering(made, found.layers, found.depth, random_inputs(made, 2, length=found.total))
    except IsthmusError:
        raise
    except Exception as error:  # whatever a network does with tokens that it did not expect
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedNetwork(
            f"network {network.name}: does not run with fewer tokens ({reason[0][:120]}); narrow other sites"
        ) from None
    if policy.schedule.fixed and seen != expected:
        raise UnsupportedNetwork(f"network {network.name}: {list(seen)} tokens enter its layers, not {list(expected)}")
    return made


def reads_all(network: Network) -> bool:
    """Return whether a network's output is read at all places: as a mean over a text's."""
    return network.pooling == "mean" and network.images is None
