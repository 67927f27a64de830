"""Plain rounding: evenly spaced levels for every tensor, weights to the nearest level of their row."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.bottlenecks.bits.after_training.levels import tensor_levels
from isthmus.bottlenecks.bits.after_training.method import (
    Job,
    attention_levels,
    copied,
    finished,
    input_levels,
    nearest_codes,
)
from isthmus.bottlenecks.bits.after_training.observing import layers_of, observe
from isthmus.network import Network


@dataclass(frozen=True)
class PlainRounding:
    """Levels of the least squared error, one set a tensor, attention weights too: the baseline."""

    name: str = "plain"
    slug: str | None = None

    def rounded(self, job: Job) -> Network:
        """Return the rounded network."""
        student = copied(job.network)
        seen = observe(student, job.examples, layers_of(student))
        bits = job.activations
        attention = attention_levels(seen.attention, bits, lambda weights: tensor_levels(weights, bits))
        return finished(student, input_levels(seen, bits, {}), attention, nearest_codes(student, job.weights))
