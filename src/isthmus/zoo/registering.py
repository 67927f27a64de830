"""Registers the zoo's own architectures with transformers' auto classes."""

from __future__ import annotations


def register_configs() -> None:
    """Let ``AutoConfig`` read the zoo's configs; doing it twice does nothing."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from isthmus.zoo.cifar_config import MODEL_TYPE, CifarResNetConfig

    AutoConfig.register(MODEL_TYPE, CifarResNetConfig, exist_ok=True)


def register_models() -> None:
    """Let ``AutoModelForImageClassification`` build the zoo's models; doing it twice does nothing."""
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification

    from isthmus.zoo.cifar_config import CifarResNetConfig
    from isthmus.zoo.cifar_resnet import CifarResNet

    register_configs()
    AutoModelForImageClassification.register(CifarResNetConfig, CifarResNet, exist_ok=True)
