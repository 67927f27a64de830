"""Quantized exports: a network, narrowed or not, in fewer bits, as the engine that will run it computes them.

=========== ========= ===============================================================================
engine      precision what is in the file, and what is computed
=========== ========= ===============================================================================
any         float32   as `isthmus.export.engines.export_network` writes it
openvino    float16   weights in float16, computed in float32
openvino    bfloat16  weights in float16, computed in bfloat16, where the processor multiplies it
openvino    w8a8      weights and activations of 8 bits, products in integers; calibrated on examples
openvino    int8      weights of 8 bits, a scale for each output
openvino    int4      weights of 4 bits, a scale for each group of inputs
onnxruntime int8      weights of 8 bits; activations rounded to 8 bits as they come, products in integers
=========== ========= ===============================================================================

What is written opens with `isthmus.export.engines.load_runner` and is timed by `isthmus.export.timing`, as float32
exports are. How fast a precision is depends on the processor; nothing is assumed of it here.
"""

from __future__ import annotations

import difflib
import gc
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isthmus.errors import BadInput
from isthmus.export.engines import engine_batches, export_network, find_engine
from isthmus.memory import give_back
from isthmus.network import saturates_int8
from isthmus.storage.rounding import rounded_inputs

if TYPE_CHECKING:
    from isthmus.examples import Example
    from isthmus.export.engines import Batch
    from isthmus.network import Network

FLOAT = "float32"
CALIBRATED = "w8a8"
BFLOAT16 = "bfloat16"
HALVES = {"float16": FLOAT, BFLOAT16: BFLOAT16}
"""Precisions whose weights are held in float16, and what each computes in."""
PRECISIONS: dict[str, tuple[str, ...]] = {
    "openvino": (FLOAT, *HALVES, "w8a8", "int8", "int4"),
    "onnxruntime": (FLOAT, "int8"),
}
CALIBRATION_EXAMPLES = 128
GROUP = 32
"""Inputs that share a scale in ``int4``."""


def check_precision(engine: str, precision: str) -> None:
    """Check, before any work, that an engine can be given a precision here.

    Raises
    ------
    BadInput
        If the engine or the precision is unknown (the nearest is suggested), a package is not installed, or this
        processor does not compute in it, so that the engine would fall back to float32.
    """
    find_engine(engine)
    known = PRECISIONS[engine]
    if precision not in known:
        near = difflib.get_close_matches(precision.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "it has " + ", ".join(known)
        raise BadInput(f"precision {precision!r} is unknown to {engine}; {hint}")
    if precision == BFLOAT16:
        from isthmus.export.openvino import has_bfloat16

        if not has_bfloat16():
            raise BadInput(
                f"precision {precision}: this processor does not multiply it, and {engine} would compute in {FLOAT}; "
                "give float16, which halves the file just so"
            )
    if engine == "openvino" and precision not in (FLOAT, *HALVES) and importlib.util.find_spec("nncf") is None:
        raise BadInput(f"precision {precision}: nncf is not installed; pip install 'isthmus[quantized]'")


def export_quantized(
    network: Network,
    engine: str,
    precision: str,
    examples: Sequence[Example],
    path: str | Path,
    *,
    group: int = GROUP,
    whole: Path | None = None,
) -> Path:
    """Write a network for an engine in a precision and return the file to load.

    Parameters
    ----------
    network : Network
        Structurally narrowed or not; it is left as it is.
    engine : {"openvino", "onnxruntime"}
    precision : str
        One of ``PRECISIONS[engine]``.
    examples : sequence of str or of Image
        What ``w8a8`` is calibrated on: the kind of text or image that the network will read, 128 spread evenly over
        those given. The other precisions look at weights only and take none.
    path : str or Path
        A folder.
    group : int
        Inputs that share a scale in ``int4``.
    whole : Path, optional
        The network's float32 export for this engine, where there is one already.

    Returns
    -------
    Path
        The file, with its weights beside it or within.

    Raises
    ------
    BadInput
        If engine or precision is unknown, a package is not installed, there are no examples to calibrate on, the
        network has no tokenizer to read them with or rounds activations by itself, the group is below 1, or this
        processor does not compute in the precision.
    """
    check_precision(engine, precision)
    if group < 1:
        raise BadInput(f"group {group}: is no number of inputs; give for example 32")
    if precision == FLOAT:
        return export_network(network, engine, path)
    if rounded_inputs(network.model):
        raise BadInput(f"precision {precision}: {network.name} rounds its activations itself; export it in {FLOAT}")
    batches = _calibration(network, examples) if precision == CALIBRATED else []
    with tempfile.TemporaryDirectory(prefix="isthmus-quantized-") as folder:
        whole = export_network(network, engine, folder) if whole is None else whole
        if precision in HALVES:
            from isthmus.export.openvino import save_halved

            written = save_halved(whole, path, HALVES[precision])
        elif engine == "openvino":
            from isthmus.export.quantized_openvino import quantize_openvino

            written = quantize_openvino(whole, path, precision, batches, group=group, transformer=_transformer(network))
        else:
            from isthmus.export.quantized_onnx import quantize_onnx

            written = quantize_onnx(whole, path, reduce_range=saturates_int8())
    gc.collect()
    give_back()
    return written


def _transformer(network: Network) -> bool:
    """Return whether a network is made of attention, which is hard to round, rather than of convolutions alone."""
    from torch import nn

    return any(isinstance(module, nn.LayerNorm) for module in network.model.modules()) or network.images is None


def _calibration(network: Network, examples: Sequence[Example]) -> list[Batch]:
    """Encode examples one by one: padding would be counted among the activations."""
    if not examples:
        raise BadInput(f"precision {CALIBRATED}: no examples to calibrate on; give some that the network will read")
    places = np.linspace(0, len(examples) - 1, min(CALIBRATION_EXAMPLES, len(examples))).round().astype(int)
    return engine_batches(network, [examples[place] for place in places], 1)
