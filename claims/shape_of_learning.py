"""The shape of learning (Razzhigaev et al. 2024): anisotropy from layer to layer, dimension from step to step.

Measures of the tokens of 120 sentences in small decoders and in MiniLM, and of manifolds of known dimension: a minute
on one core, besides the training of the decoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from claims import small_lm
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.flow.layers import entering, layer_paths
from isthmus.information.geometry import intrinsic_dimension
from isthmus.information.spectra import anisotropy
from isthmus.network import Network, encode
from isthmus.recovery.watch import watching
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder

DECODER, ENCODER, TRAINING, MANIFOLD = "decoder", "encoder (minilm)", "decoder in training", "manifold"
LAYERS = tuple(float(place) for place in range(7))
MIDDLE = LAYERS[2:5]
"""The middle third of seven places: what enters the first layer and what leaves each of six."""
STEPS = tuple(float(step) for step in small_lm.RECIPE.kept)
KNOWN = (1.0, 2.0, 4.0, 8.0)
TEXTS, TOKENS, POINTS, AROUND = 120, 800, 2000, 64
"""Sentences; tokens that a dimension is read off; points of a manifold, and dimensions of the space around it."""
WITHIN = 0.15

Vectors = npt.NDArray[np.float64]


@cache
def sentences(seed: int) -> tuple[str, ...]:
    """Return sentences of STS-B dev, drawn by seed."""
    folder = data_folder()
    if folder is None:
        raise BadInput("shape-of-learning: skipped, no folder of data")
    every = list(dict.fromkeys(load_task(f"sts:{folder / 'stsb'}").held_out.left))
    return tuple(every[place] for place in np.random.default_rng(seed).permutation(len(every))[:TEXTS])


def token_states(network: Network, texts: Sequence[str]) -> list[Vectors]:
    """Return the states of all tokens, ``(tokens, width)``, that enter the first layer and that leave each."""
    paths = layer_paths(network)
    parts: list[list[Vectors]] = [[] for _ in range(len(paths) + 1)]
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), 32):
        inputs = encode(network, ordered[start : start + 32])
        with torch.inference_mode(), entering(network.model, paths[0]) as entered:
            with watching(network.model, paths) as left:
                network.model(**inputs)
            held = inputs["attention_mask"].bool()
            for part, state in zip(parts, [entered[0], *(left[path] for path in paths)], strict=True):
                part.append(state[held].double().numpy())
    return [np.concatenate(part) for part in parts]


def manifold(dims: int, seed: int) -> Vectors:
    """Return points of a bent surface of so many dimensions: sines of random linear maps of an even cube."""
    rng = np.random.default_rng([seed, dims])
    return np.sin(rng.uniform(-1, 1, (POINTS, dims)) @ rng.normal(0, 1 / np.sqrt(dims), (dims, AROUND)) + 1)


def _dimension(states: Vectors, seed: int) -> float | None:
    return intrinsic_dimension(states[np.random.default_rng(seed).permutation(len(states))[:TOKENS]])


@cache
def _states(arm: str, step: int | None, seed: int) -> list[Vectors]:
    network = open_network("minilm") if arm == ENCODER else small_lm.encoder(seed, step)
    return token_states(network, sentences(seed))


def measure(point: Point) -> Mapping[str, Any]:
    """Measure one layer, all layers after one step of training, or one manifold."""
    if point.arm == MANIFOLD:
        dims = int(point.level)
        found = intrinsic_dimension(manifold(dims, point.seed))
        return {"dimension": found, "off": None if found is None else found / dims - 1}
    if point.arm == TRAINING:
        every = _states(DECODER, int(point.level), point.seed)
        dimensions = [found for one in every[1:] if (found := _dimension(one, point.seed)) is not None]
        return {
            "dimension": float(np.mean(dimensions)),
            "anisotropy": float(np.mean([anisotropy(one) for one in every])),
        }
    states = _states(point.arm, None, point.seed)[int(point.level)]
    return {"anisotropy": anisotropy(states), "dimension": _dimension(states, point.seed)}


def _curve(outcomes: Sequence[Outcome], arm: str, seed: int, key: str) -> list[float] | None:
    own = sorted((one for one in outcomes if one["arm"] == arm and one["seed"] == seed), key=lambda one: one["level"])
    return [float(one[key]) for one in own] if len(own) == len(LAYERS) else None


def bell(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): where anisotropy is the largest in a decoder."""
    rule = (
        "in every seed the decoder's tokens are the most anisotropic in the middle third of the layers; mixed: in "
        "some; does not hold: in none"
    )
    peaks = []
    for seed in sorted({one["seed"] for one in outcomes}):
        curve = _curve(outcomes, DECODER, seed, "anisotropy")
        if curve is not None:
            peaks.append(LAYERS[int(np.argmax(curve))])
    if not peaks:
        return part_of("bell in the decoder", rule, UNTESTED)
    text = f"largest at layer {', '.join(f'{peak:g}' for peak in peaks)}"
    return part_of("bell in the decoder", rule, share_passed([peak in MIDDLE for peak in peaks]), text)


