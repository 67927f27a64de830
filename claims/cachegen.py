"""CacheGen (Liu et al. 2024): a prompt's cache as a bitstream, several times smaller than 8 bits at equal quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from claims import caches
from claims.cache_trials import cache_trials
from claims.caches import CHUNK, LENGTH, READ
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, of_arm
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.cache.stream import file as files
from isthmus.bottlenecks.cache.stream.coding import LEVELS as STEPS
from isthmus.bottlenecks.cache.stream.coding import dequantized, quantized

OURS, EIGHT, FULL = "coded", "8 bits", "full"
LEVELS = tuple(float(at) for at in range(len(STEPS)))
ROWS = 12
NEAR, SMALLER = 0.002, 2.0


def measure(point: Point) -> Mapping[str, Any]:
    """Return bytes of a prompt, and the perplexity of what is read on from it, of the first rows."""
    bed = caches.bed(point.seed)
    nats, sizes, exact, entropies = [], [], [], []
    for row in bed.rows[:ROWS]:
        prompt = files.prompt_of(bed.model, row[: LENGTH - READ].tolist())
        if point.arm == OURS:
            data = files.to_bytes(bed.model, prompt, int(point.level))
            again = files.from_bytes(bed.model, data)
            exact.append(_exact(prompt, again, int(point.level)))
            entropies.append(_entropies(prompt))
            sizes.append(len(data))
            prompt = again
        elif point.arm == EIGHT:
            prompt, size = _eight(prompt)
            sizes.append(size)
        else:
            sizes.append(sum(one.size for part in (prompt.keys, prompt.values) for one in part) * 2)
        held = files.cache_of(bed.model, prompt)
        pieces = torch.split(row[LENGTH - READ : -1], CHUNK)
        with torch.no_grad():
            logits = [bed.model(part[None], past_key_values=held).logits[0] for part in pieces]
        said = torch.log_softmax(torch.cat(logits).float(), -1)
        nats.append(-said.gather(1, row[LENGTH - READ + 1 :, None]).mean().item())
    found: dict[str, Any] = {"bytes": float(np.mean(sizes)), "perplexity": math.exp(float(np.mean(nats)))}
    if exact:
        found["exact"] = all(exact)
        found["raw"], found["differences"] = (float(np.mean(one)) for one in zip(*entropies, strict=True))
    return found


def _exact(prompt: Any, again: Any, level: int) -> bool:
    """Return whether what was decoded is what was quantized, number by number."""
    count = len(prompt.keys)
    for layer in range(count):
        step = STEPS[level].step(layer, count)
        for before, after in ((prompt.keys[layer], again.keys[layer]), (prompt.values[layer], again.values[layer])):
            for start in range(0, before.shape[1], files.CHUNK):
                part = before[:, start : start + files.CHUNK]
                rows = np.ascontiguousarray(part.transpose(0, 2, 1).reshape(-1, part.shape[1]))
                wanted = dequantized(*quantized(rows, step), part.shape[1])
                found = after[:, start : start + files.CHUNK].transpose(0, 2, 1).reshape(wanted.shape)
                if not np.array_equal(wanted, found):
                    return False
    return True


def _entropies(prompt: Any) -> tuple[float, float]:
    """Return bits a number, on one grid, of keys and of how they differ from the token before."""
    raw, differences = [], []
    for keys in prompt.keys:
        step = keys.std(1, keepdims=True) / 4
        grid = np.round(keys / np.maximum(step, 1e-6)).astype(np.int64)
        raw.append(_bits(grid))
        differences.append(_bits(np.diff(grid, axis=1)))
    return float(np.mean(raw)), float(np.mean(differences))


def _bits(grid: np.ndarray[Any, Any]) -> float:
    """Return the entropy of integers by channel, in bits, ``(heads, tokens, channels)``."""
    found = []
    for channel in grid.transpose(0, 2, 1).reshape(-1, grid.shape[1]):
        shares = np.unique(channel, return_counts=True)[1] / len(channel)
        found.append(-(shares * np.log2(shares)).sum())
    return float(np.mean(found))


def _eight(prompt: Any) -> tuple[Any, int]:
    """Return a prompt in 8 bits, each channel of keys and each token of values on its own grid, and its bytes."""
    size = 0
    parts = []
    for numbers, axis in ((prompt.keys, 1), (prompt.values, 2)):
        done = []
        for one in numbers:
            low, high = one.min(axis, keepdims=True), one.max(axis, keepdims=True)
            step = np.maximum((high - low) / 255, 1e-12)
            done.append((np.round((one - low) / step) * step + low).astype(np.float32))
            size += one.size + 2 * 2 * low.size
        parts.append(done)
    return files.Prompt(prompt.ids, *parts), size


def smaller(outcomes: Sequence[Outcome]) -> Part:
    """Decide how much smaller a coded cache is at the perplexity of 8 bits."""
    rule = (
        f"in each repetition a level whose perplexity is within {NEAR:.1%} of 8 bits' takes less than 1/{SMALLER:g} of "
        "its bytes; mixed: in some"
    )
    passed, ratios = [], []
    for seed in sorted({int(one["seed"]) for one in outcomes}):
        own = [one for one in outcomes if one["seed"] == seed]
        eight = next((one for one in own if one["arm"] == EIGHT), None)
        coded = [one for one in own if one["arm"] == OURS]
        if eight is None or not coded:
            continue
        near = [one["bytes"] for one in coded if one["perplexity"] <= eight["perplexity"] * (1 + NEAR)]
        ratios.append(eight["bytes"] / min(near) if near else 0.0)
        passed.append(ratios[-1] >= SMALLER)
    if not passed:
        return part_of("smaller than 8 bits", rule, UNTESTED)
    text = f"{min(ratios):.2f} to {max(ratios):.2f} times smaller"
    return part_of("smaller than 8 bits", rule, share_passed(passed), text, ratios=ratios)


def decodes(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether what is decoded is what was quantized."""
    rule = "every number decoded is the one quantized, at every level"
    found = [bool(one["exact"]) for one in outcomes if "exact" in one]
    return part_of("decodes exactly", rule, share_passed(found) if found else UNTESTED)


def alike(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether neighbouring tokens' differences say less than the tokens."""
    rule = "keys' differences from the token before have a lower entropy by channel than keys, on one grid"
    raw, differences = (of_arm(outcomes, OURS, LEVELS[0], key) for key in ("raw", "differences"))
    if not raw:
        return part_of("differences say less", rule, UNTESTED)
    text = f"{np.mean(differences):.2f} against {np.mean(raw):.2f} bits a number"
    less = [a < b for a, b in zip(differences, raw, strict=True)]
    return part_of("differences say less", rule, share_passed(less), text)


TRIALS = cache_trials(
    "cachegen",
    "A prompt's cache coded as anchors and differences on grids by layer decodes exactly, takes less than half of 8 "
    "bits at their perplexity, and differences between tokens say less than tokens.",
    "The cache of each prompt as a file at every level, decoded and read on from, beside 8 bits by channel of keys and "
    f"token of values; {ROWS} sequences.",
    {},
    {OURS: LEVELS, EIGHT: (0.0,), FULL: (0.0,)},
    lambda outcomes: [smaller(outcomes), decodes(outcomes), alike(outcomes)],
    measure=measure,
    columns=(
        Column("bytes", "bytes", "{:,.0f}"),
        Column("perplexity", "perplexity", "{:.3f}"),
        Column("differences", "bits of differences", "{:.2f}"),
        Column("raw", "bits of keys", "{:.2f}"),
    ),
    level="level",
)
