"""What an engine is given: a network with one output, example inputs, and quiet exporters."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from isthmus.network import Network

_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "openvino", "transformers")


def input_names(network: Network) -> tuple[str, ...]:
    """Return the names of the inputs that the exported network takes."""
    if network.images is not None:
        return ("pixel_values",)
    accepted = inspect.signature(network.model.forward).parameters
    typed = "token_type_ids" in getattr(network.tokenizer, "model_input_names", ())
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if typed and "token_type_ids" in accepted else names


def one_output(network: Network) -> torch.nn.Module:
    """Wrap a network so that it returns one tensor: the last hidden state, or a classifier's logits."""
    import torch

    from isthmus.network import without_cache

    name = "logits" if network.predicts else "last_hidden_state"

    class OneOfImages(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            tensor: torch.Tensor = getattr(self.model(pixel_values=pixel_values), name)
            return tensor

    class OneOutput(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
        ) -> torch.Tensor:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            output = self.model(
                input_ids=input_ids, attention_mask=attention_mask, **types, **without_cache(self.model)
            )
            tensor: torch.Tensor = getattr(output, name)
            return tensor

    return (OneOutput if network.images is None else OneOfImages)(network.model).eval()


def export_program(network: Network) -> torch.export.ExportedProgram:
    """Trace a network into a graph whose batch, and the length of texts, are free."""
    from isthmus.sites.experts import EVERY, run_by

    with run_by(network.model, EVERY):
        return _program(network)


def _program(network: Network) -> torch.export.ExportedProgram:
    import torch

    names = input_names(network)
    wanted = network.images
    if wanted is not None:
        pixels = {names[0]: torch.zeros(2, wanted.channels, wanted.height, wanted.width)}
        with torch.no_grad(), quiet():
            return torch.export.export(
                one_output(network), (), pixels, dynamic_shapes={names[0]: {0: torch.export.Dim.DYNAMIC}}
            )
    batch, length = 2, 7
    examples = {name: torch.ones((batch, length), dtype=torch.long) for name in names}
    # Token 2, and no padding: some networks count positions from the padding token, which is 0 or 1.
    examples["input_ids"] = torch.full((batch, length), 2, dtype=torch.long)
    if "token_type_ids" in examples:
        examples["token_type_ids"] = torch.zeros((batch, length), dtype=torch.long)
    free: Any = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    with torch.no_grad(), quiet():
        return torch.export.export(one_output(network), (), examples, dynamic_shapes=free)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' chatter off the screen; errors are still raised."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
