"""Sensitivity: what an error in each weight of a matrix costs, in nats, to second order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isthmus.examples import Example, texts_of
from isthmus.network import outputs
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import Probe, count_of
from isthmus.relevance.statistics import MICRO, sampled_loss

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """The diagonal of a matrix's Fisher information, as a factor of its rows times a factor of its columns.

    An error ``e`` of shape ``(rows, columns)`` is predicted to cost ``1/2 sum(rows[i] * columns[j] * e[i, j] ** 2)``
    nats an example. Of a linear map the rows' factor is the mean square of the loss's derivative by its outputs, summed
    over an example's tokens, and the columns' that of its inputs (Martens and Grosse 2015, the diagonals of their
    factors); of an embedding the rows' factor is how often a text holds the token, and the columns' the mean square of
    the derivative. Rows of other embeddings (positions) count alike: texts may be longer than those at hand.

    Parameters
    ----------
    rows : ndarray, shape ``(rows,)``
    columns : ndarray, shape ``(columns,)``
    """

    rows: Doubles
    columns: Doubles


def collect_sensitivity(
    probe: Probe,
    matrices: Sequence[str],
    examples: Sequence[Example],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Sensitivity]:
    """Return the sensitivity of the named weights, each that of an ``nn.Linear`` or ``nn.Embedding``.

    Labels are drawn from the network's own outputs, as for the Fisher information of gates.

    Parameters
    ----------
    matrices : sequence of str
        Names of parameters.
    examples : sequence of str or of Image
        How often tokens occur is counted in these, where they are texts.
    """
    model = probe.network.model
    now = [0]
    watched = {name: _Watched(model.get_submodule(name.rpartition(".")[0]), now) for name in matrices}
    generator = torch.Generator().manual_seed(seed)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    handles: list[Any] = [
        table.register_forward_hook(lambda _, __, output: output.requires_grad_(True)) for table in tables
    ]
    handles += [one.module.register_forward_hook(one.see) for one in watched.values()]
    count = 0
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        parts = [(x, start) for x in probe.inputs for start in range(0, count_of(x), MICRO)]
        for number, (x, start) in enumerate(parts):
            part = {name: tensor[start : start + MICRO] for name, tensor in x.items()}
            now[0] = count_of(part)
            if now[0] < 3:
                continue
            # Of texts gradients start at the embeddings; an image is where they start itself.
            part = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in part.items()}
            output = outputs(probe.network, part)
            sampled_loss(output, probe.network.pooling, generator).backward()  # type: ignore[no-untyped-call]
            count += len(output)
            progress("sensitivity", number + 1, len(parts))
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    words = frequency = None
    if probe.network.images is None:
        words = model.get_input_embeddings()  # type: ignore[operator]
        frequency = token_frequency(probe.network.tokenizer, texts_of(examples, "sensitivity"))
    return {
        name: one.factors(max(count, 1), frequency if one.module is words else None) for name, one in watched.items()
    }


def token_frequency(tokenizer: Any, texts: Sequence[str]) -> Doubles:
    """Return how often a text holds each token, shape ``(tokens,)``; one never seen counts as seen in half a text."""
    counts = np.zeros(len(tokenizer))
    for start in range(0, len(texts), 1024):
        for ids in tokenizer(list(texts[start : start + 1024]))["input_ids"]:
            np.add.at(counts, np.asarray(ids, dtype=int), 1)
    return np.asarray(np.maximum(counts, 0.5) / max(len(texts), 1))


class _Watched:
    """Adds up the squares of what enters a module and of the derivatives by what leaves it."""

    def __init__(self, module: nn.Module, examples: list[int]) -> None:
        self.module, self.examples = module, examples
        self.tokens = 0
        self.entered: Tensor | float = 0.0
        self.left: Tensor | float = 0.0

    def see(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        entered = None if isinstance(module, nn.Embedding) else args[0].detach()

        def backward(gradient: Tensor) -> None:
            self.left = self.left + gradient.double().square().flatten(0, -2).sum(0)
            # Positions may be looked up once for all examples; what comes back is then their sum.
            shared = self.examples[0] if entered is None and gradient.shape[0] == 1 else 1
            self.tokens += gradient[..., 0].numel() * shared
            if entered is not None:
                self.entered = self.entered + entered.double().square().flatten(0, -2).sum(0)

        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    def factors(self, examples: int, frequency: Doubles | None) -> Sensitivity:
        module: Any = self.module
        rows, columns = module.weight.shape
        left = np.asarray(self.left) if self.tokens else np.zeros(rows)  # a matrix that the output never sees
        if isinstance(module, nn.Embedding):
            known = np.ones(rows) if frequency is None else frequency[:rows]
            return Sensitivity(known, left / self.tokens if self.tokens else np.zeros(columns))
        entered = np.asarray(self.entered) / self.tokens if self.tokens else np.zeros(columns)
        return Sensitivity(left / examples, entered)


def predicted_nats(sensitivity: Mapping[str, Sensitivity], errors: Mapping[str, npt.NDArray[np.float32]]) -> float:
    """Return what errors in several matrices are predicted to cost together, in nats an example."""
    total = 0.0
    for name, error in errors.items():
        own = sensitivity[name]
        total += 0.5 * float(own.rows @ (error.astype(np.float64) ** 2) @ own.columns)
    return total
