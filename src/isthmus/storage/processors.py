"""Image processors: what a transformers folder says of the images that its network wants."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import ImageInput, Network

PROCESSOR_FILE = "preprocessor_config.json"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_BYTE = 1 / 255


def read_processor(folder: Path, config: Mapping[str, Any]) -> ImageInput:
    """Read what a network wants images to be from the processor's file of a transformers folder.

    Raises
    ------
    BadInput
        If there is no such file, it cannot be read, or it does not say a size.
    UnsupportedNetwork
        If images are wanted as nothing here makes them.
    """
    file = folder / PROCESSOR_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"network {folder}: no {PROCESSOR_FILE}, which says how images are scaled; add it") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); restore the file") from None
    return image_input(data, config, str(file))


def image_input(processor: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ImageInput:
    """Return what the settings of an image processor ask for.

    Parameters
    ----------
    processor : mapping
        As in ``preprocessor_config.json``, or from ``to_dict`` of an image processor.
    config : mapping
        The model's config: ``num_channels``, and ``image_size`` where the processor resizes nothing.
    where : str
        For messages.

    Raises
    ------
    BadInput
        If it does not say a size, or a number is out of its range.
    UnsupportedNetwork
        If images are wanted as nothing here makes them.
    """
    if processor.get("do_flip_channel_order"):
        raise UnsupportedNetwork(f"{where}: wants blue before red, which isthmus does not do")
    channels = int(config.get("num_channels") or 3)
    height, width, edge = _sizes(processor, config, where)
    scale = float(processor.get("rescale_factor") or _BYTE) / _BYTE if processor.get("do_rescale", True) else 255.0
    mean = std = None
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean"), processor.get("image_std")
    code = processor.get("resample")
    resample = _RESAMPLE.get(2 if code is None else int(code))
    if resample is None:
        raise UnsupportedNetwork(f"{where}: resample {code} is not done here; set it to 3 (bicubic)")
    means = _by_channel(0.0 if mean is None else mean, channels, where)
    stds = _by_channel(1.0 if std is None else std, channels, where)
    return ImageInput(
        channels,
        height,
        width,
        tuple(value / scale for value in means),
        tuple(value / scale for value in stds),
        edge,
        resample,
    )


def _sizes(processor: Mapping[str, Any], config: Mapping[str, Any], where: str) -> tuple[int, int, int | None]:
    """Return height, width and the length that the shorter side is resized to, None where images are only resized."""
    size, crop = processor.get("size"), processor.get("crop_size")
    if not processor.get("do_resize", True):
        size = None
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if processor.get("do_center_crop") and crop is not None:
        height, width = _pair(crop, where)
        if edge is None and size is not None:
            edge = min(_pair(size, where))
        return height, width, None if edge is None else int(edge)
    if edge is not None:
        edge = int(edge)
        share = processor.get("crop_pct")
        # ConvNeXt's processor: small images are resized to more than is wanted and cut, large ones only resized.
        return edge, edge, int(edge / float(share)) if share and edge < 384 else None if share else edge
    wanted = size if size is not None else config.get("image_size")
    if wanted is None:
        raise BadInput(f"{where}: says no size of images; add size to it")
    height, width = _pair(wanted, where)
    return height, width, None


def _pair(size: Any, where: str) -> tuple[int, int]:
    try:
        if isinstance(size, Mapping):
            return int(size["height"]), int(size["width"])
        if isinstance(size, int):
            return size, size
        height, width = size
        return int(height), int(width)
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{where}: size {size} is no height and width; give both") from None


def _by_channel(values: Any, channels: int, where: str) -> tuple[float, ...]:
    given = [values] * channels if isinstance(values, int | float) else list(values)
    if len(given) != channels and len(set(given)) == 1:
        given = given[:1] * channels
    if len(given) != channels:
        raise BadInput(f"{where}: {len(given)} means for {channels} channels; give one for each")
    return tuple(float(value) for value in given)


def write_processor(network: Network, place: Path) -> None:
    """Write what a network wants images to be beside its model: the original's file, or one of the same meaning."""
    wanted = network.images
    if wanted is None:
        return
    source = None if network.source is None else Path(network.source) / PROCESSOR_FILE
    if source is not None and source.is_file():
        shutil.copyfile(source, place / PROCESSOR_FILE)
        return
    whole = {"height": wanted.height, "width": wanted.width}
    cut = wanted.shortest_edge is not None
    settings = {
        "image_processor_type": "BitImageProcessor" if cut else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": wanted.shortest_edge} if cut else whole,
        "resample": next(code for code, name in _RESAMPLE.items() if name == wanted.resample),
        "do_rescale": True,
        "rescale_factor": _BYTE,
        "do_normalize": True,
        "image_mean": list(wanted.mean),
        "image_std": list(wanted.std),
        **({"do_center_crop": True, "crop_size": whole} if cut else {}),
    }
    (place / PROCESSOR_FILE).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
