"""Efforts: how much training ``--effort`` buys, and how ``--time`` fits it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from isthmus.errors import BadInput
from isthmus.network import Network, low_precision, outputs
from isthmus.recovery.drawing import Batches
from isthmus.recovery.recipe import Recipe
from isthmus.tasks.divergence import divergence

EFFORTS = ("none", "faster", "fast", "full")
STEPS = {"faster": 300, "fast": 2000, "full": 4500}
LEAST_STEPS = 20
TENTH_RATE, HALF_RATE, WHOLE_RATE = 1e-3, 6.5e-4, 2e-5
"""Learning rates of recovery for networks at a tenth and at half of their parameters, and for one that lost nothing."""
SOLVED = 0.25
"""The part of the learning rate that a network gets whose projections were solved anew."""
CONVOLUTION_RATE = 1e-3
"""The learning rate of recovery for networks of convolutions and batch norms, whatever is left of them."""
MOST_TIMES = 4.0


def recipe_for(
    effort: str, share: float, *, classifier: bool = False, solved: bool = False, convolutional: bool = False
) -> Recipe:
    """Return how a network narrowed to ``share`` of its parameters is trained.

    The narrower a network, the further its weights must move, so the higher the learning rate: 6.5e-4 at half, 1e-3
    at a tenth. Above half it falls fast: a network that has lost little is spoilt by a rate that serves another well.
    These rates, and the losses of ``Recipe``, were first chosen with scores on STS-B dev in view, then looked at again
    on 1,000 pairs held out of STS-B train, as ``python -m claims --validation`` does (all-MiniLM-L6-v2, 150 steps,
    Spearman relative to the original; another order of the texts moves it by 0.4 points). At a quarter: 95.8 % as it
    is, 95.9 and 95.0 % at twice and half the rate, 91.9 % without the cosine of outputs, 96.2 % with four times its
    weight (on another cut 94.7 % with either), 95.4 % without the relation. At three quarters, cut by ``vib``: at
    4.3e-4 no step is better than none (99.4 %, 0.088 nats), at 2e-4 99.7 % and 0.082, at 1e-4 99.7 % and 0.071.

    What was ``solved`` before (`isthmus.flow.solving`) is nearer its goal, and has a quarter of that rate: at half, cut
    by ``fisher``, 300 steps leave 0.32 nats of what was only cut (0.60), and of what was solved (0.32 to 0.35) none
    fewer at the whole rate, 0.27 at 0.4 of it and 0.26 at 0.2.

    Where batch norms hold the scale of what follows, weights bear a far higher rate: a ResNet-20 of CIFAR-10 with seven
    tenths of the channels within its blocks, 3.18 nats from the original, is after 25 steps at 1.83 with a rate of
    5e-5, 0.92 with 3e-4, 0.62 with 1e-3 and 0.80 with 3e-3. Rates of vision transformers are those of texts, not tried.
    """
    check_effort(effort)
    rate = HALF_RATE + (TENTH_RATE - HALF_RATE) * min(1.0, max(0.0, (0.5 - share) / 0.4))
    rate *= (WHOLE_RATE / HALF_RATE) ** (2 * max(0.0, share - 0.5))
    if classifier:
        rate *= 0.3
    if solved:
        rate *= SOLVED
    if convolutional:
        rate = CONVOLUTION_RATE
    steps = round(STEPS[effort] * longer(share))
    return Recipe(steps=steps, learning_rate=rate, evaluate_every=max(steps // 10, 25), patience=4)


def convolutional(network: Network) -> bool:
    """Return whether a network is one of convolutions and batch norms."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.model.modules())


def coding_recipe(effort: str, bits: float, *, classifier: bool = False) -> Recipe:
    """Return how a network is trained on the grids of its codes.

    The rate is 2e-4 at 2 bits and a third of it a bit finer, as recovery's is by what was lost; not tried on codes.

    Parameters
    ----------
    bits : float
        Nominal bits a weight in the mean; the coarser, the further weights must move.
    """
    recipe = recipe_for(effort, 1.0, classifier=classifier)
    rate = float(np.clip(2e-4 * 3 ** (2 - bits), WHOLE_RATE, 4e-4))
    return replace(recipe, learning_rate=rate * (0.3 if classifier else 1.0))


def check_effort(effort: str) -> None:
    """Refuse an effort that is not known.

    Raises
    ------
    BadInput
    """
    if effort not in EFFORTS:
        raise BadInput(f"unknown effort {effort!r}; the efforts are {', '.join(EFFORTS)}")


def longer(share: float) -> float:
    """Return how many times the steps of an effort a network at ``share`` gets.

    Below half, a step costs about as much less as there is left, and weights have further to go: the wall time of
    recovery stays about the same.
    """
    return min(MOST_TIMES, max(1.0, 0.5 / max(share, 1e-9)))


def step_seconds(student: Network, teacher: Network, batches: Batches) -> tuple[float, float]:
    """Measure the wall time of a recovery step without changing the student.

    Returns
    -------
    tuple of float
        Seconds that the student takes, forwards and backwards, and that the teacher takes. The teacher's outputs are
        remembered, so it is asked in the first pass over the texts only; of images, which differ at every step, always.
    """
    times: list[tuple[float, float]] = []
    for step in range(4):
        started = time.perf_counter()
        asked = 0.0
        for batch in batches.step(step):
            before = time.perf_counter()
            with torch.no_grad(), low_precision():
                wanted = outputs(teacher, batch.teacher).float()
            asked += time.perf_counter() - before
            with low_precision():
                output = outputs(student, batch.student).float()
            divergence(output, wanted, student.pooling).backward()  # type: ignore[no-untyped-call]
        times.append((time.perf_counter() - started - asked, asked))
        student.model.zero_grad(set_to_none=True)
    own, other = (sorted(column)[1] for column in zip(*times[1:], strict=True))
    # An allowance for the optimizer's own pass over the weights, which is not in the trial.
    own *= 1.2
    return (own, other) if batches.fixed else (own + other, 0.0)


def steps_within(seconds: tuple[float, float], left: float, epoch: int) -> int:
    """Return how many recovery steps fit into ``left`` seconds when the teacher is asked in the first ``epoch``."""
    own, asked = seconds
    first = left / max(own + asked, 1e-9)
    return int(first) if first <= epoch else int(epoch + (left - epoch * (own + asked)) / max(own, 1e-9))


def most_steps() -> int:
    """Return the steps beyond which no ``--time`` lengthens recovery: those of the fullest effort."""
    return round(STEPS["full"] * MOST_TIMES)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with no more than ``steps`` steps, its warm-up and evaluations in proportion."""
    steps = min(recipe.steps, max(LEAST_STEPS, steps))
    warmup, every = min(recipe.warmup, max(1, steps // 10)), max(steps // 10, 10)
    return replace(recipe, steps=steps, warmup=warmup, evaluate_every=every)
