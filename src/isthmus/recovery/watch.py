"""Watch: what a network computes on its way, seen through forward hooks that are taken off again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from isthmus.network import Network, pool, without_cache
from isthmus.sites import LAYERS, WIDTH, Site, discover


@dataclass(frozen=True)
class Projection:
    """The part of a linear module's output that holds one of query, key and value.

    ``place`` counts from 0 within the ``repeat`` equal parts of the output's last dimension.
    """

    module: str
    place: int
    repeat: int


@dataclass(frozen=True)
class Watched:
    """Which modules of a network to watch: layers by path, and a projection of one layer's attention."""

    layers: tuple[str, ...] = ()
    projection: Projection | None = None


@dataclass(frozen=True)
class Seen:
    """What one forward pass gave.

    ``pooled`` has the shape ``(batch, width)`` or ``(batch, classes)``, each of ``hidden`` and ``projected``
    ``(batch, tokens, width)``; ``mask`` ``(batch, tokens)`` is 1 where there is a token, None where all are.
    """

    pooled: Tensor
    mask: Tensor | None
    hidden: tuple[Tensor, ...] = ()
    projected: Tensor | None = None


def sites_of(network: Network) -> dict[str, Site]:
    """Return the sites of a network by name, without its vocabulary, which takes longer to find."""
    return {site.name: site for site in discover(replace(network, tokenizer=None))}


def width_of(sites: dict[str, Site]) -> int:
    """Return how wide the residual stream is."""
    return sites[WIDTH].units


def layer_path(sites: dict[str, Site], layer: int) -> str:
    """Return the path of a layer within the model."""
    return f"{sites[LAYERS].module}.{layer}"


def projection_of(sites: dict[str, Site], layer: int, which: Literal["value", "query"]) -> Projection:
    """Return where a layer's queries or values are computed.

    The slices of a heads site name query, key and value in this order; a fused projection repeats its units.
    """
    prefix = layer_path(sites, layer) + "."
    readers = [
        part
        for site in sites.values()
        if site.kind == "heads"
        for part in site.slices
        if part.dim == 0 and part.parameter.startswith(prefix) and part.parameter.endswith(".weight")
    ]
    part = readers[0] if which == "query" else readers[-1]
    place = 0 if which == "query" else part.repeat - 1
    return Projection(part.parameter.removesuffix(".weight"), place, part.repeat)


@contextmanager
def watching(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules, by path, while a model runs; the model is as before afterwards."""
    seen: dict[str, Tensor] = {}

    def hook_for(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            seen[path] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    try:
        for path in paths:
            handles.append(model.get_submodule(path).register_forward_hook(hook_for(path)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def see(network: Network, inputs: dict[str, Tensor], watched: Watched) -> Seen:
    """Run a network on a micro-batch and return what is watched, in the order given."""
    projection = watched.projection
    paths = [*watched.layers, *([projection.module] if projection else [])]
    with watching(network.model, paths) as outputs:
        output = network.model(**inputs, **without_cache(network.model))
    mask = inputs.get("attention_mask")
    pooled = pool(network, output, mask)
    projected = None
    if projection is not None:
        projected = outputs[projection.module].chunk(projection.repeat, dim=-1)[projection.place]
    hidden = tuple(outputs[path] for path in watched.layers)
    return Seen(pooled, mask, hidden, projected)
