"""Layers: what the residual stream carries from layer to layer, by measures that need no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isthmus.audit.corruptions import corrupt_texts
from isthmus.examples import Example, texts_of
from isthmus.flow.study import Study
from isthmus.information.geometry import curvature, intrinsic_dimension
from isthmus.information.invariance import dime, info_nce, lidar
from isthmus.information.spectra import anisotropy, coding_rate, effective_rank, matrix_entropy
from isthmus.network import Network, encode
from isthmus.pixels import moved, random_moves
from isthmus.progress import Progress, silent
from isthmus.recovery.watch import sites_of, watching
from isthmus.relevance.probe import Probe
from isthmus.sites import LAYERS

VIEWS, VIEWED = 4, 256
"""Disturbed copies of an example, and of how many: texts are misspelt, images shifted and mirrored."""
DISTURBED, STRENGTH = "typos", 0.3
EMBEDDINGS = "embeddings"

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measure:
    """A measure of one layer: what it is called, its unit, and what a value says."""

    name: str
    unit: str
    meaning: str


EXAMPLES: dict[Measure, Callable[[Vectors], float | None]] = {
    Measure("matrix entropy", "nats", "how evenly examples spread over directions"): matrix_entropy,
    Measure("effective rank", "directions", "how many directions examples spread over"): effective_rank,
    Measure("intrinsic dimension", "dimensions", "how many an example's neighbourhood fills"): intrinsic_dimension,
    Measure("anisotropy", "share", "of the variance along one direction"): anisotropy,
    Measure("coding rate", "nats", "to say an example's direction up to half its length"): lambda rows: coding_rate(
        rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    ),
}
"""Of one vector an example: the mean over its tokens."""
TOKENS: dict[Measure, Callable[[Vectors], float | None]] = {
    Measure("prompt entropy", "nats", "how evenly an example's tokens spread over directions"): matrix_entropy,
    Measure("curvature", "radians", "how much the path bends from token to token"): curvature,
}
"""Of the tokens of one example; the mean over examples."""
INFO_NCE = Measure("InfoNCE", "nats", "that an example and a disturbed copy share, at least")
DIME = Measure("DiME", "nats", "by which copies that belong together are the more alike")
LIDAR = Measure("LiDAR", "directions", "that tell examples apart beyond disturbing them")
MEASURES = (*EXAMPLES, *TOKENS, INFO_NCE, DIME, LIDAR)


@dataclass(frozen=True)
class Layer:
    """What was measured on one layer; None where a measure says nothing.

    Parameters
    ----------
    name : str
        ``embeddings`` for what enters the first layer.
    values : dict of str to float or None
        By name of the measure, in the units of `MEASURES`.
    """

    name: str
    values: dict[str, float | None]


def measure_layers(study: Study, progress: Progress = silent) -> tuple[Layer, ...]:
    """Measure what enters the first layer and what leaves each one, on the study's probe.

    Spectra and geometry are those of Skean et al. 2025 (arXiv 2502.02013) and Razzhigaev et al. 2024 (arXiv
    2311.05928); an example's vector is the mean over its tokens, whatever the network's own pooling. For invariance
    some are run again, disturbed in several ways.

    Returns
    -------
    tuple of Layer
        Empty where the network has no layers.
    """
    return measure_probe(study.network, study.probe, study.seed, progress)


def measure_probe(network: Network, probe: Probe, seed: int = 0, progress: Progress = silent) -> tuple[Layer, ...]:
    """Measure layers as `measure_layers` does, on a probe of its own."""
    paths = layer_paths(network)
    if not paths:
        return ()
    views = _views(probe, seed)
    runs = len(probe.inputs) + sum(len(inputs) for inputs in views)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("layers", done, runs)

    whole = _run(network, paths, probe.inputs, advance, tokenwise=True)
    disturbed = [_run(network, paths, inputs, advance) for inputs in views]
    names = [EMBEDDINGS, *(f"layer {index}" for index in range(len(paths)))]
    return tuple(
        Layer(name, _measure(whole[place], [one[place].vectors for one in disturbed], seed))
        for place, name in enumerate(names)
    )


def layer_paths(network: Network) -> tuple[str, ...]:
    """Return the paths of a network's layers, none where it has none."""
    stack = next((site for site in sites_of(network).values() if site.name == LAYERS), None)
    return () if stack is None else tuple(f"{stack.module}.{index}" for index in range(stack.units))


