"""Moments: what enters each linear map, to second order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isthmus.relevance.probe import Probe

Floats = npt.NDArray[np.float32]


def collect_moments(probe: Probe, matrices: Sequence[str]) -> dict[str, Floats]:
    """Return the mean of ``x xᵀ`` over the vectors that enter each linear map, shape ``(columns, columns)``.

    Embeddings, whose rows are looked up, have none; nor has a map that never runs.

    Parameters
    ----------
    matrices : sequence of str
        Names of parameters.
    """
    model = probe.network.model
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in matrices}
    totals: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    last: list[tuple[Tensor, Tensor]] = []

    def see(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            entered = args[0].flatten(0, -2)
            if last and last[0][0] is args[0]:
                product = last[0][1]
            else:
                product = entered.T @ entered
                last[:] = [(args[0], product)]
            totals[name] = product.clone() if name not in totals else totals[name].add_(product)
            tokens[name] = tokens.get(name, 0) + len(entered)

        return hook

    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_pre_hook(see(name)) for name, module in linear.items()]
    try:
        with torch.inference_mode():
            for x in probe.inputs:
                model(**x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.asarray(total / tokens[name], dtype=np.float32) for name, total in totals.items()}
