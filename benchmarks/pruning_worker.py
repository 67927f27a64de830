"""Prune a network with Torch-Pruning: runs in an environment of its own, reads and writes safetensors and JSON.

``python pruning_worker.py REQUEST.json``, where the request names the kind of network, its config, the weights (and
gradients, for Taylor), the cost to reach and the folder to write to. Every setting of Torch-Pruning that is tried gives
one file of weights and one entry in ``settings.json``.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-not-found]  # lives in .venv-bench only
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.pruning_networks import KINDS, Kind, set_weights, tensors_of

# What its documentation offers for transformers: a ratio for all, one ranking, or one ranking for each kind of group.
SCOPES: dict[str, dict[str, bool]] = {
    "local": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2, group_reduction="first"),
    "group magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(group_reduction="first"),
    "group taylor": lambda: tp.importance.GroupTaylorImportance(),
}
MOST, TRIES = 0.98, 14


class Pruner:
    """One setting of Torch-Pruning on one network.

    Parameters
    ----------
    kind : Kind
    config : mapping
        Of the network.
    importance : str
        A key of ``IMPORTANCES``.
    scope : str
        A key of ``SCOPES``.
    width : bool
        Whether residual streams are pruned too, or only what is within blocks.
    """

    def __init__(
        self,
        kind: Kind,
        config: Mapping[str, Any],
        model: nn.Module,
        gradients: dict[str, torch.Tensor],
        importance: str,
        scope: str,
        width: bool,
    ):
        self.kind, self.model, self.gradients = kind, model, gradients
        self.importance, self.scope, self.width = importance, scope, width
        self.example = kind.example(config)
        heads = int(config.get("num_attention_heads", 0))
        self.head_size = int(config["hidden_size"]) // heads if heads else 1

    def cost(self, model: nn.Module) -> int:
        """Return what a network costs."""
        return self.kind.cost(model, self.example)

    def copy(self, model: nn.Module) -> nn.Module:
        """Copy a network with its gradients, which are cut along with the weights."""
        copied = copy.deepcopy(model)
        for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        return copied

    def prune(self, model: nn.Module, ratio: float, only: Callable[[str], bool] | None = None) -> nn.Module:
        """Return a copy pruned by a ratio; ``only`` says which layers lose outputs, all that may if None."""
        model, kind = self.copy(model), self.kind
        chosen = only or (lambda name: self.width or not name.endswith(kind.writes))
        ignored = [
            part
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear | nn.Conv2d) and (name in kind.kept or not chosen(name))
        ]
        pruner = tp.pruner.BasePruner(
            model,
            self.example,
            importance=IMPORTANCES[self.importance](),
            pruning_ratio=ratio,
            num_heads=kind.heads(model, self.head_size),
            # Its defaults for these two are shared by all pruners, which would keep every network alive.
            in_channel_groups={},
            out_channel_groups={},
            prune_head_dims=False,
            prune_num_heads=only is None and bool(kind.attention),
            head_pruning_ratio=ratio if only is None else 0.0,
            output_transform=lambda output: kind.traced(output).sum(),
            ignored_layers=ignored,
            # One unit at a time, wherever it is: a ratio for each layer would take one from all of them.
            **SCOPES[self.scope if only is None else "global"],
        )
        for group in pruner.step(interactive=True):
            group.prune()
        kind.settle(model, self.head_size)
        return model

    def reach(self, target: int, tolerance: float) -> tuple[nn.Module, float] | None:
        """Return the network pruned to a cost and the ratio, or None where no ratio reaches it.

        The ratio is bisected from the middle: near the highest, Torch-Pruning leaves alone what would lose all its
        units, and a network costs more again. Where its steps are too coarse (a unit of the width is much), the last
        bit is taken from the inner units alone.
        """
        model = self.model
        for name, parameter in model.named_parameters():
            parameter.grad = self.gradients[name].clone() if name in self.gradients else None
        above, over, under = model, 0.0, MOST
        for _ in range(TRIES):
            ratio = (over + under) / 2
            tried = self.prune(model, ratio)
            found = self.cost(tried)
            if fits(found, target, tolerance):
                return tried, ratio
            if found > target:
                above, over = tried, ratio
            else:
                under = ratio
        low, high = 0.0, MOST
        for _ in range(TRIES):
            middle = (low + high) / 2
            tried = self.prune(above, middle, lambda name: name.endswith(self.kind.inner))
            found = self.cost(tried)
            if fits(found, target, tolerance):
                return tried, over
            low, high = (middle, high) if found > target else (low, middle)
        return None


def fits(cost: int, target: int, tolerance: float) -> bool:
    """Return whether a network has the wanted cost, to a tolerance and not more."""
    return -tolerance <= cost / target - 1 <= 0


def main(request: Path) -> None:
    """Carry out a request."""
    asked = json.loads(request.read_text())
    torch.manual_seed(0)
    out, kind, config = Path(asked["out"]), KINDS[asked["kind"]], asked["config"]
    weights = load_file(asked["weights"])
    gradients = load_file(asked["gradients"]) if asked["importance"].endswith("taylor") else {}
    made = []
    for scope in SCOPES:
        for width in (True, False):
            started = time.monotonic()
            model = set_weights(kind.build(config), weights)
            pruner = Pruner(kind, config, model, gradients, asked["importance"], scope, width)
            reached = pruner.reach(asked["target"], asked["tolerance"])
            if reached is None:
                continue
            pruned, ratio = reached
            name = f"{scope}-{'width' if width else 'inner'}"
            with torch.inference_mode():
                check = kind.output(pruned(**pruner.example))
            save_file({**tensors_of(pruned), "check": check.contiguous()}, str(out / f"{name}.safetensors"))
            made.append(
                {
                    "name": name,
                    "ratio": ratio,
                    "cost": pruner.cost(pruned),
                    "attributes": kind.settle(pruned, pruner.head_size),
                    "seconds": time.monotonic() - started,
                }
            )
    (out / "settings.json").write_text(json.dumps({"version": tp.__version__, "settings": made}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
