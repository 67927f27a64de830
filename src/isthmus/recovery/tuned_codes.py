"""Tuned codes: codes that are looked up, trained on the divergence from the original (PV-tuning)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isthmus.bottlenecks.codebook.pv_tuning import Matrices, Oracle, PVRecipe, tune
from isthmus.errors import BadInput
from isthmus.examples import Example
from isthmus.network import Network, outputs
from isthmus.progress import Progress, silent
from isthmus.recovery.batches import Batch
from isthmus.recovery.drawing import draw
from isthmus.storage.coded import Codebook, Coded, Floats, Product, Sum, Uniform, scale_of, stretch
from isthmus.storage.holders import with_codes
from isthmus.tasks.divergence import divergence

BATCHES = 8
"""Steps' worth of examples that the divergence is taken over, at every evaluation the same."""
_LEAST = 3


@dataclass(frozen=True)
class TunedCodes:
    """All codes, those that are looked up tuned, and the calibration divergence in nats.

    Parameters
    ----------
    codes : dict of str to Coded
        By name of the parameter.
    losses : tuple of float
        Before the first step and after each accepted one: it never rises. Empty where there was nothing to tune.
    """

    codes: dict[str, Coded]
    losses: tuple[float, ...]


def tune_codes(
    student: Network,
    codes: Mapping[str, Coded],
    teacher: Network,
    examples: Sequence[Example],
    *,
    rounds: int = 20,
    share: float = PVRecipe.share,
    batches: int = BATCHES,
    batch: int = 64,
    length: int = 128,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> TunedCodes:
    """Return codes of the same kind and size at which a network diverges less from the original.

    PV-tuning (Malinovskii et al. 2024), see `isthmus.bottlenecks.codebook.pv_tuning.tune`. Codebooks are tuned as they
    are, products and sums by each of their factors or parts, whose derivatives follow from the matrix's by the chain
    rule. Codes that are `Uniform` stay: they are trained on their grid. Bytes change only by what the entropy coder
    makes of other indices.

    Parameters
    ----------
    student : Network
        Left as it is. What is not coded counts as what float16 can say of it, as in `with_codes`.
    codes : mapping of str to Coded
        By name of the parameter.
    teacher : Network
    examples : sequence of str or of Image
        Without labels.
    rounds : int
        Each tries a step of tables and scales and a step of a few indices.
    share : float
        Of a matrix's indices, how many may change in a round; 0: none.
    batches, batch : int
        Steps' worth of examples that the divergence is taken over, and examples in each; drawn once.
    length : int
        Texts are cut to this many tokens.
    seed : int
        Decides which examples.
    stop : callable
        Asked before each try; once it says so, no other is made.
    progress : callable
        Called after each round.

    Raises
    ------
    BadInput
        If a network has no tokenizer, or there are too few examples.
    """
    parts = {name: _parts(coded) for name, coded in codes.items() if not isinstance(coded, Uniform)}
    if not parts:
        return TunedCodes(dict(codes), ())
    held = with_codes(student, codes)
    oracle = divergence_oracle(
        held, teacher, examples, list(parts), batches=batches, batch=batch, length=length, seed=seed
    )
    named = {f"{name}:{number}": part for name, own in parts.items() for number, part in enumerate(own)}

    def of_parts(matrices: Matrices) -> tuple[float, Matrices]:
        own = {name: [matrices[f"{name}:{number}"] for number in range(len(parts[name]))] for name in parts}
        loss, slopes = oracle({name: _assembled(codes[name], own[name]) for name in parts})
        found: Matrices = {}
        for name in parts:
            for number, slope in enumerate(_slopes(codes[name], own[name], slopes[name])):
                found[f"{name}:{number}"] = slope
        return loss, found

    tuned = tune(named, of_parts, PVRecipe(rounds=rounds, share=share), stop=stop, progress=progress)
    made = dict(codes)
    for name in parts:
        made[name] = _rebuilt(codes[name], [tuned.codes[f"{name}:{number}"] for number in range(len(parts[name]))])
    return TunedCodes(made, tuned.losses)


def divergence_oracle(
    student: Network,
    teacher: Network,
    examples: Sequence[Example],
    names: Sequence[str],
    *,
    batches: int = BATCHES,
    batch: int = 64,
    length: int = 128,
    seed: int = 0,
) -> Oracle:
    """Return the divergence from a teacher, in nats, and its derivatives, as a function of the named weights.

    In float32 on batches that are drawn once: the same weights give the same number at every call.

    Parameters
    ----------
    student : Network
        Its named weights are overwritten at every call.
    names : sequence of str
        Parameters, each of shape ``(rows, columns)``.

    Raises
    ------
    BadInput
        If a network has no tokenizer, or there are fewer than three examples: likeness needs something to compare.
    """
    if len(set(examples)) < _LEAST:
        raise BadInput(f"codes: {len(set(examples))} examples to tune on; give at least {_LEAST} that differ")
    drawn = draw(examples, student, teacher, size=batch, seed=seed, length=length)
    count = max(1, min(batches, len(drawn)))
    micros = [micro for step in range(count) for micro in drawn.step(step)]
    with torch.inference_mode():
        targets = [outputs(teacher, micro.teacher).float().clone() for micro in micros]
    chosen = {name: student.model.get_parameter(name) for name in names}

    def oracle(matrices: Matrices) -> tuple[float, Matrices]:
        """Return the divergence with these matrices in their places, and its derivative by each."""
        with torch.no_grad():
            for name, weight in chosen.items():
                weight.copy_(torch.from_numpy(matrices[name]))
        flags = {parameter: parameter.requires_grad for parameter in student.model.parameters()}
        total, slopes = 0.0, {name: torch.zeros_like(weight) for name, weight in chosen.items()}
        try:
            student.model.requires_grad_(False)
            for weight in chosen.values():
                weight.requires_grad_(True)
            for micro, target in zip(micros, targets, strict=True):
                total += _add(student, micro, target, chosen, slopes) / count
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
        return total, {name: (slope / count).numpy() for name, slope in slopes.items()}

    return oracle


def _add(
    student: Network, micro: Batch, target: Tensor, chosen: Mapping[str, Tensor], slopes: Mapping[str, Tensor]
) -> float:
    """Add a micro-batch's weighted derivatives to ``slopes`` and return its weighted divergence."""
    loss = micro.weight * divergence(outputs(student, micro.student).float(), target.clone(), student.pooling)
    found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    for slope, own in zip(slopes.values(), found, strict=True):
        if own is not None:  # a matrix that the output never sees
            slope.add_(own)
    return float(loss.detach())


def _parts(coded: Coded) -> tuple[Uniform | Codebook, ...]:
    if isinstance(coded, Product):
        return coded.left, coded.right
    return coded.parts if isinstance(coded, Sum) else (coded,)


def _assembled(coded: Coded, matrices: Sequence[Floats]) -> Floats:
    """Return the matrix of a code whose parts stand for these matrices, as `decode` would."""
    if isinstance(coded, Uniform | Codebook):
        return matrices[0]
    if isinstance(coded, Product):
        whole: Floats = matrices[0] @ matrices[1]
    else:
        whole = matrices[0].copy()
        for matrix in matrices[1:]:
            whole += matrix
        for grid in coded.scales:
            whole *= stretch(scale_of(grid), coded.shape)
    if coded.outliers is not None:
        whole.flat[coded.outliers.places] = coded.outliers.values.astype(np.float32)
    return whole


def _slopes(coded: Coded, matrices: Sequence[Floats], slope: Floats) -> list[Floats]:
    """Return the derivatives by each part, from that by the whole matrix."""
    if isinstance(coded, Uniform | Codebook):
        return [slope]
    if coded.outliers is not None:
        slope = slope.copy()
        slope.flat[coded.outliers.places] = 0.0
    if isinstance(coded, Product):
        return [slope @ matrices[1].T, matrices[0].T @ slope]
    for grid in coded.scales:
        slope = slope * stretch(scale_of(grid), coded.shape)
    return [slope] * len(matrices)


def _rebuilt(coded: Coded, parts: Sequence[Uniform | Codebook]) -> Coded:
    if isinstance(coded, Product):
        return replace(coded, left=parts[0], right=parts[1])
    return replace(coded, parts=tuple(parts)) if isinstance(coded, Sum) else parts[0]
