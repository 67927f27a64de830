"""The loader: lets plain transformers open what isthmus saved, through its extension point for quantizers.

A quantizer is told of the model after it is built and before its weights load, which is just where the modules of a
narrowed network must become smaller, and again afterwards, when coded weights are decoded. The model then computes with
plain weights: what is saved is bytes on disk.
"""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from isthmus.storage.holders import resolve_coded
from isthmus.storage.narrowing import METHOD, VERSION, apply_narrowing


class IsthmusConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What was taken away from the network that the rest of the config builds.

    Parameters
    ----------
    version : int
    layers : dict or None
        ``{"module": path, "keep": [index, ...]}``.
    shapes : dict
        Parameter name, after layers are removed, to its shape.
    attributes : dict
        Module path to integer attributes.
    inputs : dict or None
        Module path to the bits that the input of that linear map is rounded to, or the levels; None where none is.
    coded : dict or None
        Parameter name to the bytes of its code in the weight file; None where weights are plain.
    tokens : dict or None
        Which tokens stay after which layers; None where all do.
    cache : dict or None
        How the cache of each layer is narrowed; None where nothing is planned.
    attention : dict or None
        Module path to the levels that its attention rounds to; None where none does.
    """

    def __init__(
        self,
        version: int = VERSION,
        layers: dict[str, Any] | None = None,
        shapes: dict[str, list[int]] | None = None,
        attributes: dict[str, dict[str, int]] | None = None,
        inputs: dict[str, Any] | None = None,
        coded: dict[str, int] | None = None,
        tokens: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        attention: dict[str, Any] | None = None,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        from isthmus.errors import BadArtifact

        if unknown:
            raise BadArtifact(
                f"config.json: quantization_config has an unknown field {min(unknown)!r}; upgrade isthmus or restore it"
            )
        self.quant_method = quant_method
        self.version = version
        self.layers = layers
        self.shapes = shapes or {}
        self.attributes = attributes or {}
        if inputs is not None:
            self.inputs = inputs
        if coded is not None:
            self.coded = coded
        if tokens is not None:
            self.tokens = tokens
        if cache is not None:
            self.cache = cache
        if attention is not None:
            self.attention = attention


class IsthmusQuantizer(HfQuantizer):  # type: ignore[misc]
    """Narrows a freshly built model before its weights load."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        saved_as = next(iter(getattr(model.config, "architectures", None) or []), None)
        apply_narrowing(model, self.quantization_config.to_dict(), saved_as)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        resolve_coded(model)
        # From here on the weights are plain ones, also for whoever saves the model: casting, training and moving are
        # all allowed.
        if hasattr(self.quantization_config, "coded"):
            del self.quantization_config.coded
        model.is_quantized = False
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Register the loader with transformers; registering twice does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(IsthmusConfig)
        register_quantizer(METHOD)(IsthmusQuantizer)
