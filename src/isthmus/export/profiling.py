"""Where time goes within a network as OpenVINO runs it: the engine's own counters, added up by module."""

from __future__ import annotations

import copy
import inspect
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.export.wrapper import quiet

if TYPE_CHECKING:
    import torch

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Profile:
    """Seconds by module path, of the modules that ran something themselves; ``""`` is the network itself.

    ``elsewhere`` are the seconds of what could be laid to no module; ``wall`` those of a whole run.
    """

    modules: Mapping[str, float]
    elsewhere: float
    wall: float


class Counted:
    """A network made ready in OpenVINO with counters, for inputs of these very shapes.

    Parameters
    ----------
    model : nn.Module
    inputs : mapping of str to Tensor
        Keyword arguments of the model.
    past : sequence of Tensor, optional
        Keys and values of each layer in turn, each ``(batch, heads, tokens, head size)``: the model then runs as a
        decoder that goes on from them.
    threads : int, optional
        Of the engine; as many as there are cores when None.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        past: Sequence[torch.Tensor] = (),
        *,
        dtype: str = "float32",
        threads: int | None = None,
    ) -> None:
        # The converter sends usage statistics where this package can be imported, and falls back to a stub otherwise.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino
        import torch
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        given = (dict(inputs), list(past))
        with torch.no_grad(), quiet():
            program = torch.export.export(_as_step(_folded(model)), given)
            decoder = TorchFXPythonDecoder.from_exported_program(program)
            graph = openvino.convert_model(decoder)
        self.modules = _modules_of(decoder.pt_module)
        self.graph, self.dtype, self.threads = graph, dtype, threads
        flat = [*inputs.values(), *past]
        self.feeds = [tensor.detach().numpy() for tensor in flat]

    def _owners(self, compiled: Any) -> dict[str, str | None]:
        """Return by node the module it belongs to: that of most of what it was fused from, or of what it reads."""
        owners: dict[str, str | None] = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            found = [
                self.modules[part]
                for part in (name.partition("/")[0] for name in original_names(node))
                if part in self.modules
            ]
            heavy = [path for path, kind in found if kind]
            paths = heavy or [path for path, _ in found]
            if paths:
                owners[node.get_friendly_name()] = Counter(paths).most_common(1)[0][0]
                continue
            read = [
                owners.get(node.input_value(index).get_node().get_friendly_name())
                for index in range(node.get_input_size())
            ]
            owners[node.get_friendly_name()] = next((path for path in read if path is not None), None)
        return owners

    def rounds(self, count: int) -> list[tuple[dict[str, float], float]]:
        """Compile, run ``count`` times, and return for each run seconds by module and in all.

        What belongs to no module goes by the name ``?``.
        """
        compiled = compile_counted(self.graph, self.dtype, self.threads)
        owner = self._owners(compiled)
        nodes, walls = counted_rounds(compiled, self.feeds, count)
        found: list[tuple[dict[str, float], float]] = [({}, wall) for wall in walls]
        for node, times in nodes.items():
            path = owner.get(node)
            for (modules, _), seconds in zip(found, times.tolist(), strict=True):
                name = "?" if path is None else path
                modules[name] = modules.get(name, 0.0) + seconds
        return found


def summarise(rounds: Sequence[tuple[Mapping[str, float], float]]) -> Profile:
    """Return the profile of many runs: by module the mean of the fastest sixteenth."""
    from isthmus.export.probing import low_mean

    paths = sorted({path for found, _ in rounds for path in found})
    times = low_mean(np.array([[found.get(path, 0.0) for path in paths] + [wall] for found, wall in rounds]))
    modules = dict(zip(paths, times[:-1].tolist(), strict=True))
    return Profile(modules, modules.pop("?", 0.0), float(times[-1]))


def _as_step(model: torch.nn.Module) -> torch.nn.Module:
    import torch

    # The converter cannot extend an empty cache, so that a pass without a past keeps none.
    alone = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: dict[str, torch.Tensor], past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            if not past:
                return (_first(self.inner(**inputs, **alone)),)
            output = self.inner(**inputs, past_key_values=filled_cache(past), use_cache=True)
            held = output.past_key_values.layers
            return (_first(output), *(tensor for layer in held for tensor in (layer.keys, layer.values)))

    return Step().eval()


def _folded(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model whose batch norms are part of the convolutions before them.

    The engine does so itself, but then no longer knows which convolution a node was.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model.eval()
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        children = list(module.named_children())
        for (name, first), (after, second) in pairwise(children):
            if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, after, torch.nn.Identity())
    return model


def filled_cache(past: Sequence[torch.Tensor]) -> Any:
    """Return a cache of transformers that holds keys and values of each layer in turn, without copying them."""
    from transformers.cache_utils import Cache, DynamicLayer

    layers = []
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)


def _first(output: Any) -> Any:
    found = getattr(output, "logits", None)
    return output[0] if found is None else found


def _modules_of(graph: Any) -> dict[str, tuple[str, bool]]:
    """Return by operator the path of its module, and whether it is what a fused node is named for."""
    found = {}
    for node in graph.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.op == "call_function" and stack:
            path = stack[-1][0]
            path = path[len("inner") :].lstrip(".") if path.startswith("inner") else ""
            heavy = any(word in str(node.target) for word in _HEAVY)
            found[node.name] = (path, heavy)
    return found


_HEAVY = ("linear", "mm", "conv", "attention", "norm")


def compile_counted(graph: Any, dtype: str = "float32", threads: int | None = None) -> Any:
    """Compile an OpenVINO graph for the CPU, with counters of each node's time."""
    import openvino

    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
        # Not bound to one core, so that the threads can leave one that other work has taken.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(graph, "CPU", options)


