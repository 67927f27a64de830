"""OpenVINO in integers, by NNCF: weights and activations of 8 bits, or weights alone of 8 or 4."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.export.openvino import FILE
from isthmus.export.wrapper import quiet
from isthmus.network import saturates_int8

if TYPE_CHECKING:
    from isthmus.export.engines import Batch

LEAST_GROUP = 16
"""A group as small as this takes 5 bits a weight with its scale; below, a scale for each output and 8 bits are less
lossy for about the same."""


def quantize_openvino(
    whole: str | Path,
    folder: str | Path,
    precision: str,
    batches: Sequence[Batch],
    *,
    group: int = 32,
    transformer: bool = True,
) -> Path:
    """Write a float32 OpenVINO file again in integers.

    ``w8a8`` rounds weights symmetrically for each output and activations for each tensor, after SmoothQuant (Xiao et
    al. 2023) has moved what is hard to round in the activations, column by column, into the weights, and mends the
    biases for what rounding shifts on average; on x86 processors without VNNI weights have 7 bits. ``int8`` and
    ``int4`` round weights to nearest and multiply by them in floating point, or however the engine sees fit.

    Parameters
    ----------
    whole : str or Path
        The ``.xml`` file that `isthmus.export.openvino.export_openvino` wrote.
    folder : str or Path
        Where the new one goes.
    precision : {"w8a8", "int8", "int4"}
    batches : sequence of dict of ndarray, shape ``(1, tokens)`` or ``(1, channels, height, width)``
        Inputs by name, for ``w8a8``.
    group : int
        Inputs that share a scale in ``int4``. A matrix whose inputs it does not divide takes the largest power of two
        that does, and 8 bits where that is below 16.
    transformer : bool
        Whether the network is made of attention: ``w8a8`` then keeps apart what rounds badly there.

    Returns
    -------
    Path
        The ``.xml`` file.
    """
    # Both would send usage statistics where this package can be imported; without it, neither does.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf
    import openvino

    path = Path(folder) / FILE
    graph = openvino.Core().read_model(str(whole))
    with quiet(), _quiet_nncf():
        if precision == "w8a8":
            names = {port.get_any_name() for port in graph.inputs}
            inputs = [{name: array for name, array in batch.items() if name in names} for batch in batches]
            kind = nncf.ModelType.TRANSFORMER if transformer else None
            # Half of the range for weights, where sums of whole ones could saturate.
            fix = nncf.OverflowFix.ENABLE if saturates_int8() else None
            quantized = nncf.quantize(
                graph,
                nncf.Dataset(inputs),
                model_type=kind,
                subset_size=len(inputs),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            )
        else:
            quantized = nncf.compress_weights(graph, **_weight_options(nncf, precision, group))
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


def _weight_options(nncf: Any, precision: str, group: int) -> dict[str, Any]:
    if precision == "int8":
        return {"mode": nncf.CompressWeightsMode.INT8_SYM}
    advanced = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=min(LEAST_GROUP, group)
    )
    return {
        "mode": nncf.CompressWeightsMode.INT4_SYM,
        "group_size": group,
        "all_layers": True,
        "advanced_parameters": advanced,
    }


@contextmanager
def _quiet_nncf() -> Iterator[None]:
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
