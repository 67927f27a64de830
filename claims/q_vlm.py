"""Q-VLM (Wang et al. 2024): matrices grouped by the entropy of their inputs, choices of rounding searched jointly.

8 points on one core: half a minute each, and for the search nothing (matrix by matrix), two minutes (blocks) and five
(the whole network); entropies and dependencies of 36 matrices take a minute. Twenty-five minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from claims import coding, equal_bytes
from claims.coding import LEVELS, ROW, Arm, Claim, Point, Workbench, grid
from claims.common import Outcome, Say
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.bits.grid import covering, peaks, rounded, top_of
from isthmus.bottlenecks.coder import Floats
from isthmus.flow.study import start_study
from isthmus.relevance.probe import Probe, make_probe, measure_closed
from isthmus.storage.coded import Coded, Uniform, decode

ONE, BLOCKS, EVEN, WHOLE = "matrix by matrix", "blocks by entropy", "even blocks", "one block"
COUNTS = (15.0, 7.0)
OFFSETS = (0, -4, -8, -12)
"""Of scales, in 16ths of an octave: those that reach the largest weights, and three smaller ones."""
LONGEST, SWEEPS, TEXTS, BINS, PERMUTATIONS = 4, 3, 128, 16, 2000
P_VALUE = 0.05


def choices(weight: Floats, levels: float) -> list[Uniform]:
    """Return the codes of a matrix that are tried: rounding to nearest, a scale for each row, some weights clipped."""
    top = top_of(grid(levels))
    reaching = covering(peaks(weight, 1), top)
    return [
        Uniform(rounded(weight, shorter, top), (shorter,))
        for shorter in ((reaching + offset).astype(np.int32) for offset in OFFSETS)
    ]


def entropy(values: npt.NDArray[np.floating]) -> float:
    """Return the entropy, in bits, of values rounded to 16 even levels from the least to the greatest."""
    counts = np.histogram(values, BINS)[0]
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def partition(names: Sequence[str], entropies: Mapping[str, float]) -> list[list[str]]:
    """Return blocks of neighbours: a matrix joins the one before where the entropy of its inputs is above the median.

    No block is longer than four: the search in it takes the longer, the longer it is.
    """
    middle = float(np.median([entropies[name] for name in names]))
    blocks: list[list[str]] = []
    for name in names:
        if blocks and entropies[name] > middle and len(blocks[-1]) < LONGEST:
            blocks[-1].append(name)
        else:
            blocks.append([name])
    return blocks


def even(names: Sequence[str], count: int) -> list[list[str]]:
    """Return so many blocks of neighbours, as alike in length as can be."""
    return [[names[place] for place in part] for part in np.array_split(np.arange(len(names)), count)]


def search(
    blocks: Sequence[Sequence[str]], start: Mapping[str, int], count: int, lost: Callable[[str, dict[str, int]], float]
) -> dict[str, int]:
    """Return the choice for each matrix, one block after another.

    In a block each matrix in its turn takes the choice that loses least with those of the others, until none moves (at
    most 3 times round); blocks before have been decided and those after are exact.

    Parameters
    ----------
    start : mapping of str to int
        The choices that the search starts from.
    count : int
        How many choices a matrix has.
    lost : callable
        From the last matrix of the block and the choices (none for an exact matrix) to what is lost.
    """
    found: dict[str, int] = {}
    for block in blocks:
        found |= {name: start[name] for name in block}
        best = lost(block[-1], found)
        for _ in range(SWEEPS):
            before = dict(found)
            for name in block:
                held = found[name]
                for other in range(count):
                    if other != held:
                        tried = lost(block[-1], {**found, name: other})
                        if tried < best:
                            best, found[name] = tried, other
            if found == before or len(block) == 1:
                break
    return found


class _SeenError(Exception):
    """Raised where a forward pass has come far enough."""


class Bench(Workbench):
    """The workbench of a claim about coders, with entropies, dependencies and searches."""

    def __init__(self, bench: Workbench) -> None:
        vars(self).update(vars(bench))
        texts = [text for group in start_study(bench.network, bench.task).probe.examples for text in group]
        self.probe: Probe = make_probe(bench.network, texts[:TEXTS])
        modules = dict(self.network.model.named_modules())
        self.linear = [name for name in self.names if isinstance(modules[name.rpartition(".")[0]], nn.Linear)]
        self.linear = [name for name in self.linear if self.statistics[name].moments is not None]
        self.layers = self._layers()
        self.linear = [name for name in self.linear if name in self.layers]
        self.exact = {path: self._states(path) for path in dict.fromkeys(self.layers.values())}
        self.searched: dict[float, float] = {}
        started = time.monotonic()
        self.entropies = self._entropies()
        self.entropy_seconds = time.monotonic() - started

    def _layers(self) -> dict[str, str]:
        """Return the path of the layer that each linear map of the encoder is in."""
        found = {}
        for path, module in self.network.model.named_modules():
            if isinstance(module, nn.ModuleList):
                for name in self.linear:
                    if name.startswith(f"{path}."):
                        found[name] = ".".join([path, name[len(path) + 1 :].partition(".")[0]])
        return found

    def _entropies(self) -> dict[str, float]:
        """Return the entropy of what enters each linear map, tokens of padding left out."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.linear}
        mask = [torch.empty(0)]

        def watch(name: str) -> Any:
            return lambda _, inputs: seen[name].append(inputs[0][mask[0].bool()])

        model = self.network.model
        handles = [model.get_submodule(n.rpartition(".")[0]).register_forward_pre_hook(watch(n)) for n in self.linear]
        try:
            with torch.inference_mode():
                for inputs in self.probe.inputs:
                    mask[0] = inputs["attention_mask"]
                    model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        return {name: entropy(torch.cat(parts).numpy()) for name, parts in seen.items()}

    @contextmanager
    def holding(self, weights: Mapping[str, Floats]) -> Iterator[None]:
        """Let the network have other weights for a while."""
        model = self.network.model
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    model.get_parameter(name).copy_(torch.from_numpy(weight))
            yield
        finally:
            with torch.no_grad():
                for name in weights:
                    model.get_parameter(name).copy_(torch.from_numpy(self.weights[name]))

    def _states(self, path: str) -> list[Tensor]:
        """Return the outputs of a layer at all tokens that are no padding; what comes after it is not computed."""
        found: list[Tensor] = []

        def see(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _SeenError

        handle = self.network.model.get_submodule(path).register_forward_hook(see)
        try:
            with torch.inference_mode():
                for inputs in self.probe.inputs:
                    try:
                        self.network.model(**inputs)
                    except _SeenError:
                        found[-1] = found[-1][inputs["attention_mask"].bool()]
        finally:
            handle.remove()
        return found

    def error(self, path: str) -> float:
        """Return the squared error of a layer's outputs as the network is, over their squares."""
        lost = whole = 0.0
        for now, then in zip(self._states(path), self.exact[path], strict=True):
            lost += float((now - then).square().sum())
            whole += float(then.square().sum())
        return lost / whole

    def alone(self, codes: Mapping[str, Sequence[Coded]]) -> dict[str, int]:
        """Return for each matrix the choice with the least error of its own outputs, by the moments of its inputs."""
        errors = [self.reconstruction({name: own[index] for name, own in codes.items()})
                  for index in range(len(OFFSETS))]  # fmt: skip
        return {name: int(np.argmin([one[name] for one in errors])) for name in codes}

    def codes(self, arm: Arm, level: float, seed: int) -> dict[str, Coded]:
        """Return the code of every matrix: searched for linear maps of the encoder, else fitted one by one."""
        tried = {name: choices(self.weights[name], level) for name in self.linear}
        matrices = {name: [decode(one) for one in own] for name, own in tried.items()}
        started = time.monotonic()
        found = self.alone(tried)
        if arm.label != ONE:
            grouped = partition(self.linear, self.entropies)
            blocks = {BLOCKS: grouped, EVEN: even(self.linear, len(grouped)), WHOLE: [self.linear]}[arm.label]

            def lost(last: str, held: dict[str, int]) -> float:
                with self.holding({name: matrices[name][index] for name, index in held.items()}):
                    return self.error(self.layers[last])

            found = search(blocks, found, len(OFFSETS), lost)
        looked = self.entropy_seconds if arm.label == BLOCKS else 0.0
        self.searched[level] = time.monotonic() - started + looked
        fitted, setting = Gptq(), grid(level)
        rest = {
            name: fitted.code(weight, replace(self.statistics[name], moments=None), setting)
            for name, weight in self.weights.items()
            if name not in tried
        }
        return {name: tried[name][found[name]] if name in tried else rest[name] for name in self.names}

    def dependencies(self, level: float) -> dict[str, list[float]]:
        """Return for each matrix but the first the entropy of its inputs and how much its error depends on the last's.

        That is by how much the divergence with the matrix and the one before it coded differs from the sum of those
        with either coded, as a share of this sum; scales reach the largest weights.
        """
        coded = {name: decode(choices(self.weights[name], level)[0]) for name in self.linear}

        def nats(*names: str) -> float:
            with self.holding({name: coded[name] for name in names}):
                return measure_closed(self.probe, [], {})

        single = {name: nats(name) for name in self.linear}
        found = {}
        for before, name in zip(self.linear, self.linear[1:], strict=False):
            total = single[before] + single[name]
            found[name] = [self.entropies[name], abs(nats(before, name) - total) / max(total, equal_bytes.LEAST_NATS)]
        return found


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the seconds of the search, blocks, and, matrix by matrix at 4 bits, entropies with dependencies."""
    assert isinstance(bench, Bench)
    found: dict[str, Any] = {"search_seconds": bench.searched[point.level]}
    if arm.label == BLOCKS:
        found["blocks"] = [len(block) for block in partition(bench.linear, bench.entropies)]
    if arm.label == ONE and point.level == COUNTS[0]:
        found["dependencies"] = bench.dependencies(point.level)
    return found


def correlation(pairs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return Spearman's correlation of pairs and how often it is as high by chance, over permutations."""
    from scipy.stats import rankdata

    ranks = rankdata(np.array(pairs, dtype=np.float64), axis=0)
    ranks -= ranks.mean(0)
    first, second = (ranks / np.maximum(np.linalg.norm(ranks, axis=0), 1e-12)).T
    rng, found = np.random.default_rng(0), float(first @ second)
    drawn = np.stack([rng.permutation(second) for _ in range(PERMUTATIONS)]) @ first
    return found, (1 + int((drawn >= found - 1e-12).sum())) / (1 + PERMUTATIONS)


def proxy(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): matrices whose inputs have more entropy depend more on the one before."""
    rule = (
        "over matrices, the entropy of the inputs (at 16 levels) correlates with how far the divergence of a matrix "
        "and the one before it, coded together, is from the sum of both (Spearman), above zero with p < "
        f"{P_VALUE:g} (permutations); mixed: above zero, but by chance"
    )
    name = "entropy and dependency"
    rows = next((list(one["dependencies"].values()) for one in outcomes if "dependencies" in one), [])
    if len(rows) < 3:
        return part_of(name, rule, UNTESTED)
    found, p = correlation(rows)
    verdict = (HOLDS if p < P_VALUE else MIXED) if found > 0 else FAILS
    median = float(np.median([row[1] for row in rows]))
    text = f"correlation {found:+.2f} (p = {p:.3f}) over {len(rows)} matrices; in the median {median:.0%} off the sum"
    return part_of(name, rule, verdict, text, correlation=found, p=p)


def quicker(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): blocks are searched in less time than the whole network."""
    rule = "at each number of levels the search in blocks takes less time than that in one block"
    ours, whole = of_arm(outcomes, BLOCKS), of_arm(outcomes, WHOLE)
    shared = sorted(ours.keys() & whole.keys(), reverse=True)
    spent = {level: (ours[level][0]["search_seconds"], whole[level][0]["search_seconds"]) for level in shared}
    text = "; ".join(f"{level:g} levels: {a:.0f} s against {b:.0f} s" for level, (a, b) in spent.items())
    return part_of("search time", rule, share_passed([a < b for a, b in spent.values()]), text)


def better(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): what is searched in blocks loses less in the end than what is searched matrix by matrix."""
    return against("blocks against matrix by matrix", outcomes, BLOCKS, [ONE])


CLAIM = Claim(
    slug="q-vlm",
    claim=(
        "The entropy of a layer's activations tells how far its quantization error depends on other layers'; rounding "
        "searched jointly in blocks that are parted by it loses less than layer by layer, in less time than for the "
        "whole network at once."
    ),
    experiment=(
        "Symmetric grids of 15 (4 bits) and 7 levels, a scale for each row. For every linear map of the encoder one of "
        "four clippings is chosen (scales that reach the largest weights, down to three quarters of an octave less): "
        "by the error of its own outputs, or in blocks, by the error of the outputs of the layer that a block ends in, "
        "blocks before it coded and those after it exact, matrix after matrix until none moves. A matrix joins the "
        "block of the one before where the entropy of its inputs is above the median, up to four; as many even blocks "
        "are shown beside. Activations stay as they are, and all other matrices have fitted scales. Searches see 128 "
        "other texts."
    ),
    arms=tuple(Arm(label, COUNTS, lambda n: (Gptq(), grid(n, ROW)), LEVELS) for label in (BLOCKS, ONE, EVEN, WHOLE)),
    parts=lambda outcomes: [better(outcomes), proxy(outcomes), quicker(outcomes)],
    observe=observe,
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Measure the points that ``out`` lacks, and return the verdict; nothing is kept in ``cache``."""
    return coding.run(CLAIM, Bench(bench), out, seeds=seeds, quick=quick, say=say)
