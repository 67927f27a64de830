"""Modules that stand still: what a model computes before a place is held, and given again at every later run.

Networks without a list of layers are taken apart by the order in which their modules run. A module that has finished,
for good, before a place starts gives there what it gave before; within an `nn.Sequential` only the last such module
need be held, for nothing else reads the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.network import low_precision

MOST_BYTES = 1 << 29
"""What is held takes no more than this; where it would, the model runs as a whole."""


class Standing(nn.Module):
    """Stands where a module was and gives what it is told to; any attribute that it is asked for is the module's."""

    def __init__(self, module: nn.Module, give: Callable[..., Any]) -> None:
        super().__init__()
        # In a tuple, for neither is to become a module of this one.
        self.behind = (module, give)

    def forward(self, *entering: Any, **named: Any) -> Any:
        """Return what is held."""
        return self.behind[1](*entering, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["behind"][0], name)


class Enough(Exception):
    """The rest of the model need not run."""


@dataclass
class _Call:
    """When a module ran, by number of events, how often, and how many bytes it gave (none where that is no tensor)."""

    start: int
    end: int = -1
    times: int = 1
    size: int | None = None


@dataclass
class Early:
    """The modules of a model that run before a place, and what they gave, batch by batch.

    Parameters
    ----------
    model : Module
    inputs : sequence of dict
        The batches; only these may be run while modules stand.
    batch : callable
        Returns the number of the batch that is running, also while modules are recorded.
    estimate : bool
        As in `isthmus.relevance.resuming.Resuming`.
    """

    model: nn.Module
    inputs: Sequence[dict[str, Tensor]]
    batch: Callable[[], int]
    estimate: bool = False
    place: str = ""
    held: dict[str, list[Tensor]] = field(default_factory=dict)
    _calls: dict[str, _Call] = field(default_factory=dict)
    _whole: dict[str, nn.Module] = field(default_factory=dict)

    def start_before(self, places: Sequence[str]) -> None:
        """Let everything stand that has finished before the first of these modules starts."""
        self._calls = self._calls or self._watched()
        called = [place for place in places if place in self._calls]
        if not called or "" in called:
            self.restore()
            return
        place = min(called, key=lambda one: self._calls[one].start)
        if self.place and self._calls[place].start < self._calls[self.place].start:
            self.restore()
        holding, passing = self._before(place)
        size = sum((self._calls[name].size or 0) for name in holding)
        if place == self.place or not holding or size * len(self.inputs) > MOST_BYTES:
            return
        held = self._record(place, holding)
        self.restore()
        self.place, self.held = place, held
        for name in holding:
            self._stand(name, self._giver(name))
        for name in passing:
            self._stand(name, lambda entering, *_, **__: entering)

    def restore(self) -> None:
        """Let all modules run again."""
        for name, module in self._whole.items():
            _put(self.model, name, module)
        self._whole, self.held, self.place = {}, {}, ""

    def _giver(self, name: str) -> Callable[..., Tensor]:
        # A copy, for what reads it may change it in place.
        return lambda *_, **__: self.held[name][self.batch()].clone()

    def _stand(self, name: str, give: Callable[..., Any]) -> None:
        module = self.model.get_submodule(name)
        self._whole[name] = module
        _put(self.model, name, Standing(module, give))

    def _before(self, place: str) -> tuple[list[str], list[str]]:
        """Return the modules that can stand at a place: those whose outputs are held, and those that are passed."""
        holding: list[str] = []
        passing: list[str] = []
        start, path = self._calls[place].start, ""
        for step in place.split("."):
            parent = self.model.get_submodule(path)
            prefix = f"{path}." if path else ""
            done = [
                name
                for child, _ in parent.named_children()
                if (call := self._calls.get(name := prefix + child)) is not None
                and call.times == 1
                and 0 <= call.end < start
                and call.size is not None
            ]
            if isinstance(parent, nn.Sequential) and done:
                before = [prefix + child for child, _ in parent.named_children()]
                before = before[: before.index(prefix + step)]
                done = done if done == before else []
                passing += done[:-1]
                done = done[-1:]
            holding += done
            path = prefix + step
        return holding, passing

    def _record(self, place: str, holding: Sequence[str]) -> dict[str, list[Tensor]]:
        """Return what modules give, batch by batch, of a model that runs as far as the place."""
        found: dict[str, list[Tensor]] = {name: [] for name in holding}

        def enough(*_: Any) -> None:
            raise Enough

        def keep(name: str) -> Callable[..., None]:
            # A copy, for what comes next may change it in place.
            return lambda _, __, output: found[name].append(output.clone())

        handles = [self.model.get_submodule(name).register_forward_hook(keep(name)) for name in holding]
        handles.append(self.model.get_submodule(place).register_forward_pre_hook(enough))
        try:
            with torch.inference_mode(), low_precision(None if self.estimate else False):
                for inputs in self.inputs:
                    try:
                        self.model(**inputs)
                    except Enough:
                        continue
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _watched(self) -> dict[str, _Call]:
        """Run the first batch and return when each module ran."""
        calls: dict[str, _Call] = {}
        events = iter(range(1 << 30))

        def enter(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                now = next(events)
                if name in calls:
                    calls[name].times += 1
                else:
                    calls[name] = _Call(now)

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                calls[name].end = next(events)
                calls[name].size = output.numel() * output.element_size() if isinstance(output, Tensor) else None

            return hook

        handles: list[Any] = []
        try:
            for name, module in self.model.named_modules():
                handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
            with torch.inference_mode(), low_precision(None if self.estimate else False):
                self.model(**self.inputs[0])
        finally:
            for handle in handles:
                handle.remove()
        return calls


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
