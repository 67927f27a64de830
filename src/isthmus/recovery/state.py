"""State of a recovery that is under way, as tensors and JSON, so that a run that was stopped goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.recovery.recipe import Recipe

if TYPE_CHECKING:
    from isthmus.storage.stages import StageStore

_FIGURES = ("step", "seconds", "losses", "held", "pending", "best", "misses", "stopped", "finished")


@dataclass
class State:
    """How far a recovery is.

    ``losses`` and ``held`` are points ``(step, value)`` of the curves, ``pending`` the losses of steps that have no
    point yet; ``best`` is the lowest held-out divergence in nats, ``best_weights`` the student's then, ``misses``
    the evaluations since.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    best: float = float("inf")
    misses: int = 0
    stopped: bool = False
    finished: bool = False
    best_weights: dict[str, Tensor] | None = None


def _figures(state: State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _FIGURES}


def save_state(
    stages: StageStore, stage: str, learner: nn.Module, optimizer: Any, state: State, recipe: Recipe
) -> None:
    """Save all that the rest of the run depends on: weights, optimizer and figures."""
    from isthmus.storage.packing import pack

    contents = {
        "learner": dict(learner.state_dict()),
        "optimizer": optimizer.state_dict(),
        "best_weights": state.best_weights,
        "figures": _figures(state),
    }
    tensors, data = pack(contents)
    stages.save(stage, tensors, {**data, "recipe": asdict(recipe)})


def save_finished(stages: StageStore, stage: str, learner: nn.Module, state: State, recipe: Recipe) -> None:
    """Save the weights that the run ended with, and its figures."""
    from isthmus.storage.packing import pack

    contents = {"learner": dict(learner.state_dict()), "figures": _figures(state)}
    tensors, data = pack(contents)
    stages.save(stage, tensors, {**data, "recipe": asdict(recipe)})


def load_state(
    stages: StageStore, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> State:
    """Put weights and optimizer back as they were and return the state.

    Raises
    ------
    BadInput
        If the stage was saved with another recipe.
    """
    from isthmus.storage.packing import unpack

    tensors, data = stages.load(stage)
    if data.get("recipe") != asdict(recipe):
        raise BadInput(f"stages {stages.folder}: {stage} was begun with another recipe; start again without --resume")
    contents = unpack(tensors, data)
    learner.load_state_dict(contents["learner"])
    state = State(**contents["figures"])
    if not state.finished:
        optimizer.load_state_dict(contents["optimizer"])
        state.best_weights = contents["best_weights"]
    return state
