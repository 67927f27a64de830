"""Resuming: what happens in a late layer is measured without running the layers before it again.

Sites and matrices are measured one at a time, with all else as it was, so what enters the layer of each is the same at
every measurement. It is held once, and the layers before stand still; in a network without a list of layers, the
modules that run before a site (`isthmus.relevance.standing`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.network import low_precision
from isthmus.relevance.probe import Probe
from isthmus.relevance.standing import Early, Enough, Standing
from isthmus.sites import LAYERS, Site


class Resuming:
    """A probe's model that starts at a layer; within ``with``, after which the model is as it was.

    Parameters
    ----------
    probe : Probe
        Only its own inputs may be run meanwhile.
    sites : sequence of Site
        The site of the layers among them says where these are.
    estimate : bool
        Whether measurements are estimates, which compute in bfloat16 where that is faster.
    """

    def __init__(self, probe: Probe, sites: tuple[Site, ...], *, estimate: bool = False) -> None:
        model = probe.network.model
        site = next((site for site in sites if site.kind == LAYERS), None)
        found = model.get_submodule(site.module) if site is not None else None
        self.layers: Any = found if isinstance(found, nn.ModuleList) else []
        self.probe, self.path, self.estimate = probe, site.module if site is not None else "", estimate
        self.whole = list(self.layers)
        self.first = 0
        self.batch = -1
        self.held: list[Any] = []
        self.numbers = {id(_leading(inputs)): number for number, inputs in enumerate(probe.inputs)}
        self.early = Early(model, probe.inputs, lambda: self.batch, estimate)
        self._hook: Any = None

    def __enter__(self) -> Resuming:
        self._hook = self.probe.network.model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        self._restore(0)
        self.early.restore()
        self.held = []

    def _note(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.batch = self.numbers[id(_leading(kwargs))]

    def _given(self, *_: Any, **__: Any) -> Any:
        return self.held[self.batch]

    def _restore(self, first: int) -> None:
        for index, layer in enumerate(self.whole):
            self.layers[index] = Standing(layer, self._given) if index < first else layer
        self.first = first

    def layer_of(self, parameter: str) -> int:
        """Return the layer that a parameter belongs to; 0 for one that belongs to none."""
        rest = parameter.removeprefix(f"{self.path}.")
        head = rest.partition(".")[0]
        return int(head) if rest != parameter and head.isdigit() else 0

    def start_for(self, site: Site) -> None:
        """Let the model start where a site's gates are."""
        if len(self.layers):
            self.start_at(site.layer)
        else:
            self.early.start_before([gate.module for gate in site.gates])

    def start_at(self, layer: int | None) -> None:
        """Let the model start at a layer, the weights before it as they are now; at its beginning for 0 or None."""
        wanted = layer or 0
        if wanted == self.first or not len(self.layers):
            return
        if wanted < self.first:
            self._restore(0)
        if wanted:
            self.held = self._entering(wanted)
        self._restore(wanted)

    def _entering(self, layer: int) -> list[Any]:
        """Return what the layer before gives, batch by batch."""
        found: list[Any] = []

        def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            found.append(output)
            raise Enough

        handle = self.layers[layer - 1].register_forward_hook(keep)
        try:
            with torch.inference_mode(), low_precision(None if self.estimate else False):
                for inputs in self.probe.inputs:
                    try:
                        self.probe.network.model(**inputs)
                    except Enough:
                        continue
        finally:
            handle.remove()
        return found


def _leading(inputs: dict[str, Any]) -> Tensor | None:
    """Return the tensor that a batch is known by."""
    return next((value for value in inputs.values() if isinstance(value, Tensor)), None)
