"""Tasks of images: every format gives the same images, and what is wrong is said in one line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from isthmus.errors import BadInput
from isthmus.examples import Image, image_of_array, shown, size_of, texts_of
from isthmus.tasks import Task, evaluate, load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx

DATA = data_folder()
needs_data = pytest.mark.skipif(DATA is None, reason="no real data: set ISTHMUS_DATA to its folder")


def pixels(count: int = 60, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (8, 8, 3))), dtype=np.uint8)


def labels(count: int = 60, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


def png(array: np.ndarray) -> bytes:
    pil = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pil.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def class_folder(root: Path, images: np.ndarray, names: np.ndarray) -> Path:
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        folder = root / f"class{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:04d}.png").write_bytes(png(image))
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


def idx_folder(root: Path, part: str, images: np.ndarray, names: np.ndarray) -> Path:
    root.mkdir(exist_ok=True)
    (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (root / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(names))
    return root


def everything(task: Task) -> set[tuple[bytes, str]]:
    rows = [*task.labelled, *zip(task.held_out.examples, task.held_out.labels, strict=True)]
    return {(np.asarray(image).tobytes(), task.label_names[label]) for image, label in rows}


def test_every_format_gives_the_same_images(tmp_path: Path) -> None:
    images, names = pixels(), labels()
    wanted = {(image.tobytes(), str(name)) for image, name in zip(images, names, strict=True)}
    np.savez(tmp_path / "set.npz", images=images, labels=names)
    cells = [{"bytes": png(image), "path": None} for image in images]
    polars.DataFrame({"image": cells, "label": names.tolist()}).write_parquet(tmp_path / "set.parquet")
    for file in ("set.npz", "set.parquet"):
        task = load_task(f"images:{tmp_path / file}")
        assert everything(task) == wanted, file
        assert (task.metric_name, task.label_names, len(task.held_out.examples)) == ("accuracy", ("0", "1", "2"), 20)
    folder = load_task(f"images:{class_folder(tmp_path / 'folders', images, names)}")
    assert everything(folder) == {(image, f"class{name}") for image, name in wanted}
    assert set(folder.train) == {image for image, _ in folder.labelled}
    assert not set(folder.train) & set(folder.held_out.examples)
    for data in (("images", (images, names)), ("images", list(zip(images, names.tolist(), strict=True)))):
        assert everything(load_task(data)) == wanted


def test_idx_files_of_both_parts(tmp_path: Path) -> None:
    train, held = pixels(30, 8, 8), pixels(12, 8, 8, seed=1)
    idx_folder(tmp_path / "idx", "train", train, labels(30))
    idx_folder(tmp_path / "idx", "t10k", held, labels(12))
    task = load_task(f"images:{tmp_path / 'idx'}")
    np.testing.assert_array_equal([np.asarray(image) for image in task.held_out.examples], held)
    np.testing.assert_array_equal([np.asarray(image) for image in task.train], train)
    assert task.held_out.labels == tuple(labels(12).tolist())
    np.testing.assert_array_equal(read_idx(tmp_path / "idx" / "train-images-idx3-ubyte.gz"), train)


def test_parts_in_folders_files_and_arrays(tmp_path: Path) -> None:
    train, held = pixels(12), pixels(9, seed=1)
    root = tmp_path / "parted"
    class_folder(root / "train", train, labels(12))
    class_folder(root / "val", held, labels(9))
    whole = load_task(f"images:{root}")
    assert (len(whole.train), len(whole.held_out.examples)) == (12, 9)
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, x_train=train, y_train=labels(12), x_test=held, y_test=labels(9)[:, None])
    parted = load_task(f"images:{arrays}")
    assert (len(parted.train), len(parted.held_out.examples)) == (12, 9)
    # A set whose name says that it is for testing is never trained on.
    np.savez(tmp_path / "test.npz", images=held, labels=labels(9))
    tested = load_task(f"images:{tmp_path / 'test.npz'}")
    assert (len(tested.train), len(tested.held_out.examples)) == (0, 9)
    with pytest.raises(BadInput, match="held out"):
        tested.require_train()


def test_a_datasets_object_is_read() -> None:
    class Rows(list[Any]):
        column_names = ("img", "label")

    pil = pytest.importorskip("PIL.Image")
    images = pixels(20)
    rows = Rows(
        {"img": pil.fromarray(image), "label": int(name)} for image, name in zip(images, labels(20), strict=True)
    )
    task = load_task({"train": rows, "test": Rows(rows[:6])})
    assert task.kind == "images"
    assert len(task.held_out.examples) == 6
    assert len(task.train) == 14  # what is held out is taken out of what is trained on


def test_names_of_classes_keep_their_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(), labels=labels(), classes=np.array(["zebra", "ant", "mole", "owl"]))
    task = load_task(f"images:{tmp_path / 'a.npz'}")
    assert task.label_names == ("zebra", "ant", "mole", "owl")
    assert {label for _, label in task.labelled} == {0, 1, 2}


def test_images_without_labels_are_compared_by_likeness(tmp_path: Path) -> None:
    images = pixels(40)
    np.save(tmp_path / "bare.npy", images)
    task = load_task(f"images:{tmp_path / 'bare.npy'}")
    assert (task.metric_name, task.labelled, len(task.train)) == ("likeness", (), 20)
    same = load_task(("images", images))
    assert (same.train, same.fingerprint) == (task.train, task.fingerprint)

    def embed(examples: Any) -> np.ndarray:
        return np.stack([np.asarray(image).reshape(-1)[:30].astype(float) for image in examples])

    assert evaluate(embed, task).value == 1.0
    assert evaluate(embed, task, embed(task.held_out.examples)).value == pytest.approx(1.0)


def test_the_split_follows_the_seed_and_the_content() -> None:
    data = ("images", (pixels(), labels()))
    first, again, other = (load_task(data, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.held_out.examples == again.held_out.examples != other.held_out.examples


def test_numbers_become_bytes() -> None:
    whole = pixels(30)
    for given in (whole / 255, whole.astype(np.float32) / 255, whole.astype(np.int64), whole.astype(float)):
        task = load_task(("images", (given, labels(30))))
        assert everything(task) == everything(load_task(("images", (whole, labels(30)))))


def test_mixed_sizes_and_colours_are_said() -> None:
    images = [*pixels(10), *pixels(10, 6, 9), *pixels(10, 8, 8, seed=2)]
    task = load_task(("images", list(zip(images, labels(30).tolist(), strict=True))))
    assert len(task.notes) == 2
    assert "2 sizes, from 6 by 9 to 8 by 8 pixels" in task.notes[0]
    assert "some images are grey" in task.notes[1]


def test_image_files_are_decoded_upright_as_grey_or_colour() -> None:
    pil = pytest.importorskip("PIL.Image")
    grey = pixels(1, 6, 9)[0]
    np.testing.assert_array_equal(np.asarray(image_of(png(grey))), grey)
    palette = pil.fromarray(pixels(1, 6, 9, 3)[0]).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    np.testing.assert_array_equal(np.asarray(image_of(buffer.getvalue())), np.asarray(palette.convert("RGB")))
    exif = pil.Exif()
    exif[274] = 6  # turned by a quarter
    buffer = io.BytesIO()
    pil.fromarray(grey).save(buffer, format="JPEG", exif=exif)
    assert np.asarray(image_of(buffer.getvalue())).shape == (9, 6)
    deep = (grey.astype(np.uint16) << 8) + 7
    np.testing.assert_array_equal(np.asarray(image_of(png(deep))), grey)


def image_of(data: bytes) -> Image:
    task = load_task(("images", [data, *(png(array) for array in pixels(5))]))
    return next(image for image in (*task.train, *task.held_out.examples) if str(shown(image)).endswith(" 0"))  # type: ignore[return-value]


def test_examples() -> None:
    first, same = (image_of_array(pixels(1)[0], name) for name in "ab")
    other = image_of_array(pixels(1).reshape(1, 4, 16, 3)[0], "a")
    assert (first == same, first == other, len({first, same, other})) == (True, False, 2)
    assert (size_of(first), size_of("four"), shown(first), shown("four")) == (0, 4, "a", "four")
    with pytest.raises(BadInput, match="reads texts, not images"):
        texts_of(["a", first], "network x")


def broken_png(path: Path) -> None:
    class_folder(path, pixels(20), labels(20))
    file = next(path.rglob("*.png"))
    file.write_bytes(file.read_bytes()[:100])


def text_as_png(path: Path) -> None:
    class_folder(path, pixels(20), labels(20))
    next(path.rglob("*.png")).write_text("no image")


def one_image(path: Path) -> None:
    class_folder(path, pixels(20), np.array([0] * 19 + [1]))


def one_class(path: Path) -> None:
    class_folder(path, pixels(20), np.zeros(20, dtype=int))


def empty_class(path: Path) -> None:
    class_folder(path, pixels(20), labels(20))
    (path / "class9").mkdir()


def beside(path: Path) -> None:
    class_folder(path, pixels(20), labels(20))
    (path / "loose.png").write_bytes(png(pixels(1)[0]))


def truncated_idx(path: Path) -> None:
    idx_folder(path, "train", pixels(9, 8, 8), labels(9))
    file = path / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-5]))


def saved(**arrays: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir(parents=True)
        np.savez(path / "set.npz", **arrays)

    return write


HALF = pixels(8) / 255
HALF[5, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no images in this folder"),
        (broken_png, "cannot be decoded"),
        (text_as_png, "not an image"),
        (one_image, "class class1 has one image"),
        (one_class, "all images are of one class"),
        (empty_class, "no images in this class folder"),
        (beside, "lies beside class folders"),
        (truncated_idx, "where its header says"),
        (saved(labels=labels(8)), "no array of images"),
        (saved(images=pixels(8)), "no array of labels"),
        (saved(images=pixels(8), labels=labels(7)), "8 images and labels of shape"),
        (saved(images=HALF, labels=labels(8)), "image 5 holds NaN"),
        (saved(images=pixels(8, 3, 8, 8), labels=labels(8)), "move the channels to the end"),
        (saved(images=pixels(8).astype(int) * 2, labels=labels(8)), "pixels from"),
        (saved(images=pixels(8), labels=labels(8) + 0.5), "give every image a whole number"),
        (saved(images=pixels(8), labels=labels(8), classes=["a", "b"]), "labels up to 2 and 2 classes"),
        (saved(images=pixels(8), labels=np.array([{}] * 8, dtype=object)), "plain arrays"),
    ],
)
def test_bad_sets_are_refused_in_one_line(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(BadInput) as caught:
        load_task(f"images:{tmp_path / 'set'}")
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "holds no images"),
        (pixels(1), "too few"),
        ([3, 4], "is no image"),
        ((pixels(4), ["a", "b", "", "a"]), "label 2 is ''"),
        ({"train": (pixels(9), labels(9)), "test": pixels(4, seed=1)}, "label both or none"),
        ([(pixels(1)[0], "a"), (pixels(1, seed=1)[0], 1)] * 2, "some labels are numbers"),
    ],
)
def test_bad_data_is_refused(data: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_task(("images", data))


@needs_data
def test_the_real_sets() -> None:
    assert DATA is not None
    task = load_task(f"images:{DATA / 'fashion-mnist'}")
    assert (len(task.train) + len(task.held_out.examples) <= 60_000, len(task.held_out.examples)) == (True, 1000)
    assert {image.shape for image in task.held_out.examples if isinstance(image, Image)} == {(28, 28, 1)}
    assert task.label_names == tuple(map(str, range(10)))
