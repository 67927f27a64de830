"""The zoo's networks by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadInput
from isthmus.network import ImageInput, Network

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Kept:
    """A network whose weights lie in the package, with the module that trained them."""

    script: str


@dataclass(frozen=True)
class CifarKind:
    """A CIFAR ResNet whose weights are a user's own file, by the blocks of a stage."""

    blocks: int


ZOO: dict[str, Kept | CifarKind] = {
    "cifar10-resnet20": CifarKind(3),
    "cifar10-resnet56": CifarKind(9),
    "lm-docs": Kept("isthmus.zoo.lm_docs"),
    "vit-fashion": Kept("isthmus.zoo.vit_fashion"),
}


def in_zoo(source: str) -> bool:
    """Return whether a network's name is one of the zoo's: ``NAME``, or ``NAME=FILE`` with the file of its weights."""
    return source.partition("=")[0] in ZOO


def zoo_folder(name: str) -> Path:
    """Return the folder of a network whose weights lie in the package.

    Raises
    ------
    BadInput
        If it has not been trained here, or its weights are a file that must be given.
    """
    entry = ZOO.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, ZOO, n=1)
        raise BadInput(f"zoo: no network {name!r}; " + (f"did you mean {near[0]}?" if near else f"it has {_names()}"))
    if isinstance(entry, CifarKind):
        raise BadInput(f"network {name}: its weights are not kept here; give {name}=FILE.safetensors")
    folder = WEIGHTS / name
    if not (folder / "config.json").is_file():
        raise BadInput(f"network {name}: has not been trained; run python -m {entry.script}")
    return folder


def open_cifar(source: str, name: str | None = None) -> Network:
    """Open a CIFAR ResNet from ``NAME=FILE``, the file a safetensors state dict of the usual names.

    Raises
    ------
    BadInput
        If the file is missing or damaged, or its weights are of another network.
    """
    import torch

    from isthmus.zoo.cifar_config import CifarResNetConfig
    from isthmus.zoo.cifar_resnet import CifarResNet
    from isthmus.zoo.registering import register_models

    kind, _, place = source.partition("=")
    entry = ZOO[kind]
    assert isinstance(entry, CifarKind)
    weights = _state(Path(place).expanduser(), kind)
    register_models()
    model = CifarResNet(CifarResNetConfig(blocks=entry.blocks)).eval()
    own = model.state_dict()
    # Counts of batches seen are no weights; files leave them out.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    other = [key for key in weights if key not in own or weights[key].shape != own[key].shape]
    if missing or other:
        differs = (other or missing)[0]
        raise BadInput(f"{place}: not the weights of {kind}: {differs} differs; give another file or another name")
    unsound = next((key for key, value in weights.items() if not torch.isfinite(value.float()).all()), None)
    if unsound is not None:
        raise BadInput(f"{place}: {unsound} holds NaN or infinity; restore the file")
    model.load_state_dict(weights, strict=False)
    wanted = ImageInput(3, 32, 32, IMAGENET_MEAN, IMAGENET_STD)
    return Network(name or kind, model.float(), None, "logits", False, images=wanted)


def _state(path: Path, kind: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadInput(f"network {kind}: no file {path}; give {kind}=FILE.safetensors")
    try:
        found: dict[str, Any] = load_file(path)
    except Exception as error:  # safetensors has a kind of its own, and passes on those of the system
        raise BadInput(f"{path}: not a whole safetensors file ({str(error)[:100]}); restore it") from None
    return {key.removeprefix("module."): value for key, value in found.items()}


def _names() -> str:
    return ", ".join(ZOO)
