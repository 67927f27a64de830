"""ResNets for CIFAR-10 as a transformers model (He et al. 2015, section 4.2), to be loaded from a state dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from isthmus.zoo.cifar_config import CifarResNetConfig


class Shortcut(nn.Module):
    """What a block adds its input as: itself, or every other pixel with channels of zeros around (option A)."""

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = added // 2, added - added // 2

    def forward(self, state: Tensor) -> Tensor:
        """Return the input ``(batch, channels, height, width)`` in the shape of the block's output."""
        if self.stride == 1 and self.before == self.after == 0:
            return state
        return F.pad(state[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two convolutions of 3 by 3 pixels, each with batch norm, and the shortcut past them."""

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = Shortcut(stride, width - entering)

    def forward(self, state: Tensor) -> Tensor:
        """Return the block's output, ``(batch, width, height / stride, width of the map / stride)``."""
        inner = torch.relu(self.bn1(self.conv1(state)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(state))


class CifarResNet(PreTrainedModel):  # type: ignore[misc]
    """A ResNet for CIFAR-10; modules are called as in the usual state dicts (conv1, bn1, layer1 to layer3, linear)."""

    config_class = CifarResNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ("Block",)

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        widths = list(config.widths)
        self.conv1 = nn.Conv2d(config.num_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        for number, width in enumerate(widths):
            entering = widths[max(number - 1, 0)]
            blocks = [
                Block(entering if place == 0 else width, width, 2 if number and place == 0 else 1)
                for place in range(config.blocks)
            ]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``, and the loss of labels."""
        state = torch.relu(self.bn1(self.conv1(pixel_values)))
        for number in range(self.stages):
            state = self.get_submodule(f"layer{number + 1}")(state)
        logits = self.linear(state.mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