def flatter(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): whether anisotropy is more even in the encoder."""
    rule = (
        "the largest less the smallest anisotropy over layers is smaller in the encoder than in the decoder by more "
        "than twice the standard error of paired differences; does not hold: larger likewise; mixed: otherwise"
    )
    spans: dict[str, list[float]] = {DECODER: [], ENCODER: []}
    for seed in sorted({one["seed"] for one in outcomes}):
        curves = {arm: _curve(outcomes, arm, seed, "anisotropy") for arm in spans}
        for arm, curve in curves.items():
            if curve is not None and all(curves.values()):
                spans[arm].append(max(curve) - min(curve))
    if len(spans[ENCODER]) < 2:
        return part_of("flatter in the encoder", rule, UNTESTED)
    gap, error = paired(spans[ENCODER], spans[DECODER])
    verdict = HOLDS if gap < -2 * error else FAILS if gap > 2 * error else MIXED
    text = f"{np.mean(spans[ENCODER]):.3f} against {np.mean(spans[DECODER]):.3f}"
    return part_of("flatter in the encoder", rule, verdict, text)


def rises_and_falls(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): the dimension over training."""
    rule = (
        "with the step at which the mean dimension over seeds is the largest: it is above the first and above the last "
        "step by more than twice the standard error of paired differences; mixed: above one of them; does not hold: "
        "above none"
    )
    curves = [of_arm(outcomes, TRAINING, step, "dimension") for step in STEPS]
    if min(map(len, curves)) < 2 or len({len(curve) for curve in curves}) > 1:
        return part_of("dimension rises, then falls", rule, UNTESTED)
    means = [float(np.mean(curve)) for curve in curves]
    peak, passed = int(np.argmax(means)), []
    for end in (0, -1):
        gap, error = paired(curves[peak], curves[end])
        passed.append(gap > 0 and gap > 2 * error)
    text = ", ".join(f"{step:g}: {mean:.1f}" for step, mean in zip(STEPS, means, strict=True))
    return part_of("dimension rises, then falls", rule, share_passed(passed), f"after step {text}")


def recovered(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): the estimator on manifolds of known dimension."""
    rule = f"the mean over seeds is within {WITHIN:.0%} of the dimension of every manifold; mixed: of some"
    found = {dims: of_arm(outcomes, MANIFOLD, dims, "off") for dims in KNOWN}
    if not all(found.values()):
        return part_of("known dimensions", rule, UNTESTED)
    means = {dims: float(np.mean(values)) for dims, values in found.items()}
    text = ", ".join(f"{dims:g}: {off:+.1%}" for dims, off in means.items())
    return part_of("known dimensions", rule, share_passed([abs(off) <= WITHIN for off in means.values()]), text)


TRIALS = Trials(
    slug="shape-of-learning",
    claim=(
        "Anisotropy is bell-shaped over the layers of a decoder and more even in an encoder; the intrinsic dimension "
        "of tokens rises early in training and falls later."
    ),
    experiment=(
        f"A GPT-2 of six layers and width {small_lm.RECIPE.width} trained by seed for {small_lm.RECIPE.steps} short "
        "steps on plain text (small and barely trained: no pretrained decoder is to be had here), and "
        f"all-MiniLM-L6-v2, on the tokens of {TEXTS} sentences of STS-B dev. Layers are taken before the final norm. "
        f"The dimension (TwoNN) is that of {TOKENS} tokens, in training the mean over layers. Manifolds: {POINTS} "
        f"points of bent surfaces in {AROUND} dimensions."
    ),
    arms={DECODER: LAYERS, ENCODER: LAYERS, TRAINING: STEPS, MANIFOLD: KNOWN},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [bell(outcomes), flatter(outcomes), rises_and_falls(outcomes), recovered(outcomes)],
    columns=(
        Column("anisotropy", "anisotropy", "{:.3f}"),
        Column("dimension", "dimension", "{:.1f}"),
        Column("off", "off by", "{:+.1%}"),
    ),
    level="layer, step or dimension",
    recipe={
        "texts": TEXTS, "tokens": TOKENS, "points": POINTS, "around": AROUND,
        "decoder": vars(small_lm.RECIPE) | {"kept": list(small_lm.RECIPE.kept)},
    },
    data=small_lm.fingerprint,
    needs=(*small_lm.FILES, "stsb/dev.csv"),
)  # fmt: skip
