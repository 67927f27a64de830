"""Recovery: training a narrowed network with the original as its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from isthmus.errors import BadInput, IsthmusError
from isthmus.examples import Example
from isthmus.memory import EVERY, give_back
from isthmus.network import Network
from isthmus.progress import Progress, silent
from isthmus.recovery.batches import Batch, Labelled, LabelledBatches
from isthmus.recovery.drawing import LabelledSteps, draw, draw_labelled
from isthmus.recovery.losses import Learner
from isthmus.recovery.recipe import Recipe, uses_bf16
from isthmus.recovery.state import State, load_state, save_finished, save_state
from isthmus.recovery.teacher import HeldOutExamples, Outputs, Teacher, split_examples

if TYPE_CHECKING:
    from accelerate import Accelerator

    from isthmus.storage.stages import StageStore
    from isthmus.tasks.task import Task

CURVE_POINTS = 250
"""A loss curve has at most about this many points, each the mean of as many steps as it takes."""


@dataclass(frozen=True)
class Recovered:
    """A network after recovery.

    Parameters
    ----------
    network : Network
        The student; its weights are the best ones by the held-out divergence.
    curves : tuple of (name, unit, points)
        ``points`` are ``(step, value)``: the training loss, and the divergence in nats on held-out texts.
    steps : int
        Optimizer steps that were taken.
    seconds : float
        Wall time, over all runs where it was resumed.
    stopped_early : bool
        Whether the held-out divergence had stopped falling.
    """

    network: Network
    curves: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]
    steps: int
    seconds: float
    stopped_early: bool


def recover(
    student: Network,
    teacher: Network,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    task: Task | None = None,
    stages: StageStore | None = None,
    stage: str = "recovery",
    outputs: Outputs | None = None,
    save_seconds: float = 60.0,
    progress: Progress = silent,
) -> Recovered:
    """Train a narrowed network to be like the original.

    The loop runs on ``accelerate``: under ``accelerate launch`` each process takes its share of every step's examples.

    Parameters
    ----------
    student : Network
        Trained in place, so that no second copy of it is held. It stays in evaluation mode: no dropout.
    teacher : Network
        The original; left as it is.
    examples : sequence of str or of Image
        Without labels. At most 5 % and 256 of them are held out for the stop rule.
    recipe : Recipe
    kept : mapping of str to sequence of int, optional
        The units kept at each site of the teacher: where the student's width and layers come from.
    seed : int
        Decides the order of the examples, and how images are shifted and mirrored.
    task : Task, optional
        Gives labels to learn from, where ``recipe.labels`` is above 0.
    stages : StageStore, optional
        Where to keep the state of the run, about every ``save_seconds`` and under the name ``stage``, and to go on
        from. A resumed run ends with the very weights of an undisturbed one.
    outputs : Outputs, optional
        What the teacher makes of the examples, where several recoveries share it and the recipe asks for no more. Of
        images it is not used: they are another at every step.
    progress : callable
        Called in the main process after each step.

    Raises
    ------
    BadInput
        If there are too few examples, a network has no tokenizer, or the stages are of another recipe.
    IsthmusError
        If the loss is no longer a finite number.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if len(set(examples)) < 2:
        raise BadInput(f"recovery: {len(examples)} examples to train on; give at least two that differ")
    # Precision is set where the networks run (losses.Learner, teacher.Teacher), for accelerate would do it by
    # replacing the model's forward. Poolers and the like take no part in the loss: hence unused parameters.
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    flags = [parameter.requires_grad for parameter in student.model.parameters()]
    student.model.eval().requires_grad_(True)
    teacher.model.eval()
    try:
        run = _Run(student, teacher, examples, recipe, kept, seed, task, accelerator, stages, stage, outputs)
        run.train(save_seconds, progress if accelerator.is_main_process else silent)
    finally:
        for parameter, flag in zip(student.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
        accelerator.free_memory()
    return run.recovered()


class _Run:
    """One recovery: what does not change while it runs, and its state."""

    def __init__(
        self,
        student: Network,
        teacher: Network,
        examples: Sequence[Example],
        recipe: Recipe,
        kept: Mapping[str, Sequence[int]] | None,
        seed: int,
        task: Task | None,
        accelerator: Accelerator,
        stages: StageStore | None,
        stage: str,
        outputs: Outputs | None,
    ) -> None:
        self.student, self.recipe, self.accelerator = student, recipe, accelerator
        self.stages, self.stage = stages, stage
        self.state = State()
        learner = Learner(student, teacher, recipe, kept)
        self.plain = learner
        self.parameters = list(learner.parameters())
        optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        if stages is not None and stages.done(stage):
            self.state = load_state(stages, stage, learner, optimizer, recipe)
            if self.state.finished:
                return
        self.learner, self.optimizer = accelerator.prepare(learner, optimizer)
        rank, world = accelerator.process_index, accelerator.num_processes
        shares: dict[str, Any] = {"seed": seed, "length": recipe.length, "rank": rank, "world": world}
        trained, held = split_examples(examples, seed)
        self.batches = draw(trained, student, teacher, size=recipe.batch, augment=True, **shares)
        bf16 = uses_bf16(recipe.precision)
        self.teacher = Teacher(teacher, learner.teacher_watched, bf16, accelerator)
        if outputs is not None and not recipe.tokenwise and self.batches.fixed:
            self.teacher.targets = outputs.of(trained)
        elif not recipe.tokenwise:
            self.teacher.remember(self.batches, recipe.steps, stages, f"{stage}-targets")
        self.held: HeldOutExamples | None = None
        if held and recipe.evaluate_every:
            batches = draw(held, student, teacher, size=recipe.batch, **shares)
            self.held = HeldOutExamples(batches, student, self.teacher)
        self.labels = _labelled(task, student, recipe, shares) if recipe.labels else None
        accelerator.wait_for_everyone()

    def train(self, save_seconds: float, progress: Progress) -> None:
        """Run from the state's step to the end."""
        state, recipe = self.state, self.recipe
        if state.finished:
            return
        started = saved = time.monotonic()
        before = state.seconds
        if state.step == 0:
            self._evaluate()
        while state.step < recipe.steps and not state.stopped:
            note = f"loss {self._step():.3f}"
            if self.held and (state.step % recipe.evaluate_every == 0 or state.step == recipe.steps):
                self._evaluate()
                note += f", held out {state.held[-1][1]:.4f} nats"
            state.seconds = before + time.monotonic() - started
            last = state.step == recipe.steps or state.stopped
            if state.step % EVERY == 0:
                give_back()
            if self._saves and not last and time.monotonic() - saved >= save_seconds:
                assert self.stages is not None
                save_state(self.stages, self.stage, self.plain, self.optimizer, state, recipe)
                saved = time.monotonic()
            progress("recover", recipe.steps if last else state.step, recipe.steps, note)
        if state.best_weights is not None:
            self.student.model.load_state_dict(state.best_weights)
        state.finished = True
        if self._saves:
            assert self.stages is not None
            save_finished(self.stages, self.stage, self.plain, state, recipe)

    @property
    def _saves(self) -> bool:
        return self.stages is not None and bool(self.accelerator.is_main_process)

    def _step(self) -> float:
        """Take one optimizer step and return its loss in this process."""
        state, accelerator = self.state, self.accelerator
        micros: list[Batch | Labelled] = list(self.batches.step(state.step))
        if self.labels is not None:
            micros.append(self.labels.step(state.step))
        total = 0.0
        for place, micro in enumerate(micros):
            target = self.teacher.see(micro) if isinstance(micro, Batch) else None
            if place + 1 < len(micros):
                with accelerator.no_sync(self.learner):
                    loss = self.learner(micro, target)
                    accelerator.backward(loss)
            else:  # the processes exchange gradients in the last backward pass only
                loss = self.learner(micro, target)
                accelerator.backward(loss)
            total += float(loss.detach())
        norm = float(accelerator.clip_grad_norm_(self.parameters, self.recipe.clip))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise IsthmusError(
                f"recovery: the loss is no longer a finite number at step {state.step + 1}; "
                f"give a lower learning rate than {self.recipe.learning_rate:g}, or precision fp32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(state.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self._note_loss(total)
        return total

    def _note_loss(self, loss: float) -> None:
        state = self.state
        state.pending.append(loss)
        if len(state.pending) >= math.ceil(self.recipe.steps / CURVE_POINTS) or state.step == self.recipe.steps:
            mean = torch.tensor(sum(state.pending) / len(state.pending), dtype=torch.float64)
            state.losses.append((state.step, float(self.accelerator.reduce(mean, "mean"))))
            state.pending.clear()

    def _evaluate(self) -> None:
        """Measure the held-out divergence, keep the weights if they are the best, and apply the stop rule."""
        if self.held is None:
            return
        state = self.state
        value = self.held.divergence()
        state.held.append((state.step, value))
        if value < state.best:
            state.best, state.misses = value, 0
            weights = self.student.model.state_dict()
            if state.best_weights is None:
                state.best_weights = {name: tensor.clone() for name, tensor in weights.items()}
            for name, tensor in weights.items():
                state.best_weights[name].copy_(tensor)
        else:
            state.misses += 1
            state.stopped = 0 < self.recipe.patience <= state.misses

    def recovered(self) -> Recovered:
        """Return the result."""
        state = self.state
        curves: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...] = (
            ("recovery: loss", "weighted sum", tuple(state.losses)),
            ("recovery: held-out divergence", "nats", tuple(state.held)),
        )
        curves = tuple(curve for curve in curves if curve[2])
        return Recovered(self.student, curves, state.step, state.seconds, state.stopped)


def _labelled(task: Task | None, student: Network, recipe: Recipe, shares: dict[str, Any]) -> LabelledSteps | None:
    """Return the task's labelled examples, where it has any that fit the network."""
    if task is None:
        return None
    if task.pairs and student.pooling != "logits":
        sides = [(left, right) for left, right, _ in task.pairs]
        return LabelledBatches(sides, [score for *_, score in task.pairs], student, size=recipe.batch // 4, **shares)
    if task.labelled and student.pooling == "logits":
        examples, labels = zip(*task.labelled, strict=True)
        return draw_labelled(examples, labels, student, size=recipe.batch // 2, **shares)
    return None
