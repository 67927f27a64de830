"""RepQuant: RepQ-ViT with ends that are clipped one by one, and weights set anew for what is rounded before them.

Li et al. 2024, arXiv 2402.05628. Levels of a channel are clipped at either end by itself (quantile-based outliers are
many at one end), then folded away as in RepQ-ViT. Weights are then reconstructed map by map, in the order in which they
run: with ``x`` what enters a map in the whole network and ``y`` what enters it rounded, with all before it rounded too,
weights move to the minimum of ``||W x - V y||^2 + damping ||V - W||^2``, in closed form, their bias to the mean
difference that is left; their rounding is then error feedback on ``y`` (the paper alternates rounding and least squares
over halves of the columns; feedback does so column by column).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.bottlenecks.bits.after_training.folding import folded
from isthmus.bottlenecks.bits.after_training.levels import log_levels
from isthmus.bottlenecks.bits.after_training.method import (
    Job,
    attention_levels,
    code_of,
    copied,
    finished,
    input_levels,
)
from isthmus.bottlenecks.bits.after_training.observing import BATCH, layers_of, observe
from isthmus.bottlenecks.bits.rounded_attention import set_levels
from isthmus.network import Network, encode, outputs
from isthmus.storage.coded import Coded, decode
from isthmus.storage.rounding import Even, RoundedLinear, round_inputs


@dataclass(frozen=True)
class RepQuant:
    """Dual clipping, scale reparameterization and weight reconstruction.

    Parameters
    ----------
    dual : bool
        Clip either end by itself.
    reconstruct : bool
        Set weights anew.
    damping : float
        How strongly weights are held where they are, as a share of the mean square of what enters.
    """

    name: str = "repquant"
    slug: str | None = "repquant"
    dual: bool = True
    reconstruct: bool = True
    damping: float = 0.1

    def rounded(self, job: Job) -> Network:
        """Return the rounded network."""
        student = copied(job.network)
        layers = layers_of(student)
        seen = observe(student, job.examples, layers)
        bits = job.activations
        known = folded(student, seen, job, dual=self.dual)
        attention = attention_levels(seen.attention, bits, lambda weights: log_levels(weights, bits), dual=self.dual)
        inputs = input_levels(seen, bits, known, dual=self.dual)
        whole = observe(student, job.examples, layers).inputs  # of the folded network
        set_levels(student.model, attention)
        codes: dict[str, Coded] = {}
        for path in whole:  # in the order in which they ran
            self._code(student, path, inputs[path], whole[path], job, codes)
        return finished(student, {}, attention, codes)

    def _code(
        self, student: Network, path: str, levels: Even, exact: Tensor, job: Job, codes: dict[str, Coded]
    ) -> None:
        """Round what enters a map and its weights, in place; add its code."""
        round_inputs(student.model, {path: levels})
        own = student.model.get_submodule(path)
        assert isinstance(own, RoundedLinear)
        weight = own.weight.detach().double()
        moments = None
        if self.reconstruct:
            entered = levels(_entering(student, path, job)).double()
            gram = entered.T @ entered / len(entered)
            damped = gram + self.damping * gram.diagonal().mean() * torch.eye(len(gram))
            cross = entered.T @ (exact.double() - entered) / len(entered)
            weight = weight + torch.linalg.solve(damped, cross @ weight.T).T
            moments = gram.float().numpy()
        code = code_of(weight.float().numpy(), job.weights, moments)
        decoded = torch.from_numpy(decode(code))
        if self.reconstruct and own.bias is not None:
            left = exact.mean(0) @ own.weight.detach().T - entered.float().mean(0) @ decoded.T
            own.bias.data.add_(left)
        own.weight = nn.Parameter(decoded)
        codes[f"{path}.weight"] = code


def _entering(student: Network, path: str, job: Job) -> Tensor:
    """Return what enters a map of the student as it is, ``(rows, columns)``, before it is rounded."""
    rows: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        rows.append(args[0].reshape(-1, args[0].shape[-1]))

    handle = student.model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            for start in range(0, len(job.examples), BATCH):
                outputs(student, encode(student, job.examples[start : start + BATCH]))
    finally:
        handle.remove()
    return torch.cat(rows)
