"""ONNX Runtime in integers: weights of 8 bits, activations rounded to 8 bits as they come."""

from __future__ import annotations

from pathlib import Path

from isthmus.export.onnx import FILE


def quantize_onnx(whole: str | Path, folder: str | Path, *, reduce_range: bool = False) -> Path:
    """Write a float32 ONNX file again with ONNX Runtime's dynamic quantization.

    A linear map's weights are rounded symmetrically with a scale for each output; an embedding's between the least and
    the largest of the table. The activations that enter a linear map get a scale from their own range, tensor by
    tensor, at run time; attention stays in float32.

    Parameters
    ----------
    whole : str or Path
        The ``.onnx`` file that `isthmus.export.onnx.export_onnx` wrote.
    folder : str or Path
        Where the new one goes.
    reduce_range : bool
        Weights of 7 bits, for x86 processors without VNNI, on which sums of 8-bit products can saturate.

    Returns
    -------
    Path
        The ``.onnx`` file.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = Path(folder) / FILE
    graph = onnx.load(str(whole))
    # The exporter has folded and inferred what ONNX Runtime's own pre-processing would; unmarked, it warns of it.
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
    path.parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(graph, str(path), per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
    return path
