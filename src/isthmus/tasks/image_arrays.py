"""Reading arrays of images: npz, npy and IDX files, or arrays in Python."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.examples import Image, image_of_array
from isthmus.tasks.passages import read_bytes

IMAGE_NAMES = ("images", "image", "x", "data", "pixels", "img")
LABEL_NAMES = ("labels", "label", "y", "targets", "target", "class", "fine_label")
CLASS_NAMES = ("classes", "class_names", "label_names")
_IDX_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 9: np.dtype("i1"), 11: np.dtype(">i2"), 12: np.dtype(">i4")}


@dataclass(frozen=True)
class Part:
    """Images of one part of a data set, such as those to train on.

    Parameters
    ----------
    where : str
        For messages.
    images : tuple of Image
    labels : tuple of str, or None
        The name of each image's class; None where nothing is labelled.
    classes : tuple of str, or None
        All classes in the order in which a network's outputs stand, where the data says so.
    """

    where: str
    images: tuple[Image, ...]
    labels: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None


def joined(parts: Sequence[Part]) -> Part:
    """Return several files of one part as one.

    Raises
    ------
    BadInput
        If some are labelled and others are not.
    """
    if len({part.labels is None for part in parts}) > 1:
        bare = next(part for part in parts if part.labels is None)
        raise BadInput(f"{bare.where}: has no labels, where other files have; label all images or none")
    labels = None if parts[0].labels is None else tuple(name for part in parts for name in part.labels or ())
    found = [part.classes for part in parts if part.classes is not None]
    classes = max(found, key=len) if found else None
    return Part(parts[0].where, tuple(image for part in parts for image in part.images), labels, classes)


def read_npz(path: Path) -> dict[str, Part]:
    """Return the parts of an npz file by name; ``""`` where it does not say which part it is.

    Arrays are called ``images`` and ``labels`` (or x and y, data and target), with ``train_``, ``test_`` and the like
    before or behind where there are several parts; ``classes`` may name the labels.

    Raises
    ------
    BadInput
        If it cannot be read, has no images or no labels, or they do not belong together.
    """
    arrays = _arrays(path)
    found: dict[str, dict[str, str]] = {}
    for name in arrays:
        role, part = _role(name)
        if role:
            found.setdefault(part, {}).setdefault(role, name)
    listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
    if not any("images" in roles for roles in found.values()):
        raise BadInput(f"{path}: no array of images; its arrays are {listed}; name one images")
    classes = next((arrays[roles["classes"]] for roles in found.values() if "classes" in roles), None)
    parts = {}
    for part, roles in found.items():
        if "images" not in roles:
            continue
        where = f"{path}: {roles['images']}"
        if "labels" not in roles:
            raise BadInput(
                f"{where}: no array of labels belongs to it; its arrays are {listed}; name one labels, or save the "
                "images alone as .npy for a task without labels"
            )
        parts[part] = part_of_arrays(arrays[roles["images"]], arrays[roles["labels"]], where, classes=classes)
    return parts


def read_npy(path: Path) -> Part:
    """Return the images of an npy file, which have no labels."""
    return part_of_arrays(_loaded(path), None, str(path))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    opened = _loaded(path)
    if isinstance(opened, np.ndarray):
        raise BadInput(f"{path}: a single array, not an npz; give it the ending .npy")
    try:
        return {name: opened[name] for name in opened.files}
    except Exception as error:  # zip, zlib and numpy each have their own kinds; all mean: not whole
        raise BadInput(f"{path}: an array cannot be read ({_first_line(error)}); save plain arrays again") from None


def _loaded(path: Path) -> Any:
    data = read_bytes(path)
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as above
        raise BadInput(f"{path}: not a whole {path.suffix} file ({_first_line(error)}); save it again") from None


def _role(name: str) -> tuple[str, str]:
    """Return what an array is (images, labels, classes or nothing) and which part it belongs to, by its name."""
    words = name.lower().split("_")
    for role, known in (("classes", CLASS_NAMES), ("images", IMAGE_NAMES), ("labels", LABEL_NAMES)):
        if name.lower() in known:
            return role, ""
        if len(words) == 2 and role != "classes":
            for own, part in ((words[0], words[1]), (words[1], words[0])):
                if own in known:
                    return role, part
    return "", ""


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Return the array in an IDX file, gzipped or not (the format of MNIST).

    Raises
    ------
    BadInput
        If it is truncated or of another format.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"{path}: truncated or damaged ({_first_line(error)}); restore the file") from None
    kind = _IDX_TYPES.get(data[2]) if len(data) >= 4 and data[:2] == b"\0\0" else None
    start = 4 + 4 * data[3] if kind is not None else 0
    if kind is None or not 1 <= data[3] <= 4 or len(data) < start:
        raise BadInput(f"{path}: not an IDX file of whole numbers; give one such as train-images-idx3-ubyte.gz")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    wanted = start + math.prod(shape) * kind.itemsize
    if len(data) != wanted:
        raise BadInput(f"{path}: holds {len(data)} bytes where its header says {wanted}; restore the file")
    array: npt.NDArray[Any] = np.frombuffer(data, kind, offset=start).reshape(shape)
    return array


def part_of_arrays(images: Any, labels: Any, where: str, *, classes: Any = None) -> Part:
    """Return arrays of images and labels as a part.

    Parameters
    ----------
    images : array (images, height, width) or (images, height, width, channels)
        uint8; or whole numbers from 0 to 255, or numbers from 0 to 1, which are taken times 255.
    labels : array (images,), or None
        Whole numbers or names.
    classes : array (classes,), optional
        The name of each number.

    Raises
    ------
    BadInput
        If they are of another shape or type, not finite, out of range or not as many.
    """
    pixels = as_bytes(np.asarray(images), where)
    found = tuple(image_of_array(row, f"{Path(where).name} {index}") for index, row in enumerate(pixels))
    if labels is None:
        return Part(where, found)
    given = np.asarray(labels)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.shape != (len(found),):
        raise BadInput(f"{where}: {len(found)} images and labels of shape {given.shape}; give one label an image")
    names = label_names(given.tolist(), where)
    listed = None if classes is None else tuple(str(name) for name in np.asarray(classes).ravel().tolist())
    numbers = numbered(names)
    if listed is not None and numbers is not None:
        if max(numbers) >= len(listed) or len(set(listed)) < len(listed):
            raise BadInput(f"{where}: labels up to {max(numbers)} and {len(set(listed))} classes; name each label once")
        return Part(where, found, tuple(listed[number] for number in numbers), listed)
    return Part(where, found, names, classes_of(names))


def label_names(labels: Iterable[Any], where: str) -> tuple[str, ...]:
    """Return labels as names.

    Raises
    ------
    BadInput
        If one is missing or not a whole number or a name.
    """
    names = []
    for index, label in enumerate(labels):
        whole = label.is_integer() if isinstance(label, float) else isinstance(label, int)
        name = str(int(label)) if whole else label.strip() if isinstance(label, str) else ""
        if not name:
            raise BadInput(f"{where}: label {index} is {label!r}; give every image a whole number or a name")
        names.append(name)
    return tuple(names)


def numbered(names: Sequence[str]) -> list[int] | None:
    """Return labels that are all whole numbers from 0 as such, else None."""
    return [int(name) for name in names] if all(name.isdecimal() and len(name) < 6 for name in names) else None


def classes_of(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the classes that numbers count, from 0 to the greatest, in order; None where labels are names."""
    numbers = numbered(names)
    return tuple(map(str, range(max(numbers) + 1))) if numbers else None