def counted_rounds(
    compiled: Any, feeds: Sequence[np.ndarray[Any, Any]], count: int
) -> tuple[dict[str, np.ndarray[Any, Any]], list[float]]:
    """Run a network that was just compiled with counters; return seconds by node, shape ``(count,)``, and of each run.

    The engine's counters are averages over all runs since it compiled, in whole microseconds. What one run took is the
    difference of two sums, off by as many microseconds as there were runs; so runs are few, and nodes that take little
    are given their mean over these runs. The first run, in which kernels are made, does not count.
    """
    request = compiled.create_infer_request()
    sums: list[dict[str, float]] = []
    walls = []
    for turn in range(count + 1):
        start = time.perf_counter()
        request.infer(feeds)
        walls.append(time.perf_counter() - start)
        # Each run's time is cut to whole microseconds: of each, half of one is missing on average.
        sums.append({name: (mean + 0.5e-6) * (turn + 1) for name, mean in node_means(request).items()})
    found = {}
    for name in sums[-1]:
        times = np.diff([one.get(name, 0.0) for one in sums])
        mean = float(times.mean())
        found[name] = np.full(count, mean) if mean < _LITTLE else np.maximum(times, 0.0)
    return found, walls[1:]


_LITTLE = 6e-5  # seconds: below, the counters' steps show


def node_means(request: Any) -> dict[str, float]:
    """Return the mean seconds of each node over all inferences since its network was compiled with counters."""
    seconds: dict[str, float] = {}
    for node in request.get_profiling_info():
        if node.status == node.Status.EXECUTED:
            seconds[node.node_name] = seconds.get(node.node_name, 0.0) + node.real_time.total_seconds()
    return seconds


def original_names(node: Any) -> tuple[str, ...]:
    """Return the operators of the graph that a node of the compiled network carries out."""
    info = node.get_rt_info()
    text = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
    return tuple(filter(None, text.split(",")))


def node_type(node: Any) -> str:
    """Return what a node of the compiled network does, such as FullyConnected."""
    info = node.get_rt_info()
    return str(info["layerType"].astype(str)) if "layerType" in info else ""
