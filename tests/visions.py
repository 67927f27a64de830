"""Tiny random networks that read images: every architecture of the test matrix, and some outside transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.network import ImageInput, Network

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
CLIP_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers: class, config, and the side of the images that it is given."""

    name: str
    model: str
    config: str
    side: int
    settings: dict[str, Any]


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("vit", "ViTForImageClassification", "ViTConfig", 16, VIT),
    Architecture("vit-encoder", "ViTModel", "ViTConfig", 16, VIT),
    Architecture("deit", "DeiTForImageClassificationWithTeacher", "DeiTConfig", 16, VIT),
    Architecture("beit", "BeitForImageClassification", "BeitConfig", 16, {**VIT, "use_relative_position_bias": True}),
    Architecture("dinov2", "Dinov2Model", "Dinov2Config", 16, VIT),
    Architecture("mae", "ViTMAEModel", "ViTMAEConfig", 16, VIT),
    Architecture("clip-vision", "CLIPVisionModelWithProjection", "CLIPVisionConfig", 16, {**VIT, "projection_dim": 24}),
    Architecture("clip-text", "CLIPTextModel", "CLIPTextConfig", 0, CLIP_TEXT),
    Architecture("siglip", "SiglipVisionModel", "SiglipVisionConfig", 16, {**VIT, "vision_use_head": False}),
    Architecture("siglip-head", "SiglipVisionModel", "SiglipVisionConfig", 16, VIT),
    Architecture(
        *("swin", "SwinForImageClassification", "SwinConfig", 32),
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    Architecture(
        *("segformer", "SegformerForImageClassification", "SegformerConfig", 32),
        {"hidden_sizes": [16, 24, 32, 64], "num_attention_heads": [1, 2, 2, 4], "depths": [1, 2, 1, 1]},
    ),
    Architecture(
        *("levit", "LevitForImageClassification", "LevitConfig", 64),
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    Architecture(
        *("mobilevit", "MobileViTForImageClassification", "MobileViTConfig", 64),
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "num_attention_heads": 4,
        },
    ),
    Architecture(
        *("convnext", "ConvNextForImageClassification", "ConvNextConfig", 32),
        {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    Architecture(
        *("resnet", "ResNetForImageClassification", "ResNetConfig", 64),
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    ),
    Architecture(
        *("bit", "BitForImageClassification", "BitConfig", 32),
        {"embedding_size": 32, "hidden_sizes": [64, 64, 128], "depths": [1, 1, 1], "num_groups": 8},
    ),
    Architecture(
        *("resnet-basic", "ResNetModel", "ResNetConfig", 32),
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
    ),
    Architecture(
        *("mobilenet-v1", "MobileNetV1ForImageClassification", "MobileNetV1Config", 64),
        {"image_size": 64, "depth_multiplier": 0.25},
    ),
    Architecture(
        *("mobilenet-v2", "MobileNetV2ForImageClassification", "MobileNetV2Config", 64),
        {"image_size": 64, "depth_multiplier": 0.35},
    ),
    Architecture(
        *("efficientnet", "EfficientNetForImageClassification", "EfficientNetConfig", 64),
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    Architecture(
        *("poolformer", "PoolFormerForImageClassification", "PoolFormerConfig", 64),
        {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    ),
    Architecture(
        *("pvt", "PvtForImageClassification", "PvtConfig", 32),
        {
            "image_size": 32,
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "depths": [1, 1, 1, 1],
        },
    ),
    Architecture(
        *("swiftformer", "SwiftFormerForImageClassification", "SwiftFormerConfig", 64),
        {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    ),
)
NAMES = tuple(one.name for one in ARCHITECTURES)


def network(name: str, seed: int = 0) -> Network:
    """Return a small random network by name, of transformers or not."""
    return tiny(name, seed) if name in NAMES else module(name, seed)


def tiny(name: str, seed: int = 0) -> Network:
    """Return a small random network of the named architecture, every parameter random."""
    one = next(one for one in ARCHITECTURES if one.name == name)
    torch.manual_seed(seed)
    model = getattr(transformers, one.model)(getattr(transformers, one.config)(**one.settings)).eval()
    return _network(name, model, one.side)


def _network(name: str, model: nn.Module, side: int, channels: int = 3) -> Network:
    """Wrap a model whose every parameter becomes random, and whose batch norms have seen such images.

    Without the latter, signals would be lost on their way through the small weights that networks start with.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if norms:
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.weight.normal_(1.0, 0.1)
                norm.momentum = 1.0
            model.train()(torch.randn(8, channels, side, side))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    images = ImageInput(channels, side, side, (0.5,) * channels, (0.5,) * channels) if side else None
    return Network(name, model.eval(), None, "logits", False, images=images)


class Plain(nn.Module):
    """A network of an older kind: convolutions, pooling, a flattened map, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.hidden = nn.Linear(12 * 16, 20)
        self.classifier = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.hidden(self.features(x).flatten(1))))


class Dense(nn.Module):
    """Maps that are concatenated and read again, a grouped convolution, and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 4, 3, padding=1)
        self.second = nn.Conv2d(10, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.mix = nn.Conv2d(14, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.normed = nn.GroupNorm(3, 12)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.classifier = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((x, F.relu(self.first(x))), 1)
        x = torch.cat((x, F.relu(self.second(x))), 1)
        x = self.normed(self.grouped(F.relu(self.mix(self.norm(x)))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.classifier(x.mean((2, 3)))


class Shuffled(nn.Module):
    """A unit of ShuffleNet V2: half of the channels pass by, both halves are joined and shuffled.

    After a second one the channels would hang together as a whole: what a half loses, the other must lose too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.unit = nn.Sequential(
            *(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)),
            *(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
        )
        self.last = nn.Conv2d(12, 16, 1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        passed, changed = x.chunk(2, 1)
        x = torch.cat((passed, self.unit(changed)), 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.classifier(F.relu(self.last(x)).mean((2, 3)))


class Shortcut(nn.Module):
    """Strides, and pads channels with zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Padded(nn.Module):
    """Two stages of the ResNet for CIFAR-10, with shortcuts of its option A."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = Shortcut(4, 4)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        passed = self.shortcut(x)
        x = F.relu(self.norm2(self.second(F.relu(self.norm1(self.first(x))))) + passed)
        return self.classifier(x.mean((2, 3)))


MODULES: dict[str, Callable[[], nn.Module]] = {"plain": Plain, "dense": Dense, "shuffled": Shuffled, "padded": Padded}


def module(name: str, seed: int = 0) -> Network:
    """Return a small random network outside transformers."""
    torch.manual_seed(seed)
    return _network(name, MODULES[name](), 16)
