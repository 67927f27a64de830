"""Checking: run any model in OpenVINO as it is, at one size of input, to compare all of its outputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isthmus.export.wrapper import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn


def run_in_openvino(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Export a model at the shapes of ``inputs``, run it in OpenVINO in float32 on one core, and return its outputs.

    Returns
    -------
    dict of str to Tensor
        The floating-point outputs by name; a plain tensor is called ``output``.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import torch

    from isthmus.network import without_cache
    from isthmus.sites.experts import EVERY, run_by
    from isthmus.sites.tracing import named_outputs

    names: list[str] = []

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **given: Tensor) -> tuple[Tensor, ...]:
            output = self.model(**given, **without_cache(model))
            found = [(name, one) for name, one in named_outputs(output) if one.is_floating_point()]
            names[:] = [name for name, _ in found]
            return tuple(one for _, one in found)

    with torch.no_grad(), run_by(model, EVERY), quiet():
        program = torch.export.export(Outputs().eval(), (), dict(inputs))
        graph = openvino.convert_model(program)
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    values = [tensor.numpy() for tensor in inputs.values()]
    results = request.infer(dict(enumerate(values)))
    return {name: torch.from_numpy(results[index].copy()) for index, name in enumerate(names)}
