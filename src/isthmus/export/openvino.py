"""OpenVINO: export in float32 and run on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.wrapper import export_program, quiet

if TYPE_CHECKING:
    import numpy as np

    from isthmus.network import Network

FILE = "openvino_model.xml"
COMPUTES = ("isthmus", "computes")
"""Where a file says what it is to be computed in, if not in float32."""
HINTS = {"float32": "f32", "bfloat16": "bf16"}


def export_openvino(network: Network, folder: str | Path) -> Path:
    """Write a network as ``openvino_model.xml`` and ``.bin``, float32, with free batch and length.

    Returns
    -------
    Path
        The ``.xml`` file.
    """
    # The converter sends usage statistics where this package can be imported, and falls back to a stub otherwise.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    program = export_program(network)
    with quiet():
        graph = openvino.convert_model(program)
        openvino.save_model(graph, path, compress_to_fp16=False)
    return path


def save_halved(whole: str | Path, folder: str | Path, computes: str) -> Path:
    """Write an exported network again with its weights in float16, to be computed in float32 or bfloat16.

    Parameters
    ----------
    whole : str or Path
        The ``.xml`` file that `export_openvino` wrote.
    folder : str or Path
    computes : {"float32", "bfloat16"}
        `load_openvino` reads it from the file.

    Returns
    -------
    Path
        The ``.xml`` file.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = openvino.Core().read_model(str(whole))
    graph.set_rt_info(computes, list(COMPUTES))
    with quiet():
        openvino.save_model(graph, path, compress_to_fp16=True)
    return path


def has_bfloat16() -> bool:
    """Return whether OpenVINO multiplies bfloat16 on this processor; where it does not, it computes in float32."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load_openvino(
    path: str | Path, threads: int | None = None
) -> Callable[[Mapping[str, np.ndarray[Any, Any]]], np.ndarray[Any, Any]]:
    """Compile an exported network for the CPU.

    Arithmetic is float32 unless the file asks for bfloat16: left to itself, OpenVINO would take that where the CPU has
    it.

    Parameters
    ----------
    path : str or Path
        The ``.xml`` file.
    threads : int, optional
        How many threads it may use; as many as there are cores when None.

    Returns
    -------
    callable
        Takes arrays of shape ``(batch, length)`` by input name (those it does not know are left out) and returns the
        one output.
    """
    import openvino

    core = openvino.Core()
    graph = core.read_model(str(path))
    asked = graph.get_rt_info(list(COMPUTES)).astype(str) if graph.has_rt_info(list(COMPUTES)) else "float32"
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS.get(asked, HINTS["float32"]),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(graph, "CPU", options)
    names = {port.get_any_name() for port in compiled.inputs}
    request = compiled.create_infer_request()

    def run(inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        output: np.ndarray[Any, Any] = request.infer({name: inputs[name] for name in names})[0]
        return output

    return run
