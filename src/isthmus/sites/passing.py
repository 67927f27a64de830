"""Passing labels through every operator that a network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from isthmus.sites import aten, operators
from isthmus.sites.labels import Factors, Value, support
from isthmus.sites.seen import Norm, Obstacle, Pad, Sum, Trace


class Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that runs and passes labels through it."""

    def __init__(self, found: Trace, norms: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = found
        self.norms = norms  # modules that normalize by the root of the mean square
        self.values: Any = WeakTensorKeyDictionary()
        self.names: dict[int, str] = {}
        self.parameters: Any = WeakTensorKeyDictionary()
        self.stack: list[tuple[str, Tensor | None, Value | None]] = []
        self.made: list[tuple[str, Tensor]] = []
        self.held: list[Tensor] = []

    def value(self, tensor: Any) -> Value | None:
        """Return what is known of a tensor; None where it is none."""
        if not isinstance(tensor, Tensor):
            return None
        known = self.values.get(tensor)
        return known if known is not None else Value(tuple(tensor.shape))

    def name(self, tensor: Any) -> str | None:
        """Return the name of the parameter that a tensor is, or is a turned view of."""
        return self.names.get(id(tensor)) or self.parameters.get(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        known = [self.values[tensor] for tensor in inputs if tensor in self.values]
        # Before it runs, for it may write over what enters.
        labelled = any(value.factors for value in known)
        name = func.__name__.partition(".")[0]
        output = func(*args, **kwargs)
        if labelled:
            for tensor in inputs:
                if (parameter := self.name(tensor)) is not None:
                    self.trace.used.add(parameter)
            self._pass(func, name, args, kwargs, output, inputs)
        return output

    def _pass(self, func: Any, name: str, args: Any, kwargs: Any, output: Any, inputs: list[Tensor]) -> None:
        rule = _RULES.get(name)
        plain = name.rstrip("_")
        if rule is not None:
            rule(self, args, kwargs, output)
        elif plain in aten.MOVES and self._is_move(args):
            self._move(func, args, kwargs, output)
        elif plain in aten.REDUCTIONS:
            self._reduce(plain, args, kwargs, output)
        elif plain in aten.ALONG:
            self._along(args, kwargs, output)
        elif plain in aten.POOLS:
            self._pool(args, output)
        elif plain in aten.SHAPE_ONLY:
            return
        elif name == "as_strided_" and tuple(args[1]) == tuple(args[0].shape):
            return  # how it lies in memory, nothing else
        elif torch.Tag.pointwise in func.tags or plain in aten.POINTWISE or name in aten.WRITING:
            operands = [self.value(tensor) for tensor in inputs]
            shape = tuple(output.shape)
            self.values[output] = operators.elementwise(
                self.trace.ties, [one for one in operands if one is not None], shape
            )
        else:
            self._unknown(func, inputs)

    def _is_move(self, args: Any) -> bool:
        """Whether only the first argument has labels; an index that has them is no index."""
        return all(
            not value.factors for tensor in tensors_in(args[1:]) if (value := self.values.get(tensor)) is not None
        )

    def _unknown(self, func: Any, inputs: list[Tensor]) -> None:
        for tensor in inputs:
            if (value := self.values.get(tensor)) is not None:
                self.trace.ties.fix_all(value)
        place = self.stack[-1][0] if self.stack else ""
        self.trace.obstacles.append(Obstacle(place, func.__name__))

    def _move(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        outputs = list(output) if isinstance(output, list | tuple) else [output]
        source = self.value(args[0])
        assert source is not None
        if (cut := _cut(func.__name__.partition(".")[0], args, kwargs, source.shape)) is not None:
            source = operators.parted(self.trace.ties, source, *cut)
        shapes = [tuple(one.shape) for one in outputs]
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "layout")}
        operator = torch.ops.aten.reshape.default if "view" in func.__name__ else func
        if func.__name__.startswith("expand."):
            values = [operators.expanded(self.trace.ties, source, shapes[0])]
        else:
            values = operators.moved(self.trace.ties, operator, (source, *args[1:]), kwargs, shapes)
        name = self.name(args[0])
        for one, value in zip(outputs, values, strict=True):
            self.values[one] = value
            self.trace.joint += [factor for factor in value.factors if len(support(factor)) > 1]
            if name is not None:
                self.parameters[one] = name

    def _reduce(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        value = self.value(args[0])
        assert value is not None
        at = 2 if name == "linalg_vector_norm" else 1
        given = args[at] if len(args) > at else kwargs.get("dim")
        everything = list(range(len(value.shape)))
        dims = everything if given is None or given == [] else [given] if isinstance(given, int) else list(given)
        dims = [dim % len(value.shape) for dim in dims]
        place = self.stack[-1][0] if self.stack else ""
        if place in self.norms and dims == everything[-1:] and (labels := value.along(-1)) is not None:
            self.trace.norms.append(Norm(place, labels))
            value = Value(value.shape, tuple(factor for factor in value.factors if support(factor) != dims))
        value = operators.without(self.trace.ties, value, dims)
        outputs = output if isinstance(output, tuple) else (output,)
        for one in outputs:
            kept = [dim for dim in everything if dim not in dims] if one.dim() != len(value.shape) else everything
            factors = tuple(factor.reshape([factor.shape[dim] for dim in kept]) for factor in value.factors)
            self.values[one] = Value(tuple(one.shape), factors)

    def _along(self, args: Any, kwargs: Any, output: Any) -> None:
        value = self.value(args[0])
        assert value is not None
        integers = [arg for arg in args[1:] if type(arg) is int]
        dim = integers[0] if integers else kwargs.get("dim", -1)
        value = operators.without(self.trace.ties, value, [dim])
        for one in output if isinstance(output, tuple) else (output,):
            self.values[one] = Value(tuple(one.shape), value.factors if one.shape == value.shape else ())

    def _pool(self, args: Any, output: Any) -> None:
        value = self.value(args[0])
        assert value is not None
        value = operators.without(self.trace.ties, value, range(2, len(value.shape)))
        for one in output if isinstance(output, tuple) else (output,):
            self.values[one] = Value(tuple(one.shape), value.factors)

    # Rules of single operators; each is given the arguments and the output.

    def _matrix_product(self, args: Any, kwargs: Any, output: Any) -> None:
        left, right = args[-2], args[-1]
        ties = self.trace.ties
        one, other = self.value(left), self.value(right)
        assert one is not None
        assert other is not None
        flat = left.dim() == 2
        if flat:
            one, other = one.aligned(3), other.aligned(3)
        name = self.name(right)
        result, summed, together = operators.product(ties, one, other, weight=name is not None)
        if summed is not None and name is not None:
            self.trace.sums.append(Sum(name, summed))
        if together is not None:
            self.trace.heads.append(together)
        shape = tuple(output.shape)
        result = Value(shape, tuple(factor.reshape(factor.shape[1:]) if flat else factor for factor in result.factors))
        if len(args) == 3:  # addmm and baddbmm: what is added comes first
            bias = self.value(args[0])
            assert bias is not None
            result = operators.elementwise(ties, [result, bias], shape)
        self.values[output] = result

    def _convolve(self, args: Any, kwargs: Any, output: Any) -> None:
        tensor, weight, bias = args[:3]
        value, matrix = self.value(tensor), self.value(weight)
        assert value is not None
        assert matrix is not None
        name, turned = self.name(weight), bool(args[6])
        if turned or name is None:
            self._unknown(torch.ops.aten.convolution, [tensor, weight, *([] if bias is None else [bias])])
            return
        added = None if bias is None else self.value(bias)
        result, summed = operators.convolution(self.trace.ties, value, matrix, added, tuple(output.shape), int(args[8]))
        if summed is not None:
            self.trace.sums.append(Sum(name, summed))
        self.values[output] = result

    def _batch_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        value = self.value(args[0])
        assert value is not None
        self.values[output[0]] = operators.by_channel(self.trace.ties, value, [self.value(one) for one in args[1:5]])
        if (name := self.name(args[0])) is not None:
            self.parameters[output[0]] = name
            self.trace.standardized.add(name.rpartition(".")[0])

    def _layer_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        value, over = self.value(args[0]), len(args[1])
        assert value is not None
        if over > 1:
            value = operators.without(self.trace.ties, value, range(-over, 0))
        elif (labels := value.along(-1)) is not None:
            self.trace.norms.append(Norm(self.stack[-1][0] if self.stack else "", labels))
        else:
            value = operators.without(self.trace.ties, value, [-1])
        operands = [value, *(one for tensor in args[2:4] if (one := self.value(tensor)) is not None)]
        self.values[output[0]] = operators.elementwise(self.trace.ties, operands, value.shape)

    def _group_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        value, groups = self.value(args[0]), int(args[6])
        assert value is not None
        value = operators.without(self.trace.ties, value, range(2, len(value.shape)))
        if groups > 1:
            value = operators.grouped(self.trace.ties, value, groups)
        elif (labels := value.along(1)) is not None:
            self.trace.norms.append(Norm(self.stack[-1][0] if self.stack else "", labels))
        self.values[output[0]] = operators.by_channel(self.trace.ties, value, [self.value(one) for one in args[1:3]])

    def _attend(self, args: Any, kwargs: Any, output: Any) -> None:
        query, key, value = (self.value(one) for one in args[:3])
        assert query is not None
        assert key is not None
        assert value is not None
        bias = self.value(kwargs.get("attn_mask"))
        result, together = operators.attention(self.trace.ties, query, key, value, bias)
        if together is not None:
            self.trace.heads.append(together)
        self.values[output[0]] = result

    def _concatenate(self, args: Any, kwargs: Any, output: Any) -> None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        parts = [one for tensor in args[0] if (one := self.value(tensor)) is not None]
        self.values[output] = operators.joined(self.trace.ties, parts, dim, tuple(output.shape))

    def _stack_up(self, args: Any, kwargs: Any, output: Any) -> None:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
        parts = []
        for tensor in args[0]:
            value = self.value(tensor)
            assert value is not None
            factors: Factors = tuple(factor.unsqueeze(dim) for factor in value.factors)
            parts.append(Value((*value.shape[:dim], 1, *value.shape[dim:]), factors))
        self.values[output] = operators.joined(self.trace.ties, parts, dim, tuple(output.shape))

    def _pad(self, args: Any, kwargs: Any, output: Any) -> None:
        value, widths = self.value(args[0]), list(args[1])
        assert value is not None
        for index in range(0, len(widths), 2):
            before, after = widths[index], widths[index + 1]
            if before or after:
                dim = len(value.shape) - 1 - index // 2
                value, front, back = operators.padded(self.trace.ties, value, dim, before, after)
                if len(front) + len(back):
                    self.trace.pads.append(Pad(self.stack[-1][0] if self.stack else "", front, back))
        self.values[output] = value

    def _embed(self, args: Any, kwargs: Any, output: Any) -> None:
        table = self.value(args[0])
        assert table is not None
        table = operators.without(self.trace.ties, table, [0])
        factors = tuple(factor.reshape(*[1] * (output.dim() - 1), -1) for factor in table.factors)
        self.values[output] = Value(tuple(output.shape), factors)

    def _gather(self, args: Any, kwargs: Any, output: Any) -> None:
        value, dim = self.value(args[0]), args[1]
        assert value is not None
        value = operators.without(self.trace.ties, value, [dim])
        self.values[output] = Value(tuple(output.shape), value.factors)


def _cut(name: str, args: Any, kwargs: Any, shape: tuple[int, ...]) -> tuple[int, list[int]] | None:
    """Return along which dimension an operator cuts a tensor, and the sizes of the parts; None where it does not."""
    if name in ("split", "split_with_sizes"):
        dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(shape)
        size = args[1]
        if isinstance(size, int):
            whole, rest = divmod(shape[dim], size)
            return dim, [size] * whole + ([rest] if rest else [])
        return dim, list(size)
    if name == "slice":
        dim = (args[1] if len(args) > 1 else 0) % len(shape)
        start, end, step = (args[place] if len(args) > place else None for place in (2, 3, 4))
        first, last, stride = slice(start, end, step).indices(shape[dim])
        if (first, last) == (0, shape[dim]) and stride == 1:
            return None
        size = last - first
        even = stride == 1 and size > 0 and shape[dim] % size == 0 and first % size == 0
        return dim, [size] * (shape[dim] // size) if even else [1, 2]
    return None


_RULES: dict[str, Callable[..., None]] = {
    "mm": Follow._matrix_product,
    "bmm": Follow._matrix_product,
    "addmm": Follow._matrix_product,
    "baddbmm": Follow._matrix_product,
    "convolution": Follow._convolve,
    "native_batch_norm": Follow._batch_norm,
    "_native_batch_norm_legit_no_training": Follow._batch_norm,
    "native_layer_norm": Follow._layer_norm,
    "native_group_norm": Follow._group_norm,
    "_scaled_dot_product_flash_attention_for_cpu": Follow._attend,
    "cat": Follow._concatenate,
    "stack": Follow._stack_up,
    "constant_pad_nd": Follow._pad,
    "embedding": Follow._embed,
    "gather": Follow._gather,
}


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among arguments, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in tensors_in(value)]
    if isinstance(tree, list | tuple):
        return [tensor for value in tree for tensor in tensors_in(value)]
    return []
