"""Reading images: class folders, npz, IDX and Parquet files, or data in Python, to parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import BadInput
from isthmus.examples import Image, image_of_array, image_of_file
from isthmus.tasks.image_arrays import (
    IMAGE_NAMES,
    LABEL_NAMES,
    Part,
    as_bytes,
    classes_of,
    idx_files,
    joined,
    label_names,
    labels_beside,
    part_of_arrays,
    read_idx,
    read_npy,
    read_npz,
)
from isthmus.tasks.tables import Table, read_table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FILE_SUFFIXES = (".npz", ".npy", ".parquet")
Rank = Callable[[str], int | None]
"""Tells how good a name is for what is held out, less being better; 0 for what is to train on, None for neither."""


def read_images(path: Path, rank: Rank) -> tuple[Part | None, Part | None]:
    """Read images to train on and those held out; None for a part that is not there.

    Parameters
    ----------
    path : Path
        A file (npz, npy, Parquet, IDX), a folder of such files, or a folder of image files: one folder a class, or
        folders named train and test (or dev, valid) with such in them; image files without class folders have no
        labels.
    rank : callable
        Tells by a name which part it is.

    Raises
    ------
    BadInput
        If nothing is there, a file is damaged, or the folder's layout says no one thing.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; check the path")
    parts = _parts_of_folder(path, rank) if path.is_dir() else _parts_of_file(path)
    ranked = {name: rank(name) for name in parts}
    held_rank = min((value for value in ranked.values() if value), default=None)
    held = [parts[name] for name, value in ranked.items() if value and value == held_rank]
    train = [parts[name] for name, value in ranked.items() if value == 0]
    if not train and not held:
        return joined(list(parts.values())), None
    return joined(train) if train else None, joined(held) if held else None


def read_data(data: Any, where: str) -> Part:
    """Read images given in Python.

    Parameters
    ----------
    data : object
        A ``datasets`` object or mappings with an image column and a label column; an array of images; a tuple of
        such an array and one of labels; or an iterable of images, or of pairs of an image and a label, where an image
        is an array, a PIL image, or the contents of an image file.

    Raises
    ------
    BadInput
        If it is none of these.
    """
    if isinstance(data, np.ndarray):
        return part_of_arrays(data, None, where)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray):
        return part_of_arrays(data[0], data[1], where)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise BadInput(f"{where}: a {type(data).__name__} holds no images; give images:PATH, or images and labels")
    rows = list(data)
    if rows and isinstance(rows[0], Mapping):
        names = getattr(data, "column_names", None) or list(rows[0])
        image = _column(names, IMAGE_NAMES)
        label = _column(names, LABEL_NAMES)
        if image is None:
            raise BadInput(
                f"{where}: no column of images; its columns are {', '.join(map(str, names))}; name one image"
            )
        labels = None if label is None else [row.get(label) for row in rows]
        return _of_objects([row.get(image) for row in rows], labels, where)
    if rows and isinstance(rows[0], tuple) and all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        return _of_objects([image for image, _ in rows], [label for _, label in rows], where)
    return _of_objects(rows, None, where)


def reads_images(names: Iterable[str]) -> bool:
    """Return whether columns of these names hold images."""
    return _column(list(names), ("image", "images", "img", "pixels")) is not None


def _of_objects(objects: Sequence[Any], labels: Sequence[Any] | None, where: str) -> Part:
    images = tuple(_image(value, f"{where} {index}", where) for index, value in enumerate(objects))
    if labels is None:
        return Part(where, images)
    names = label_names(labels, where)
    return Part(where, images, names, classes_of(names))


def _image(value: Any, name: str, where: str) -> Image:
    """Return a cell as an image: the contents or path of a file as ``datasets`` keeps it, an array or a PIL image."""
    if isinstance(value, Image):
        return value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return image_of_file(bytes(value), name)
    if isinstance(value, (str, Path)):
        return image_of_file(Path(value).expanduser(), str(value))
    if hasattr(value, "convert") and hasattr(value, "mode"):  # a PIL image, without importing the library for it
        value = np.asarray(value.convert("L" if value.mode in ("1", "L", "LA") else "RGB"))
    if isinstance(value, (np.ndarray, list)):
        return image_of_array(as_bytes(np.asarray(value)[None], name)[0], name)
    raise BadInput(f"{name}: a {type(value).__name__} is no image; give arrays, image files or their contents")


