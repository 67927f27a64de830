"""Coding: the bits of every matrix, decided together with what stays, and fitted to the byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from isthmus.allocation.joint import Joint, choose, search, spend
from isthmus.bottlenecks.bits.fake_quantize import TERNARY, Quantizer, paretoq_quantizer
from isthmus.bottlenecks.coder import Coder, MatrixStatistics, Setting
from isthmus.bottlenecks.curves import COARSEST, FINEST, Curves, coded_matrices, measure_curves
from isthmus.bottlenecks.registry import coder as coder_named
from isthmus.cost.predict import coded_bytes_rate, kept_counts, narrowed_names, predicted_shapes
from isthmus.cost.rates import Rate, Term
from isthmus.errors import UnreachableBudget
from isthmus.examples import Example
from isthmus.flow.planning import Relevances, allocate_lasting
from isthmus.flow.study import Study
from isthmus.network import Network
from isthmus.plan import Coding
from isthmus.progress import Progress, silent
from isthmus.relevance.estimator import LASTING
from isthmus.relevance.moments import collect_moments
from isthmus.relevance.probe import Probe, make_probe
from isthmus.relevance.sensitivity import collect_sensitivity
from isthmus.storage.blobs import pack
from isthmus.storage.coded import MOST, Coded, Integers, Uniform, scale_of, stretch
from isthmus.storage.holders import SUFFIX
from isthmus.storage.weights import header_bytes, predicted_bytes, saved_shapes

PRICES = tuple(float(price) for price in np.geomspace(1e-10, 1e-4, 13))
CLOSE = 0.003
"""A file is fitted until it is within this of the budget, from below."""
TRIES = 8
FRONTIER = 12
"""Budgets at which the frontier is shown."""

LEARNED: Mapping[str, Callable[[float], Quantizer]] = {"paretoq": paretoq_quantizer, "bitnet": lambda bits: TERNARY}
"""Coders whose scales are trained with the weights, with the quantizer of each at so many bits."""

Codes = dict[str, Coded]
Shape = tuple[int, int]


def statistics_of(
    probe: Probe,
    names: Sequence[str],
    coders: Sequence[Coder],
    examples: Sequence[Example],
    *,
    seed: int,
    progress: Progress,
) -> dict[str, MatrixStatistics]:
    """Collect what the coders look at, in one pass each."""
    needs = frozenset[str]().union(*(one.needs for one in coders))
    sensitivity = collect_sensitivity(probe, names, examples, seed=seed, progress=progress)
    moments = collect_moments(probe, names) if "moments" in needs else {}
    return {name: MatrixStatistics(sensitivity[name], moments.get(name)) for name in names}


def student_statistics(
    study: Study, student: Network, codings: Sequence[Coding], progress: Progress = silent
) -> dict[str, MatrixStatistics]:
    """Collect what the coders of a plan look at, on the narrowed network itself."""
    coders = [coder_named(name) for name in dict.fromkeys(coding.coder for coding in codings)]
    probe = make_probe(student, [example for group in study.probe.examples for example in group])
    names = [coding.parameter for coding in codings]
    return statistics_of(probe, names, coders, study.examples, seed=study.seed, progress=progress)


def curves_of(study: Study, coders: Sequence[str], progress: Progress = silent) -> Curves:
    """Measure what coding each matrix of the original saves and loses."""
    made = [coder_named(name) for name in coders]
    names = coded_matrices(study.network.model)
    statistics = statistics_of(study.probe, names, made, study.examples, seed=study.seed, progress=progress)
    return measure_curves(study.probe, statistics, made, seed=study.seed, progress=progress)


@dataclass(frozen=True)
class JointProblem:
    """A budget of bytes to be spent over units and bits; all limits hold.

    Parameters
    ----------
    nats : mapping of str to ndarray
        Relevance by site.
    curves : mapping of str to tuple of Candidate
        What coding each matrix of the original saves and loses.
    """

    study: Study
    nats: Relevances
    curves: Curves
    rates: Mapping[str, Rate]
    limits: Mapping[str, float]
    original: Mapping[str, float]

    @cached_property
    def entries(self) -> dict[str, float]:
        """The weights of each matrix."""
        return {name: float(self.study.network.model.get_parameter(name).numel()) for name in self.curves}

    @cached_property
    def header(self) -> Term:
        """The bytes in front of the tensors: the original's are the most that they can be."""
        return Term(float(header_bytes(saved_shapes(self.study.network.model))))

    def at(self, price: float) -> Joint:
        """Return the joint allocation at a price, nats a byte.

        Raises
        ------
        UnreachableBudget
            If the limits cannot be kept with the codes that are cheapest at this price.
        """
        model, sites = self.study.network.model, self.study.sites
        kinds = {site.name: site.kind for site in sites}
        weight = LASTING["matrix"]
        chosen = choose(self.curves, self.entries, price, weight)
        coded = coded_bytes_rate(model, sites, {name: one.bits for name, one in chosen.items()})
        whole = Rate("bytes", (*coded.terms, self.header))
        allocation = allocate_lasting(self.study, self.nats, {**self.rates, "bytes": whole}, self.limits, self.original)
        lost = sum(LASTING.get(kinds[name], 1.0) * value for name, value in allocation.distortion.items())
        left = share_left(self.study, self.entries, allocation.kept)
        stays = {name: left[name] * count for name, count in self.entries.items()}
        size = float(whole(kept_counts(sites, allocation.kept)))
        finer = spend(self.curves, stays, chosen, self.limits["bytes"] - size, weight=weight)
        size += sum(stays[name] * (one.bits - chosen[name].bits) / 8 for name, one in finer.items())
        lost += weight * sum(left[name] * one.nats for name, one in finer.items())
        return Joint(price, allocation, finer, lost, size)


