"""ONNX: export in float32 and run in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.wrapper import export_program, quiet

if TYPE_CHECKING:
    import numpy as np

    from isthmus.network import Network

FILE = "model.onnx"


def export_onnx(network: Network, folder: str | Path) -> Path:
    """Write a network as ``model.onnx`` (large weights beside it), float32, with free batch and length.

    Returns
    -------
    Path
        The ``.onnx`` file.
    """
    import torch

    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    program = export_program(network)
    with quiet():
        torch.onnx.export(program, (), str(path), dynamo=True, verbose=False)
    return path


def load_onnx(
    path: str | Path, threads: int | None = None
) -> Callable[[Mapping[str, np.ndarray[Any, Any]]], np.ndarray[Any, Any]]:
    """Open an exported network in ONNX Runtime; parameters and result as for OpenVINO's loader."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait by spinning would take the cores from whatever is timed next to this.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        output: np.ndarray[Any, Any] = session.run(None, {name: inputs[name] for name in names})[0]
        return output

    return run
