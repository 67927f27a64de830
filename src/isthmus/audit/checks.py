"""What every measure asks of the arrays it is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LEAST = 10  # examples: a rate on fewer is an anecdote
FEW = 50  # examples: below this an answer comes with a warning


def check_finite(values: npt.ArrayLike, what: str, shape: tuple[int | None, ...]) -> Array:
    """Return an array of numbers of a shape; None stands for any length.

    Raises
    ------
    BadInput
        If it has another shape, or holds what is no number.
    """
    array = _numbers(values, what)
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    if array.ndim != len(shape) or any(w is not None and w != h for w, h in zip(shape, array.shape, strict=True)):
        raise BadInput(f"{what}: shape {array.shape} where ({wanted}) is needed; check which axis is which")
    if not np.isfinite(array).all():
        first = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise BadInput(f"{what}: not a finite number at {first}; look for NaN in the weights or in the data")
    return array


def check_probabilities(values: npt.ArrayLike, what: str) -> Array:
    """Return a population's probabilities, shape (networks, examples, classes); one network may come without its axis.

    Raises
    ------
    BadInput
        If they are not probabilities of two or more classes, or the examples are too few.
    """
    array = _population(values, what, 2)
    if array.shape[2] < 2:
        raise BadInput(f"{what}: {array.shape[2]} class; give the probabilities of two or more")
    if array.min(initial=0.0) < 0 or np.abs(array.sum(axis=2) - 1).max(initial=0.0) > 1e-4:
        raise BadInput(f"{what}: rows are not probabilities (not below 0, with sum 1); apply a softmax to logits first")
    check_count(array.shape[1], what)
    return array


def check_labels(labels: npt.ArrayLike, count: int, classes: int) -> Integers:
    """Return labels (examples,) as integers from 0 to ``classes - 1``.

    Raises
    ------
    BadInput
        If they are of another number, not whole, or out of range.
    """
    array = check_finite(labels, "labels", (count,))
    if (array != np.round(array)).any() or array.min() < 0 or array.max() >= classes:
        raise BadInput(f"labels: not whole numbers from 0 to {classes - 1}; give the index of each example's class")
    return array.astype(np.int64)


def check_losses(original: npt.ArrayLike, narrowed: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the losses of two populations, shapes (originals, examples) and (narrowed, examples).

    Raises
    ------
    BadInput
        If they are not of the same examples, not finite, or too few.
    """
    first = _population(original, "the original's losses", 1)
    second = _population(narrowed, "the narrowed network's losses", 1)
    check_finite(second, "the narrowed network's losses", (None, first.shape[1]))
    check_count(first.shape[1], "losses")
    return first, second


def _population(values: npt.ArrayLike, what: str, axes: int) -> Array:
    """Return an array with an axis of networks before its own ``axes``; one network may come without it."""
    array = _numbers(values, what)
    return check_finite(array[None] if array.ndim == axes else array, what, (None,) * (axes + 1))


def _numbers(values: npt.ArrayLike, what: str) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what}: not an array of numbers ({error}); give rows of equal length") from error


def check_count(count: int, what: str) -> None:
    """Refuse fewer examples than any rate can be had from."""
    if count < LEAST:
        raise BadInput(f"{what}: {count} examples are too few to audit; give at least {LEAST}, better hundreds")


def few(count: int, what: str = "examples") -> tuple[str, ...]:
    """Return the warning that goes with few examples, or nothing."""
    return (f"{count} {what}: fewer than {FEW}, so intervals are wide and little can be found",) if count < FEW else ()
