"""The engines that run an exported network, by name."""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadInput
from isthmus.memory import give_back

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from isthmus.examples import Example
    from isthmus.network import Network

    Batch = Mapping[str, np.ndarray[Any, Any]]
    Runner = Callable[[Batch], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Engine:
    """An engine: the packages that running and exporting need, and its exporter and loader (``module:function``)."""

    name: str
    runtime: tuple[str, ...]
    exporting: tuple[str, ...]
    exporter: str
    loader: str


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "openvino",
            ("openvino",),
            (),
            "isthmus.export.openvino:export_openvino",
            "isthmus.export.openvino:load_openvino",
        ),
        Engine(
            "onnxruntime",
            ("onnxruntime",),
            ("onnx", "onnxscript"),
            "isthmus.export.onnx:export_onnx",
            "isthmus.export.onnx:load_onnx",
        ),
    )
}


def find_engine(name: str) -> Engine:
    """Return an engine by name.

    Raises
    ------
    BadInput
        If there is no such engine (the nearest is suggested), or a package it needs is not installed.
    """
    engine = ENGINES.get(name)
    if engine is None:
        near = difflib.get_close_matches(name.lower(), (*ENGINES, "onnx"), n=1, cutoff=0.5)
        nearest = {"onnx": "onnxruntime"}.get(near[0], near[0]) if near else None
        hint = f"did you mean {nearest}?" if nearest else "the engines are " + ", ".join(ENGINES)
        raise BadInput(f"engine {name!r} is unknown; {hint}")
    missing = [package for package in (*engine.runtime, *engine.exporting) if importlib.util.find_spec(package) is None]
    if missing:
        raise BadInput(f"engine {name}: not installed; pip install {' '.join(missing)}")
    return engine


def export_network(network: Network, engine: str, folder: str | Path) -> Path:
    """Write a network for an engine into a folder and return the file to load."""
    export: Callable[[Network, str | Path], Path] = _resolve(find_engine(engine).exporter)
    path = export(network, folder)
    # A traced graph holds itself, and copies of the weights, in circles.
    gc.collect()
    give_back()
    return path


def load_runner(engine: str, path: str | Path, threads: int | None = None) -> Runner:
    """Open an exported network in an engine: a callable from input arrays by name to the one output."""
    load: Callable[[str | Path, int | None], Runner] = _resolve(find_engine(engine).loader)
    return load(path, threads)


def engine_batches(network: Network, examples: Sequence[Example], batch_size: int = 32) -> list[Batch]:
    """Encode examples in their given order, a batch at a time, texts each padded to the longest of the batch."""
    return [
        engine_batch(network, examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)
    ]


def engine_batch(network: Network, examples: Sequence[Example]) -> Batch:
    """Encode examples as one batch of arrays by input name."""
    from isthmus.network import encode

    return {name: tensor.numpy() for name, tensor in encode(network, examples).items()}


def pool_numpy(
    pooling: str, hidden: np.ndarray[Any, Any], attention_mask: np.ndarray[Any, Any] | None, *, normalize: bool = False
) -> np.ndarray[Any, Any]:
    """Pool an engine's output as the network would.

    Parameters
    ----------
    pooling : {"mean", "cls", "logits"}
    hidden : ndarray, shape ``(batch, tokens, width)``, or ``(batch, classes)`` for logits
        Of images also ``(batch, width, height, width of the map)``.
    attention_mask : ndarray, shape ``(batch, tokens)``, or None
        None where every token counts.
    normalize : bool
        Whether embeddings are scaled to unit length. Logits never are.

    Returns
    -------
    ndarray, shape ``(batch, width)`` or ``(batch, classes)``
    """
    import numpy as np

    pooled: np.ndarray[Any, Any]
    if pooling == "logits":
        return hidden
    if hidden.ndim == 4:
        pooled = hidden.mean((2, 3))
    elif pooling == "cls":
        pooled = hidden[:, 0]
    elif attention_mask is None:
        pooled = hidden.mean(1)
    else:
        mask = attention_mask[..., None].astype(hidden.dtype)
        pooled = (hidden * mask).sum(1) / np.maximum(mask.sum(1), 1e-9)
    if normalize:
        pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return pooled


def engine_embed(
    network: Network, engine: str, folder: str | Path, *, batch_size: int = 32, threads: int | None = None
) -> Callable[[Sequence[Example]], np.ndarray[Any, Any]]:
    """Export a network into a folder and return a function that embeds texts or images in the engine.

    Returns
    -------
    callable
        From examples to a float32 array of shape ``(examples, width)``, in the order given.
    """
    return runner_embed(network, load_runner(engine, export_network(network, engine, folder), threads), batch_size)


def runner_embed(
    network: Network, runner: Runner, batch_size: int = 32
) -> Callable[[Sequence[Example]], np.ndarray[Any, Any]]:
    """Return a function that embeds examples in an engine, to a float32 array of shape ``(examples, width)``."""

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        import torch

        return torch.from_numpy(runner({name: tensor.numpy() for name, tensor in inputs.items()}))

    def embed(examples: Sequence[Example]) -> np.ndarray[Any, Any]:
        import numpy as np

        from isthmus.continuing import text_nats
        from isthmus.examples import size_of, texts_of

        if network.continues:
            return text_nats(network, texts_of(examples, network.name), logits)
        order = sorted(range(len(examples)), key=lambda index: size_of(examples[index]))
        rows: list[Any] = [None] * len(examples)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = engine_batch(network, [examples[index] for index in places])
            mask = batch.get("attention_mask")
            pooled = pool_numpy(network.pooling, runner(batch), mask, normalize=network.normalize)
            # An engine may write its next output into the same memory, so rows are copied.
            for place, row in zip(places, pooled.astype(np.float32, copy=True), strict=True):
                rows[place] = row
        vectors: np.ndarray[Any, Any] = np.stack(rows)
        return vectors

    return embed


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