def _parts_of_file(path: Path) -> dict[str, Part]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        parts = read_npz(path)
        return {name or path.stem: part for name, part in parts.items()}
    if suffix == ".npy":
        return {path.stem: read_npy(path)}
    if suffix == ".parquet":
        return {path.stem: _of_table(read_table(path))}
    if "idx" in path.name.lower():
        beside = {file.name: file for file in path.parent.iterdir()}
        return {path.name.lower().partition("images")[0].strip("-_. "): _of_idx(path, labels_beside(beside, path.name))}
    raise BadInput(
        f"{path}: not a set of images; give a folder of images, or a file ending in {', '.join(FILE_SUFFIXES)} or an "
        "IDX file"
    )


def _of_idx(images: Path, labels: Path | None) -> Part:
    pixels = read_idx(images)
    if pixels.ndim not in (3, 4):
        raise BadInput(f"{images}: an array of shape {pixels.shape}, not images; give the file of images")
    return part_of_arrays(pixels, None if labels is None else read_idx(labels), str(images))


def _of_table(table: Table) -> Part:
    names = [str(name) for name in table.names or ()]
    image, label = _column(names, IMAGE_NAMES), _column(names, LABEL_NAMES)
    if image is None:
        raise BadInput(f"{table.where}: no column of images; its columns are {', '.join(names)}; name one image")
    labels = None if label is None else table.columns[names.index(label)]
    return _of_objects(table.columns[names.index(image)], labels, table.where)


def _column(names: Sequence[Any], known: Sequence[str]) -> Any:
    return next((name for wanted in known for name in names if str(name).strip().lower() == wanted), None)


def _parts_of_folder(folder: Path, rank: Rank) -> dict[str, Part]:
    """Return the parts of a folder, by the names of files or folders; one without parts has a single one, ``""``."""
    idx = idx_files(folder)
    files = _data_files(folder) or (_data_files(folder / "data") if (folder / "data").is_dir() else [])
    if idx and not files:
        return {name: _of_idx(images, labels) for name, (images, labels) in idx.items()}
    if files:
        found: dict[str, list[Part]] = {}
        for file in files:
            for name, part in _parts_of_file(file).items():
                found.setdefault(name, []).append(part)
        return {name: joined(parts) for name, parts in found.items()}
    folders = _folders(folder)
    # A class may be called train too: folders are parts only where every one of them is.
    if folders and all(rank(one.name) is not None for one in folders):
        return {one.name: _of_class_folder(one) for one in folders}
    return {"": _of_class_folder(folder)}


def _data_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in FILE_SUFFIXES]
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise BadInput(f"{folder}: {names} could each be the data; leave files of one format only")
    return files


def _folders(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith((".", "__"))]


def _image_files(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.iterdir()) if one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES]


def _of_class_folder(folder: Path) -> Part:
    """Return the images of a folder with a folder a class, or of one that holds images alone."""
    folders, files = _folders(folder), _image_files(folder)
    if not folders and not files:
        raise BadInput(f"{folder}: no images in this folder; give one with image files, a folder for each class")
    if folders and files:
        raise BadInput(f"{folder}: {files[0].name} lies beside class folders; move it into one of them")
    if not folders:
        return Part(str(folder), tuple(image_of_file(file, str(file)) for file in files))
    images: list[Image] = []
    labels: list[str] = []
    for one in folders:
        own = _image_files(one)
        if not own:
            raise BadInput(f"{one}: no images in this class folder; put images in it, or take it away")
        images += [image_of_file(file, str(file)) for file in own]
        labels += [one.name] * len(own)
    return Part(str(folder), tuple(images), tuple(labels))
