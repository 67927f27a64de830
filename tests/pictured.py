"""Tiny random networks of images, and images of classes that can be learned, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from isthmus.network import ImageInput, Network, encode
from isthmus.tasks import Task, load_task
from isthmus.zoo.cifar_config import CifarResNetConfig
from isthmus.zoo.cifar_resnet import CifarResNet

GREY = ImageInput(1, 16, 16, (0.5,), (0.25,))
COLOUR = ImageInput(3, 16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def scattered(model: Any, seed: int = 0) -> Any:
    """Return a model in evaluation mode, every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator).mul_(0.1)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def vit(*, classes: int | None = 3, seed: int = 0, **settings: Any) -> Network:
    """Return a ViT of grey images of 16 by 16 pixels: a classifier, or an encoder where classes is None."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = ViTConfig(**{**sizes, "image_size": 16, "patch_size": 4, "num_channels": 1, **settings})
    torch.manual_seed(seed)
    if classes is None:
        model = scattered(ViTModel(config), seed)
        return Network("vit", model, None, "cls", True, 1, images=GREY)
    config.num_labels = classes
    return Network("vit", scattered(ViTForImageClassification(config), seed), None, "logits", False, 1, images=GREY)


def resnet(seed: int = 0) -> Network:
    """Return a CIFAR ResNet of one block a stage for colour images of 16 by 16 pixels."""
    torch.manual_seed(seed)
    model = CifarResNet(CifarResNetConfig(blocks=1, widths=(8, 16, 32), num_labels=3))
    return Network("resnet", scattered(model, seed), None, "logits", False, 1, images=COLOUR)


def pictures(count: int = 240, *, channels: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images (count, 16, 16[, channels]) of three classes, told apart by where they are bright, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 16, 16, channels))
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 6] += rng.integers(60, 130)
    return np.squeeze(images.astype(np.uint8), 3) if channels == 1 else images.astype(np.uint8), labels


def pictures_task(count: int = 240, *, channels: int = 1, labelled: bool = True, seed: int = 0) -> Task:
    """Return a task of such images."""
    images, labels = pictures(count, channels=channels, seed=seed)
    return load_task(("images", (images, labels) if labelled else images))


def learned(network: Network, task: Task, steps: int = 80) -> Network:
    """Return a classifier trained for a moment on a task's labelled images, so that it has something to lose."""
    optimizer = torch.optim.Adam(network.model.parameters(), lr=3e-3)
    images, labels = zip(*task.labelled, strict=True)
    pixels = encode(network, images)["pixel_values"]
    targets = torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(targets), (48,), generator=generator)
        loss = torch.nn.functional.cross_entropy(network.model(pixel_values=pixels[chosen]).logits, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network
