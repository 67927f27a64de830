"""What one call of a torch operator multiplies, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

from torch import Tensor

from isthmus.cost.roofline.operators import Product

# Operations an element; what multiplies counts two a multiply-accumulate instead.
_PER_ELEMENT = {"norm": 7, "softmax": 5, "activation": 1, "reduction": 1}

_KINDS = {
    "embedding": "embedding",
    "native_layer_norm": "norm",
    "native_group_norm": "norm",
    "_fused_rms_norm": "norm",
    "_native_batch_norm_legit_no_training": "scaling",
    "native_batch_norm": "scaling",
    "cudnn_batch_norm": "scaling",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "softmax",
    "max_pool2d_with_indices": "reduction",
    "avg_pool2d": "reduction",
    "_adaptive_avg_pool2d": "reduction",
    "mean": "reduction",
    "sum": "reduction",
    "amax": "reduction",
    "max": "reduction",
    "var_mean": "reduction",
    "argmax": "reduction",
    "cumsum": "reduction",
    "linalg_vector_norm": "reduction",
}
_COPIES = frozenset(
    [
        "cat",
        "clone",
        "copy",
        "_to_copy",
        "copy_",
        "repeat",
        "stack",
        "gather",
        "index",
        "index_select",
        "constant_pad_nd",
        "roll",
        "flip",
        "scatter",
        "index_put",
        "slice_scatter",
        "select_scatter",
        "masked_fill",
        "fill_",
        "zero_",
        "where",
        "repeat_interleave",
        "_reshape_copy",
    ]
)
_MADE = frozenset(
    [
        "arange",
        "full",
        "ones",
        "zeros",
        "empty",
        "scalar_tensor",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_strided",
        "lift_fresh",
        "_local_scalar_dense",
    ]
)
_VIEWS = frozenset(("_unsafe_view", "_reshape_alias", "alias", "detach", "lift_fresh", "_conj"))


def is_view(func: Any) -> bool:
    """Return whether an operator only looks at memory in another way."""
    return bool(func.is_view) or base_name(func) in _VIEWS


def base_name(func: Any) -> str:
    """Return the name of an operator without namespace and overload."""
    return str(func).split(".")[1] if "." in str(func) else str(func)


def tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)


def elements(tensor: Tensor) -> int:
    """Return how many elements of memory a tensor touches: those that it only repeats count once."""
    return prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)


def kind_of(func: Any, product: Product | None, weighted: bool, arguments: Sequence[Any]) -> str:
    """Return the kind of an operator."""
    name = base_name(func)
    if product is not None:
        if "convolution" in name:
            groups = int(arguments[8])
            return "depthwise" if groups > 1 and groups == arguments[0].shape[1] else "convolution"
        return "linear" if weighted else "product"
    if name in _KINDS:
        return _KINDS[name]
    if name in _MADE:
        return "made"
    return "copy" if name in _COPIES else "activation"


def operations(kind: str, product: Product | None, inputs: int, outputs: int) -> int:
    """Return the operations of an operator that reads and writes so many elements."""
    if product is not None:
        return 2 * product.macs
    each = _PER_ELEMENT.get("activation" if kind == "scaling" else kind, 0)
    return each * max(inputs, outputs) if kind == "reduction" else each * outputs


def product_of(func: Any, arguments: Sequence[Any], result: Any) -> Product | None:
    """Return what an operator multiplies, or None where it multiplies no matrices."""
    count = _PRODUCTS.get(base_name(func))
    return None if count is None else count(arguments, result)


def attention_product(query: Tensor, key: Tensor, value: Tensor) -> Product:
    """Return what attention multiplies: scores and weighted sum, of all heads of the query.

    The inner size is that of the keys and that of the values together, so that the product's multiply-accumulates
    are those of both matrix products.
    """
    *groups, rows, size = query.shape
    return Product(prod(groups), rows, key.shape[-2], size + value.shape[-1])


def _mm(arguments: Sequence[Any], result: Any) -> Product:
    left, right = arguments[:2]
    return Product(1, left.shape[0], right.shape[1], left.shape[1])


def _bmm(arguments: Sequence[Any], result: Any) -> Product:
    left, right = arguments[:2]
    return Product(left.shape[0], left.shape[1], right.shape[2], left.shape[2])


def _mv(arguments: Sequence[Any], result: Any) -> Product:
    return Product(1, arguments[0].shape[0], 1, arguments[0].shape[1])


def _dot(arguments: Sequence[Any], result: Any) -> Product:
    return Product(1, 1, 1, arguments[0].shape[0])


def _grouped(arguments: Sequence[Any], result: Any) -> Product:
    left, right = arguments[:2]
    # Each row meets the matrix of its group only.
    return Product(1, left.shape[0], right.shape[-1], left.shape[-1])


def _convolution(arguments: Sequence[Any], result: Any) -> Product:
    given, weight = arguments[:2]
    groups = int(arguments[8])
    positions = given if arguments[6] else result  # a transposed one multiplies once for every entry that it reads
    rows = positions.shape[0] * prod(positions.shape[2:])
    window = prod(weight.shape[2:])
    inside, outside = given.shape[1] // groups, result.shape[1] // groups
    return Product(groups, rows, outside, inside * window)


_PRODUCTS: dict[str, Callable[[Sequence[Any], Any], Product]] = {
    "mm": _mm,
    "addmm": lambda arguments, result: _mm(arguments[1:], result),
    "bmm": _bmm,
    "baddbmm": lambda arguments, result: _bmm(arguments[1:], result),
    "mv": _mv,
    "addmv": lambda arguments, result: _mv(arguments[1:], result),
    "dot": _dot,
    "_grouped_mm": _grouped,
    "convolution": _convolution,
    "_convolution": _convolution,
}
