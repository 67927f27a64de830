"""The sites of tokens: behind each layer but the last, those that go on to the next one."""

from __future__ import annotations

from isthmus.sites.site import Site


def tokens_site(layer: int) -> str:
    """Return the name of the site behind a layer."""
    return f"layers.{layer}.tokens"


def token_sites(layers: int, total: int, prefix: int) -> tuple[Site, ...]:
    """Return the sites of tokens of a network whose tokens all run through all layers.

    A unit is a place in the order of a score: which token it is differs from example to example, and unit 0 is the one
    that would stay longest. Nothing of the network's tensors leaves with it.

    Parameters
    ----------
    layers : int
    total : int
        How many tokens enter the first layer.
    prefix : int
        How many of them come before those of the example, and stay.
    """
    return tuple(
        Site(tokens_site(layer), "tokens", total, layer=layer, minimum=prefix + 1, fixed=tuple(range(prefix)))
        for layer in range(layers - 1)
    )
