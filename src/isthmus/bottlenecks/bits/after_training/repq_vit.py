"""RepQ-ViT: levels for each channel behind norms, by powers of the root of two for attention; then folded away.

Li et al. 2023, arXiv 2212.08254. What a norm gives differs much between channels: each gets a step and a zero of its
own, which are then folded into the norm and what reads it (equations 5 to 8). Attention weights follow a power law and
get logarithmic levels to the base of the root of two (equation 9), which are the same as levels by powers of two with a
scale that depends on parity. All else is rounded plainly. Nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isthmus.bottlenecks.bits.after_training.folding import folded
from isthmus.bottlenecks.bits.after_training.levels import log_levels, tensor_levels
from isthmus.bottlenecks.bits.after_training.method import (
    Job,
    attention_levels,
    copied,
    finished,
    input_levels,
    nearest_codes,
)
from isthmus.bottlenecks.bits.after_training.observing import layers_of, observe
from isthmus.bottlenecks.bits.rounded_attention import Levels
from isthmus.network import Network


@dataclass(frozen=True)
class RepqVit:
    """Scale reparameterization of norms and of attention weights.

    Parameters
    ----------
    root : int
        Attention weights get levels by powers of this root of two: 2, or 1 for powers of two; 0 for even levels.
    """

    name: str = "repq-vit"
    slug: str | None = "repq-vit"
    root: int = 2

    def rounded(self, job: Job) -> Network:
        """Return the rounded network."""
        student = copied(job.network)
        seen = observe(student, job.examples, layers_of(student))
        known = folded(student, seen, job)
        bits, root = job.activations, self.root

        def weights(seen: Tensor) -> Levels:
            return log_levels(seen, bits, root) if root else tensor_levels(seen, bits)

        attention = attention_levels(seen.attention, bits, weights)
        inputs = input_levels(seen, bits, known)
        return finished(student, inputs, attention, nearest_codes(student, job.weights))