def layer_vectors(network: Network, batches: Sequence[dict[str, Tensor]]) -> tuple[Vectors, ...]:
    """Return the mean over an example's tokens of what enters the first layer and of what leaves each.

    Parameters
    ----------
    batches : sequence of dict
        What the model takes, as `isthmus.network.encode` makes it.

    Returns
    -------
    tuple of ndarray, shape ``(examples, width)``
    """
    return tuple(one.vectors for one in _run(network, layer_paths(network), batches, lambda: None))


@dataclass
class _Gathered:
    """One layer's vectors, shape ``(examples, width)``, and what was measured on the tokens of each example."""

    vectors: Any
    tokens: dict[str, list[float]]


def _measure(whole: _Gathered, views: Sequence[Vectors], seed: int) -> dict[str, float | None]:
    found: dict[str, float | None] = {measure.name: how(whole.vectors) for measure, how in EXAMPLES.items()}
    for measure in TOKENS:
        values = whole.tokens[measure.name]
        found[measure.name] = float(np.mean(values)) if values else None
    if views and len(views[0]) > 1:
        found[INFO_NCE.name] = info_nce(views[0], views[1])
        found[DIME.name] = dime(views[0], views[1], seed=seed)
        found[LIDAR.name] = lidar(np.stack(views, axis=1))
    return found


def _views(probe: Probe, seed: int) -> list[list[dict[str, Tensor]]]:
    """Return batches of disturbed examples, the same ones in the same order in each view."""
    examples = [example for group in probe.examples for example in group]
    chosen = examples[:: max(1, len(examples) // VIEWED)][:VIEWED]
    return [_disturbed(probe.network, chosen, seed + view) for view in range(VIEWS)]


def _disturbed(network: Network, examples: Sequence[Example], seed: int) -> list[dict[str, Tensor]]:
    if network.images is None:
        copies = corrupt_texts(texts_of(examples, "layers"), DISTURBED, STRENGTH, seed)
        return [encode(network, copies[start : start + 64]) for start in range(0, len(copies), 64)]
    moves = random_moves(network.images, len(examples), (seed,))
    found = []
    for start in range(0, len(examples), 64):
        inputs = encode(network, examples[start : start + 64])
        moving = moves[start : start + 64]
        found.append({name: moved(pixels, moving, network.images) for name, pixels in inputs.items()})
    return found


def _run(
    network: Network,
    paths: Sequence[str],
    batches: Sequence[dict[str, Tensor]],
    advance: Callable[[], None],
    *,
    tokenwise: bool = False,
) -> list[_Gathered]:
    """Return what enters the first layer and what leaves each, gathered over batches."""
    gathered = [_Gathered([], {measure.name: [] for measure in TOKENS}) for _ in range(len(paths) + 1)]
    for inputs in batches:
        with torch.inference_mode(), entering(network.model, paths[0]) as entered:
            with watching(network.model, paths) as left:
                network.model(**inputs)
            states = [entered[0], *(left[path] for path in paths)]
        for one, state in zip(gathered, states, strict=True):
            # Of a map (batch, width, height, width of the map) every place is a token.
            tokens = (state if state.dim() == 3 else state.flatten(2).transpose(1, 2)).float()
            mask = inputs.get("attention_mask", torch.ones(tokens.shape[:2]))
            _gather(one, tokens, mask.bool(), tokenwise=tokenwise)
        advance()
    for one in gathered:
        one.vectors = np.concatenate(one.vectors)
    return gathered


def _gather(one: _Gathered, state: Tensor, mask: Tensor, *, tokenwise: bool) -> None:
    weights = mask[..., None].to(state.dtype)
    one.vectors.append(((state * weights).sum(1) / weights.sum(1).clamp(min=1)).numpy())
    if not tokenwise:
        return
    for text, own in zip(state, mask, strict=True):
        tokens = text[own].numpy()
        for measure, how in TOKENS.items():
            value = how(tokens) if len(tokens) else None
            if value is not None:
                one.tokens[measure.name].append(value)


@contextmanager
def entering(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """Collect the states that enter a module while a model runs; the model is as before afterwards."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    handle = model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
