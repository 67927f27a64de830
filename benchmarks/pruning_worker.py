"""Prune an encoder with Torch-Pruning: runs in an environment of its own, reads and writes safetensors and JSON.

``python pruning_worker.py REQUEST.json``, where the request names the config, the weights (and gradients, for Taylor),
the number of parameters to reach and the folder to write to. Every setting of Torch-Pruning that is tried gives one
file of weights and one entry in ``settings.json``.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-not-found]  # lives in .venv-bench only
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertSelfAttention

# What its documentation offers for transformers: a ratio for all, one ranking, or one ranking for each kind of group.
SCOPES: dict[str, dict[str, bool]] = {
    "local": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}
MOST, TRIES = 0.98, 14


def build(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> BertModel:
    """Build the network that was handed over: its tables and pooler may be narrower than its config says."""
    model = BertModel(BertConfig(**config), add_pooling_layer="pooler.dense.weight" in weights)
    for name, tensor in weights.items():
        path, _, own = name.rpartition(".")
        module: Any = model.get_submodule(path)
        setattr(module, own, nn.Parameter(tensor.clone()))
        if isinstance(module, nn.Linear) and own == "weight":
            module.out_features, module.in_features = tensor.shape
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = tensor.shape
    return model.eval()


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class Pruner:
    """One setting of Torch-Pruning on one network.

    Parameters
    ----------
    importance : {"magnitude", "taylor"}
    scope : str
        A key of ``SCOPES``.
    width : bool
        Whether the residual stream is pruned too, or heads and neurons only.
    """

    def __init__(self, model: BertModel, gradients: dict[str, torch.Tensor], importance: str, scope: str, width: bool):
        self.model, self.gradients = model, gradients
        self.importance, self.scope, self.width = importance, scope, width
        self.head_size = model.encoder.layer[0].attention.self.attention_head_size

    def copy(self, model: BertModel) -> BertModel:
        """Copy a network with its gradients, which are cut along with the weights."""
        copied = copy.deepcopy(model)
        for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        return copied

    def prune(self, model: BertModel, ratio: float, only: Callable[[str], bool] | None = None) -> BertModel:
        """Return a copy pruned by a ratio; ``only`` says which linear layers lose outputs, all that may if None."""
        model = self.copy(model)
        heads = {
            linear: linear.out_features // self.head_size
            for part in model.modules()
            if isinstance(part, BertSelfAttention)
            for linear in (part.query, part.key, part.value)
        }
        chosen = only or (lambda name: self.width or not name.endswith("output.dense"))
        ignored = [part for name, part in model.named_modules() if isinstance(part, nn.Linear) and not chosen(name)]
        magnitude = self.importance == "magnitude"
        pruner = tp.pruner.BasePruner(
            model,
            example(),
            importance=tp.importance.GroupMagnitudeImportance(p=2)
            if magnitude
            else tp.importance.GroupTaylorImportance(),
            pruning_ratio=ratio,
            num_heads=heads,
            # Its defaults for these two are shared by all pruners, which would keep every network alive.
            in_channel_groups={},
            out_channel_groups={},
            prune_head_dims=False,
            prune_num_heads=only is None,
            head_pruning_ratio=ratio if only is None else 0.0,
            output_transform=lambda output: output.pooler_output.sum(),
            ignored_layers=[*ignored, model.pooler],
            **SCOPES[self.scope],
        )
        for group in pruner.step(interactive=True):
            group.prune()
        for part in model.modules():
            if isinstance(part, BertSelfAttention):
                part.all_head_size = part.query.out_features
                part.num_attention_heads = part.query.out_features // self.head_size
        return model

    def reach(self, target: int, tolerance: float) -> tuple[BertModel, float] | None:
        """Return the network pruned to a number of parameters and the ratio, or None where no ratio reaches it.

        The ratio is bisected. Where its steps are too coarse (a unit of the width is much), the last bit is taken from
        the neurons alone.
        """
        model = self.model
        for name, parameter in model.named_parameters():
            parameter.grad = self.gradients[name].clone() if name in self.gradients else None
        above, over, under = model, 0.0, MOST
        if count(self.prune(model, MOST)) > target:
            return None
        for _ in range(TRIES):
            ratio = (over + under) / 2
            tried = self.prune(model, ratio)
            if fits(tried, target, tolerance):
                return tried, ratio
            if count(tried) > target:
                above, over = tried, ratio
            else:
                under = ratio
        low, high = 0.0, MOST
        for _ in range(TRIES):
            middle = (low + high) / 2
            tried = self.prune(above, middle, lambda name: name.endswith("intermediate.dense"))
            if fits(tried, target, tolerance):
                return tried, over
            low, high = (middle, high) if count(tried) > target else (low, middle)
        return None


def fits(model: nn.Module, target: int, tolerance: float) -> bool:
    """Return whether a network has the wanted number of parameters, to a tolerance and not more."""
    return -tolerance <= count(model) / target - 1 <= 0


def example() -> dict[str, torch.Tensor]:
    """Return inputs to trace the graph with; ids below a hundred are in every vocabulary."""
    ids = torch.arange(8)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def main(request: Path) -> None:
    """Carry out a request."""
    asked = json.loads(request.read_text())
    torch.manual_seed(0)
    out = Path(asked["out"])
    weights = load_file(asked["weights"])
    gradients = load_file(asked["gradients"]) if asked["importance"] == "taylor" else {}
    made = []
    for scope in SCOPES:
        for width in (True, False):
            started = time.monotonic()
            pruner = Pruner(build(asked["config"], weights), gradients, asked["importance"], scope, width)
            reached = pruner.reach(asked["target"], asked["tolerance"])
            if reached is None:
                continue
            model, ratio = reached
            name = f"{scope}-{'width' if width else 'inner'}"
            tensors = {key: value.detach().contiguous() for key, value in model.named_parameters()}
            with torch.inference_mode():
                check = model(**example()).last_hidden_state
            save_file({**tensors, "check": check.contiguous()}, str(out / f"{name}.safetensors"))
            heads = [layer.attention.self.num_attention_heads for layer in model.encoder.layer]
            made.append(
                {
                    "name": name,
                    "ratio": ratio,
                    "params": count(model),
                    "heads": heads,
                    "head_size": pruner.head_size,
                    "seconds": time.monotonic() - started,
                }
            )
    (out / "settings.json").write_text(json.dumps({"version": tp.__version__, "settings": made}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