def frontier_of(problem: JointProblem, best: Joint, count: int = FRONTIER) -> list[Joint]:
    """Return the best joint allocations at other budgets of bytes, from a third of this one to three times as much.

    The price is looked for near that of the neighbouring budget.
    """
    limit = problem.limits["bytes"]
    found = [best]
    for factors in (np.geomspace(1, 3, count // 2)[1:], np.geomspace(1, 1 / 3, count // 2)[1:]):
        price = best.price
        for factor in factors:
            moved = replace(problem, limits={**problem.limits, "bytes": min(limit * factor, problem.original["bytes"])})
            try:
                near, _ = search(moved.at, (price / 4, price, price * 4), refine=1)
            except UnreachableBudget:
                break
            price = near.price
            found.append(near)
    return sorted(found, key=lambda one: one.bytes)


def share_left(study: Study, entries: Mapping[str, float], kept: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the share of each matrix that stays."""
    shapes = predicted_shapes(study.network.model, study.sites, kept)
    after = narrowed_names(entries, study.sites, kept)
    return {
        name: float(np.prod(shapes[after[name]])) / count if name in after else 0.0 for name, count in entries.items()
    }


def codings_of(study: Study, joint: Joint) -> tuple[Coding, ...]:
    """Return the codes of a joint allocation by the names that matrices have in the narrowed network."""
    kept = joint.allocation.kept
    after = narrowed_names(joint.chosen, study.sites, kept)
    shapes = predicted_shapes(study.network.model, study.sites, kept)
    found = []
    for name, one in joint.chosen.items():
        if name not in after:
            continue
        rows, columns = shapes[after[name]]
        count = float(rows * columns)
        weight = study.network.model.get_parameter(name)
        whole = float(weight.numel())
        setting = refitted(coder_named(one.coder), one.setting, (weight.shape[0], weight.shape[1]), (rows, columns))
        if setting is None:
            continue
        found.append(
            Coding(
                parameter=after[name],
                coder=one.coder,
                bits=setting.bits,
                group=setting.group,
                rank=setting.rank,
                bytes=round(one.bits * count / 8),
                distortion=one.nats * count / whole,
            )
        )
    return tuple(found)


def refitted(coder: Coder, setting: Setting, before: Shape, after: Shape) -> Setting | None:
    """Return the setting that a coder offers a narrowed matrix in the place of one that was measured on the whole.

    Vectors must fill the columns that are left, and a rank is worth another share of fewer rows and columns. Taken is
    the setting of the highest rate that is no higher than before, or of the lowest.

    Returns
    -------
    Setting or None
        None where the coder offers nothing: what is left is too small to be coded.
    """
    if before == after or getattr(coder, "continuous", False):
        return setting
    offered = coder.settings(after)
    if setting in offered and not setting.rank:
        return setting
    asked = _rate(setting, before) * (1 + 1e-9)
    rates = {one: _rate(one, after) for one in offered}
    fitting = [one for one in offered if rates[one] <= asked]
    if fitting:
        return max(fitting, key=lambda one: (rates[one], one.group))
    return min(offered, key=lambda one: rates[one], default=None)


def _rate(setting: Setting, shape: Shape) -> float:
    """Return the bits a weight of a setting, before entropy coding and without scales and tables."""
    rows, columns = shape
    if not setting.rank:
        return setting.bits
    slices = max(columns // setting.group, 1) if setting.group else 1
    return setting.bits * setting.rank * (1 / columns + 1 / (slices * rows))


def fit_settings(
    student: Network,
    codings: Sequence[Coding],
    statistics: Mapping[str, MatrixStatistics],
    limit: float,
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[Codes, tuple[Coding, ...]]:
    """Code a network, all coders that take any number of bits moved together until the file just fits.

    Raises
    ------
    UnreachableBudget
        If it does not fit at the coarsest.
    """

    def at(shift: float) -> tuple[Codes, int]:
        moved = [_moved(coding, shift) for coding in codings]
        codes = code_matrices(student, moved, statistics, seed=seed)
        return codes, file_bytes(student, codes)

    weights = sum(
        student.model.get_parameter(coding.parameter).numel() for coding in codings if takes_any_bits(coding.coder)
    )
    codes, shift = _fit(at, limit, 8.0 / max(weights, 1), progress, tries=TRIES if weights else 1)
    made = []
    for coding in codings:
        moved = _moved(coding, shift)
        made.append(moved.model_copy(update={"bytes": len(pack(codes[coding.parameter]))}))
    return codes, tuple(made)


def quantizers_of(codings: Sequence[Coding]) -> dict[str, Quantizer]:
    """Return the quantizers of those matrices whose scales are trained, by name of the parameter."""
    return {coding.parameter: LEARNED[coding.coder](coding.bits) for coding in codings if coding.coder in LEARNED}


def fit_scales(
    student: Network,
    codes: Codes,
    limit: float,
    progress: Progress = silent,
    *,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> Codes:
    """Code a trained network on the grids that it was trained on, all made coarser together until the file just fits.

    Parameters
    ----------
    limit : float
        Bytes.
    quantizers : mapping of str to Quantizer, optional
        Of those grids whose levels are bounded. They are made coarser where they must be, and never finer.

    Raises
    ------
    UnreachableBudget
        If it does not fit at grids eight times as coarse.
    """
    bounded = quantizers or {}
    weights = sum(code.integers.size for code in codes.values() if isinstance(code, Uniform))

    def at(shift: float) -> tuple[Codes, int]:
        moved = {name: rounded_anew(student, name, code, shift, bounded.get(name)) for name, code in codes.items()}
        return moved, file_bytes(student, moved)

    if not any(isinstance(code, Uniform) and name not in bounded for name, code in codes.items()):
        made, size = at(0.0)  # nothing becomes finer, so there is nothing to search where it fits
        if size <= limit:
            return made
    return _fit(at, limit, 8.0 / max(weights, 1), progress)[0]


def _fit(
    at: Callable[[float], tuple[Codes, int]], limit: float, slope: float, progress: Progress, *, tries: int = TRIES
) -> tuple[Codes, float]:
    """Search the shift, in bits a weight, at which the file is within `CLOSE` of the limit, from below."""
    low, high = -3.0, float("inf")  # a shift that fits, and one that does not
    best: tuple[Codes, int, float] | None = None
    shift = 0.0
    for attempt in range(tries):
        codes, size = at(shift)
        progress("fit", attempt + 1, tries, f"{size / 1e6:.3f} MB")
        if size <= limit:
            low = max(low, shift)
            if best is None or size > best[1]:
                best = codes, size, shift
            if size >= limit * (1 - CLOSE) or shift >= FINEST:  # finer than the finest makes no difference
                break
        else:
            high = min(high, shift)
        # Bytes are nearly linear in bits; a hair below the limit is aimed at.
        step = (limit * (1 - CLOSE / 3) - size) * slope
        shift = shift + step
        if not low < shift < high:
            shift = (max(low, shift - 1.0) + high) / 2 if np.isfinite(high) else FINEST
    progress("fit", tries, tries)
    if best is None:
        raise UnreachableBudget(
            f"bytes={limit / 1e6:.2f}MB: the codes take {size / 1e6:.2f} MB at their coarsest; "
            f"ask for bytes={size / 1e6 * 1.02:.2f}MB"
        )
    return best[0], best[2]


def code_matrices(
    student: Network, codings: Sequence[Coding], statistics: Mapping[str, MatrixStatistics], *, seed: int
) -> Codes:
    """Return the code of each matrix that a plan names."""
    codes = {}
    for coding in codings:
        weight = student.model.get_parameter(coding.parameter).detach().numpy()
        setting = Setting(coding.bits, coding.group, coding.rank)
        codes[coding.parameter] = coder_named(coding.coder).code(
            weight, statistics[coding.parameter], setting, seed=seed
        )
    return codes


def file_bytes(student: Network, codes: Mapping[str, Coded]) -> int:
    """Return the bytes of the weight file, to the last one: coded matrices, and float16 for all else."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name, (shape, dtype) in saved_shapes(student.model).items():
        if name in codes:
            shapes[name + SUFFIX] = (len(pack(codes[name])),), torch.uint8
        else:
            shapes[name] = shape, torch.float16 if dtype.is_floating_point else dtype
    return predicted_bytes(shapes)


def rounded_anew(student: Network, name: str, code: Coded, shift: float, quantizer: Quantizer | None = None) -> Coded:
    """Return the code of a matrix as it is now, on the grid of an earlier code made ``shift`` bits finer.

    Parameters
    ----------
    quantizer : Quantizer, optional
        Bounds the levels; where they are bounded, a grid becomes coarser only.
    """
    if not isinstance(code, Uniform):
        return code
    first, *others = code.scales
    scales = (coarser(first, -shift if quantizer is None else max(-shift, 0.0)), *others)
    exact = student.model.get_parameter(name).detach().numpy().copy()
    for grid in scales:
        exact /= stretch(scale_of(grid), code.shape)
    if code.zeros is not None:
        exact -= stretch(code.zeros, code.shape)
    if quantizer is not None:
        exact = quantizer.nearest(torch.from_numpy(exact)).numpy()
    # Where a grid is far finer than its weights, integers would be larger than float32 can tell apart.
    integers = np.rint(np.clip(exact, -MOST, MOST)).astype(np.int32)
    return replace(code, integers=integers, scales=scales)


def coarser(exponents: Integers, octaves: float) -> Integers:
    """Return exponents of scales that are ``octaves`` larger in the mean; some move by a sixteenth more than others."""
    sixteenths = 16 * octaves
    whole = int(np.floor(sixteenths))
    order = np.arange(exponents.size).reshape(exponents.shape)
    # Spread evenly, by the golden ratio's multiples: neighbours do not move alike.
    more = (order * 0.6180339887498949) % 1.0 < sixteenths - whole
    return np.asarray(exponents + whole + more, dtype=np.int32)


def takes_any_bits(name: str) -> bool:
    """Return whether a coder takes any number of bits, so that its codes can be fitted to the byte."""
    return bool(getattr(coder_named(name), "continuous", False))


def _moved(coding: Coding, shift: float) -> Coding:
    if not takes_any_bits(coding.coder):
        return coding
    return coding.model_copy(update={"bits": float(np.clip(coding.bits + shift, COARSEST / 2, FINEST))})
