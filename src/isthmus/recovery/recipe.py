"""Recipe: how long, how fast and towards what a narrowed network is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from isthmus.errors import BadInput
from isthmus.network import has_bfloat16

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Recipe:
    """How a narrowed network is trained with the original as its teacher.

    Parameters
    ----------
    steps : int
        Optimizer steps; the learning rate falls linearly to zero over them.
    learning_rate : float
        The highest; about 8e-4 for narrow networks, 3e-4 for wide ones.
    batch : int
        Texts in a step. They pass in micro-batches whose gradients add up, so that memory is bounded.
    warmup : int
        Steps in which the learning rate rises.
    output : float
        Weight of one minus the cosine between (projected) embedding and the teacher's. Not for classifiers.
    relation : float
        Weight of the divergence in nats: of similarities within the batch, or of a classifier's classes.
    hidden : float
        Weight of one minus the cosine of token states, layer by layer, for texts with the same tokens on both sides.
    attention : float
        Weight of the divergence in nats of token relations in the last layer, as in MiniLM.
    attention_of : {"value", "query"}
        Which vectors the relations are taken from.
    labels : float
        Weight of the task's own loss where the task has labels to train on (CoSENT for pairs, else cross-entropy).
    precision : {"auto", "bf16", "fp32"}
        ``auto``: bf16 where the CPU multiplies it in hardware.
    evaluate_every : int
        Steps between evaluations of the divergence on held-out texts; 0: never, and the last weights are returned.
    patience : int
        Stop after this many evaluations without improvement; 0: never stop early.
    length : int
        Texts are cut to this many tokens.
    clip : float
        The largest norm of a gradient.

    Raises
    ------
    BadInput
        If a value is out of its range.
    """

    steps: int
    learning_rate: float
    batch: int = 64
    warmup: int = 30
    output: float = 5.0
    relation: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    attention_of: Literal["value", "query"] = "value"
    labels: float = 0.0
    precision: Precision = "auto"
    evaluate_every: int = 100
    patience: int = 5
    length: int = 128
    clip: float = 1.0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 2, "length": 3}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value >= least.get(field.name, 0):
                raise BadInput(f"recovery: {field.name} is {value}; give at least {least.get(field.name, 0)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"recovery: {name} is {getattr(self, name)}; give a number above 0")
        if self.output + self.relation + self.hidden + self.attention + self.labels <= 0:
            raise BadInput("recovery: every weight is 0, so there is nothing to learn; give for example relation=1")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise BadInput(f"recovery: precision {self.precision!r} is not auto, bf16 or fp32")
        if self.attention_of not in ("value", "query"):
            raise BadInput(f"recovery: attention_of {self.attention_of!r} is not value or query")

    @property
    def tokenwise(self) -> bool:
        """Whether more of the teacher is needed than its outputs."""
        return self.hidden > 0 or self.attention > 0

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * rise * (1 - step / self.steps)


def uses_bf16(precision: Precision) -> bool:
    """Return whether to compute in bf16; ``auto`` asks whether the CPU multiplies it in hardware."""
    return has_bfloat16() if precision == "auto" else precision == "bf16"
