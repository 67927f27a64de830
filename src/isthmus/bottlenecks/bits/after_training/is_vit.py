"""I&S-ViT: attention weights by shifted powers of two, and levels set in three stages of short training.

Zhong et al. 2023, arXiv 2311.10126. Attention weights get the shift-uniform-log2 quantizer (equations 8 to 10). Layer
by layer, towards what the layer gives in the whole network: (1) what norms give is rounded channel by channel, weights
stay exact and are trained; (2) channels' levels are folded away, which changes nothing; (3) weights are rounded too and
trained on their grid. Gradients pass rounding as if there were none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.bottlenecks.bits.after_training.folding import fold
from isthmus.bottlenecks.bits.after_training.levels import channel_levels, rounded, shift_log_levels
from isthmus.bottlenecks.bits.after_training.method import (
    Job,
    attention_levels,
    code_of,
    copied,
    finished,
    input_levels,
)
from isthmus.bottlenecks.bits.after_training.observing import BATCH, Seen, layers_of, linear_maps, observe
from isthmus.bottlenecks.bits.grid import rounded as to_integers
from isthmus.bottlenecks.bits.rounded_attention import set_levels
from isthmus.errors import BadInput
from isthmus.network import Network, encode, outputs
from isthmus.storage.coded import Coded, Uniform, decode
from isthmus.storage.rounding import Even, Through

Rounder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class IsVit:
    """Shift-uniform-log2 attention weights, and smooth optimization in three stages.

    Parameters
    ----------
    steps : int
        Of each of the two stages that train, for each layer.
    batch : int
    learning_rate : float
        Of AdamW; a tenth of it where weights are on their grid.
    staged : bool
        False: channels' levels are folded and weights rounded before any training, which then takes both stages' steps.
    """

    name: str = "is-vit"
    slug: str | None = "is-vit"
    steps: int = 100
    batch: int = 32
    learning_rate: float = 3e-4
    staged: bool = True

    def rounded(self, job: Job) -> Network:
        """Return the rounded network."""
        student = copied(job.network)
        layers = layers_of(student)
        seen = observe(student, job.examples, layers)
        bits = job.activations
        attention = attention_levels(seen.attention, bits, lambda weights: shift_log_levels(weights, bits))
        inputs, codes = input_levels(seen, bits, {}), dict[str, Coded]()
        set_levels(student.model, attention)
        streams = _streams(job.network, layers, job)
        entering = streams[0]
        generator = torch.Generator().manual_seed(job.seed)
        stack: Any = student.model.get_submodule(layers)
        for index, layer in enumerate(stack):
            prefix = f"{layers}.{index}."
            run = _Layer(self, student, layer, prefix, seen, inputs, bits, generator)
            own = run.coded(entering, streams[index + 1], job.weights)
            inputs.update(run.shared)
            codes.update(own)
            with torch.no_grad():
                entering = run.gives(entering, {path: inputs[path] for path in run.maps})
        return finished(student, inputs, attention, codes)


class _Layer:
    """One layer on its way through the stages."""

    def __init__(
        self,
        method: IsVit,
        student: Network,
        layer: nn.Module,
        prefix: str,
        seen: Seen,
        inputs: dict[str, Even],
        bits: int,
        generator: torch.Generator,
    ) -> None:
        self.method, self.student, self.layer, self.bits, self.generator = method, student, layer, bits, generator
        self.maps = {
            p: m for p, m in linear_maps(student.model, prefix.rsplit(".", 2)[0]).items() if p.startswith(prefix)
        }
        self.rounders: dict[str, Rounder] = {path: inputs[path] for path in self.maps}
        self.norms = {norm: readers for norm, readers in seen.readers.items() if norm.startswith(prefix) and readers}
        self.channels = {norm: channel_levels(seen.inputs[readers[0]], bits) for norm, readers in self.norms.items()}
        self.shared: dict[str, Even] = {}

    def coded(self, entering: Tensor, wanted: Tensor, bits: int) -> dict[str, Coded]:
        """Take the stages, in place, and return the codes of the weights."""
        method = self.method
        if method.staged:
            for norm, (step, zero) in self.channels.items():
                by_channel = self._by_channel(step, zero)
                self.rounders.update(dict.fromkeys(self.norms[norm], by_channel))
            self._train(entering, wanted, method.steps, method.learning_rate, None)
        for norm, (step, zero) in self.channels.items():
            shared = fold(self.student.model, norm, self.norms[norm], step, zero, self.bits)
            self.shared.update(dict.fromkeys(self.norms[norm], shared))
        self.rounders.update(self.shared)
        exponents = {path: code_of(one.weight.detach().numpy(), bits) for path, one in self.maps.items()}
        steps = method.steps if method.staged else 2 * method.steps
        self._train(entering, wanted, steps, 0.1 * method.learning_rate, exponents)
        codes = {}
        for path, one in self.maps.items():
            codes[f"{path}.weight"] = _on_grid(one.weight.detach().numpy(), exponents[path])
            one.weight = nn.Parameter(torch.from_numpy(decode(codes[f"{path}.weight"])))
        return codes

    def _by_channel(self, step: Tensor, zero: Tensor) -> Rounder:
        return lambda values: rounded(values, step, zero, self.bits)

    def gives(self, entering: Tensor, rounders: dict[str, Even]) -> Tensor:
        """Return what the layer gives, ``(images, tokens, width)``, its inputs rounded."""
        self.rounders.update(rounders)
        return torch.cat([self._run(part, None) for part in torch.split(entering, self.method.batch)])

    def _run(self, stream: Tensor, grids: dict[str, Coded] | None) -> Tensor:
        """Run the layer with rounded inputs, and weights on their grids where there are any."""
        handles: list[Any] = []
        held: dict[str, nn.Parameter] = {}
        for path, one in self.maps.items():
            handles.append(one.register_forward_pre_hook(self._hook(self.rounders[path])))
            if grids is not None:
                held[path] = one.get_parameter("weight")
                near = torch.from_numpy(decode(_on_grid(one.weight.detach().numpy(), grids[path])))
                del one._parameters["weight"]
                near = Through.apply(held[path], near)  # type: ignore[no-untyped-call]
                vars(one)["weight"] = near  # no parameter for a while
        try:
            output = self.layer(stream)
        finally:
            for handle in handles:
                handle.remove()
            for path, weight in held.items():
                del vars(self.maps[path])["weight"]
                self.maps[path].register_parameter("weight", weight)
        given: Tensor = output[0] if isinstance(output, tuple) else output
        return given

    def _hook(self, rounder: Rounder) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.no_grad():
                near = rounder(args[0])
            if not (torch.is_grad_enabled() and args[0].requires_grad):
                return (near,)
            return (Through.apply(args[0], near),)  # type: ignore[no-untyped-call]

        return hook

    def _train(self, entering: Tensor, wanted: Tensor, steps: int, rate: float, grids: dict[str, Coded] | None) -> None:
        parameters = [parameter for parameter in self.layer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for step in range(steps):
            rows = torch.randint(len(entering), (min(self.method.batch, len(entering)),), generator=self.generator)
            loss = F.mse_loss(self._run(entering[rows], grids), wanted[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.step()


def _on_grid(weight: np.ndarray[Any, np.dtype[np.float32]], grid: Coded) -> Coded:
    """Return the code of weights on the scales of another code."""
    assert isinstance(grid, Uniform)
    top = int(np.abs(grid.integers).max())
    return replace(grid, integers=to_integers(weight, grid.scales[0], top))


def _streams(network: Network, layers: str, job: Job) -> list[Tensor]:
    """Return what enters the first layer and what each gives, ``(images, tokens, width)``.

    Raises
    ------
    BadInput
        If layers are called with more than the stream.
    """
    found: dict[int, list[Tensor]] = {}
    stack: Any = network.model.get_submodule(layers)

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not args:
            raise BadInput(f"is-vit: layers of {network.name} are called by names; it trains those that take a stream")
        found.setdefault(0, []).append(args[0])

    def after(place: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found.setdefault(place, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [stack[0].register_forward_pre_hook(before)]
    handles += [layer.register_forward_hook(after(place + 1)) for place, layer in enumerate(stack)]
    try:
        with torch.no_grad():
            for start in range(0, len(job.examples), BATCH):
                outputs(network, encode(network, job.examples[start : start + BATCH]))
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(found[place]) for place in range(len(stack) + 1)]
