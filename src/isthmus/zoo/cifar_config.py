"""The config of ResNets for CIFAR-10; apart from the model, so that reading it does not take torch."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

MODEL_TYPE = "isthmus_cifar_resnet"


class CifarResNetConfig(PreTrainedConfig):  # type: ignore[misc]
    """The shape of a ResNet for images of 32 by 32 pixels.

    Parameters
    ----------
    blocks : int
        Residual blocks in each stage: 3 makes ResNet-20, 9 makes ResNet-56.
    widths : sequence of int
        Channels of each stage; every stage after the first halves height and width.
    num_channels, image_size : int
        Of the images.
    num_labels : int
        Classes.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        blocks: int = 3,
        widths: tuple[int, ...] = (16, 32, 64),
        num_channels: int = 3,
        image_size: int = 32,
        num_labels: int = 10,
        **rest: Any,
    ) -> None:
        self.blocks = blocks
        self.widths = list(widths)
        self.num_channels = num_channels
        self.image_size = image_size
        super().__init__(**({} if "id2label" in rest else {"num_labels": num_labels}), **rest)