def as_bytes(pixels: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """Return pixels as uint8.

    Raises
    ------
    BadInput
        If they are of another shape, not numbers, not finite or out of range.
    """
    if pixels.ndim not in (3, 4) or 0 in pixels.shape or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        turned = pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4)
        hint = "; move the channels to the end" if turned else ""
        raise BadInput(
            f"{where}: images of shape {pixels.shape}; give (images, height, width) or (images, height, width, "
            f"channels) with 1, 3 or 4 channels{hint}"
        )
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(pixels.dtype, np.number) or np.iscomplexobj(pixels):
        raise BadInput(f"{where}: images of type {pixels.dtype}; give whole numbers from 0 to 255")
    finite = np.isfinite(pixels)
    if not finite.all():
        first = int(np.argwhere(~finite)[0][0])
        raise BadInput(f"{where}: image {first} holds NaN or infinity; replace it or take the image away")
    low, high = float(pixels.min()), float(pixels.max())
    if np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1:
        return np.asarray(np.rint(pixels * 255.0), dtype=np.uint8)
    if low < 0 or high > 255:
        raise BadInput(f"{where}: pixels from {low:g} to {high:g}; give whole numbers from 0 to 255, or 0 to 1")
    return np.asarray(np.rint(pixels), dtype=np.uint8)


def idx_files(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return the IDX files of a folder: by name of the part the images, and the labels beside them."""
    names = {file.name: file for file in sorted(folder.iterdir()) if file.is_file() and "idx" in file.name.lower()}
    return {
        name.lower().partition("images")[0].strip("-_. "): (file, labels_beside(names, name))
        for name, file in names.items()
        if "images" in name.lower()
    }


def labels_beside(names: Mapping[str, Path], images: str) -> Path | None:
    """Return the file of labels that belongs to a file of images, such as train-labels-idx1 to train-images-idx3."""
    plain = images.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1").removesuffix(".gz")
    return names.get(f"{plain}.gz", names.get(plain))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
