"""One example of what a network reads, as inputs of its model and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isthmus.cost.predict import example_inputs, macs_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from isthmus.cost.rates import Rate
    from isthmus.network import Network
    from isthmus.sites.site import Site


def one_example(network: Network, tokens: int) -> dict[str, Tensor]:
    """Return the inputs of one text of ``tokens`` tokens, or of one image: ``pixel_values`` of zeros.

    Multiply-accumulates are counted on it: they depend on shapes alone.
    """
    import torch

    wanted = network.images
    if wanted is None:
        return dict(example_inputs(network.model, tokens))
    return {"pixel_values": torch.zeros(1, wanted.channels, wanted.height, wanted.width)}


def macs_of(network: Network, sites: Sequence[Site], tokens: int) -> Rate:
    """Return the multiply-accumulates of `one_example` as a function of the kept units."""
    given: dict[str, Any] = {} if network.images is None else {"inputs": one_example(network, tokens)}
    return macs_rate(network.model, sites, tokens, **given)


def one_described(network: Network, tokens: int) -> str:
    """Say what `one_example` is."""
    return f"one text of {tokens} tokens" if network.images is None else f"one image of {_size(network)}"


def described(network: Network, length: float) -> str:
    """Say what a batch holds: texts of a mean length in tokens, or images of a size."""
    return f"mean length {length:.0f}" if network.images is None else f"images of {_size(network)}"


def _size(network: Network) -> str:
    assert network.images is not None
    return f"{network.images.height} by {network.images.width} pixels"
