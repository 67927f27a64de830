"""What Torch-Pruning must be told of each kind of network: how it is built, what may go, what heads are, what it costs.

Read by both sides: by the worker in its own environment, and by the benchmarks that hand networks over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.cost.measure import count_parameters, measure_macs


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Parameters
    ----------
    build : callable
        From a config to the model, its weights not yet set.
    example : callable
        From a config to inputs that the graph is traced with.
    output : callable
        From what the model returns to the tensor that is checked on both sides.
    traced : callable
        From what the model returns to the tensor whose graph is followed; all that is to be cut lies before it.
    attention : str
        The name of the class whose queries, keys and values have heads; empty where there is none.
    projections : tuple of str
        Query, key and value within it.
    counts : tuple of str
        Integers of that class: the number of heads, and the width of all of them where there is such.
    writes : tuple of str
        Ends of the paths of layers that write to a residual stream.
    inner : str
        End of the paths of layers whose outputs may go one by one, to make a cost exact.
    kept : tuple of str
        Paths of layers whose outputs are the network's.
    currency : {"params", "macs"}
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    example: Callable[[Mapping[str, Any]], dict[str, Tensor]]
    output: Callable[[Any], Tensor]
    traced: Callable[[Any], Tensor]
    writes: tuple[str, ...]
    inner: str
    kept: tuple[str, ...]
    currency: str
    attention: str = ""
    projections: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    def cost(self, model: nn.Module, example: Mapping[str, Tensor]) -> int:
        """Return what a model costs, counted: parameters, or the multiply-accumulates of one run."""
        return measure_macs(model, example) if self.currency == "macs" else count_parameters(model)

    def attentions(self, model: nn.Module) -> dict[str, Any]:
        """Return the modules of attention by path."""
        return {path: part for path, part in model.named_modules() if type(part).__name__ == self.attention}

    def heads(self, model: nn.Module, size: int) -> dict[nn.Module, int]:
        """Return the number of heads of each query, key and value map."""
        return {
            getattr(part, name): getattr(part, name).out_features // size
            for part in self.attentions(model).values()
            for name in self.projections
        }

    def settle(self, model: nn.Module, size: int) -> dict[str, dict[str, int]]:
        """Set the integers of attention after heads went; return them by path."""
        found: dict[str, dict[str, int]] = {}
        for path, part in self.attentions(model).items():
            width = getattr(part, self.projections[0]).out_features
            found[path] = dict(zip(self.counts, (width // size, width), strict=False))
            for name, value in found[path].items():
                setattr(part, name, value)
        return found


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Set parameters and buffers in place; tables of words and what reads them may be narrower than the config says."""
    for name, tensor in weights.items():
        path, _, own = name.rpartition(".")
        module: Any = model.get_submodule(path)
        if own in module._buffers:
            module._buffers[own] = tensor.clone()
            continue
        setattr(module, own, nn.Parameter(tensor.clone()))
        if isinstance(module, nn.Linear) and own == "weight":
            module.out_features, module.in_features = tensor.shape
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = tensor.shape
    return model.eval()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and the buffers that are saved."""
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def spelled_out(model: nn.Module) -> nn.Module:
    """Write the shortcuts of a CIFAR ResNet that change shape as convolutions of the same outputs, in place.

    Slicing and padding are no layers, and Torch-Pruning could not follow channels through them.
    """
    for block in [part for part in model.modules() if type(part).__name__ == "Block"]:
        held: Any = block
        if held.shortcut.stride == 1:
            continue
        written = nn.Conv2d(held.conv1.in_channels, held.conv2.out_channels, 1, stride=held.shortcut.stride, bias=False)
        with torch.no_grad():
            written.weight.zero_()
            channels = torch.arange(held.conv1.in_channels)
            written.weight[channels + held.shortcut.before, channels] = 1
        held.shortcut = written
    return model


def _bert(config: Mapping[str, Any]) -> nn.Module:
    from transformers import BertConfig, BertModel

    made: nn.Module = BertModel(BertConfig(**config))
    return made


def _vit(config: Mapping[str, Any]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    made: nn.Module = ViTForImageClassification(ViTConfig(**config))
    return made


def _resnet(config: Mapping[str, Any]) -> nn.Module:
    from isthmus.zoo.cifar_config import CifarResNetConfig
    from isthmus.zoo.cifar_resnet import CifarResNet

    return spelled_out(CifarResNet(CifarResNetConfig(**config)))


def _text(config: Mapping[str, Any]) -> dict[str, Tensor]:
    ids = torch.arange(8)[None]  # ids below a hundred are in every vocabulary
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def _image(config: Mapping[str, Any]) -> dict[str, Tensor]:
    side = int(config["image_size"])
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(1, int(config["num_channels"]), side, side, generator=generator)}


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


KINDS = {
    "bert": Kind(
        _bert, _text, lambda output: output.last_hidden_state, lambda output: output.pooler_output,
        ("output.dense",), "intermediate.dense", ("pooler.dense",), "params",
        "BertSelfAttention", ("query", "key", "value"), ("num_attention_heads", "all_head_size"),
    ),
    "vit": Kind(
        _vit, _image, _logits, _logits, ("o_proj", "fc2"), "fc1", ("classifier",), "macs",
        "ViTAttention", ("q_proj", "k_proj", "v_proj"), ("num_attention_heads",),
    ),
    "cifar-resnet": Kind(_resnet, _image, _logits, _logits, ("conv2",), "conv1", ("linear",), "macs"),
}  # fmt: skip
"""By the name that a request gives; a ResNet's first convolution writes to the stream that its blocks add to."""
