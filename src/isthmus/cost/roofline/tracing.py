"""Tracing: run a network once on the meta device and write down its operators, with the module each belongs to.

No weights are loaded and nothing is multiplied, so that a network of any size is traced in seconds; and because the
network itself runs, any architecture is counted, narrowed ones too, without a formula for each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from isthmus.cost.roofline import counting
from isthmus.cost.roofline.operators import Operator, Pass
from isthmus.errors import UnsupportedNetwork


def trace(model: nn.Module, inputs: Mapping[str, Any], *, cached: bool = True) -> Pass:
    """Trace one pass of a network.

    Parameters
    ----------
    model : nn.Module
        On the meta device; `on_meta` makes such a copy of any.
    inputs : mapping of str to anything
        Keyword arguments. A cache of keys and values among them (``past_key_values``) is told from activations.
    cached : bool
        Whether keys and values are kept; if not, what a network does to keep them is not counted.

    Returns
    -------
    Pass

    Raises
    ------
    UnsupportedNetwork
        If it cannot run on the meta device: what it does depends on the values of tensors.
    """
    if any(parameter.device.type != "meta" for parameter in model.parameters()):
        raise ValueError("trace needs a model on the meta device; see on_meta")
    training = model.training
    model.eval()
    log = _Log(model)
    try:
        with torch.no_grad(), log.modules(), _Functions(log), _Dispatch(log):
            output = model(**inputs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedNetwork(
            f"roofline: {type(model).__name__} cannot be traced without its weights ({reason[:160]}); "
            "what it does may depend on the values of tensors"
        ) from None
    finally:
        model.train(training)
    return log.finish(cache_tensors(getattr(output, "past_key_values", None)), cached)


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a model without its weights: the same modules and shapes, on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def cache_tensors(cache: Any) -> list[Tensor]:
    """Return the keys and values that a cache of transformers holds."""
    layers = getattr(cache, "layers", None) or ()
    found = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


class _Log:
    """Operators as they come, and which of them wrote what."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.leaves = {
            path: type(module).__name__ for path, module in model.named_modules() if not [*module.children()]
        }
        held = [*model.parameters(), *model.buffers()]
        self.weights = {_storage(tensor) for tensor in held}
        self.stack: list[str] = []
        self.operators: list[Operator] = []
        self.sources: list[tuple[int, ...]] = []
        self.writer: dict[int, int] = {}  # by storage, the operator that wrote it last
        self.read: list[
            tuple[tuple[int, int], ...]
        ] = []  # by operator, (storage, elements) of the activations it reads
        self.written: list[int] = []
        self.kept: list[Any] = [tensor.untyped_storage() for tensor in held]  # so that no number is used again

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Follow which module is running."""

        def enter(module: nn.Module, arguments: Any) -> None:
            outer = self.stack[-1] if self.stack else ""
            self.stack.append(self.paths.get(id(module), outer))

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, operator: Operator, arguments: Any, result: Any) -> None:
        """Write down an operator that read the tensors in ``arguments`` and wrote those in ``result``."""
        weights = parameters = index = 0
        read: dict[int, int] = {}
        for tensor in counting.tensors(arguments):
            size, storage = counting.elements(tensor), _storage(tensor)
            if not tensor.is_floating_point():
                index += size * tensor.element_size()
            elif storage not in self.weights:
                read[storage] = read.get(storage, 0) + size
            elif operator.product is not None and tensor.dim() >= 2:
                weights += size
            elif operator.kind != "embedding":
                parameters += size
        outputs = list(counting.tensors(result))[: 1 if operator.kind in ("norm", "softmax", "scaling") else None]
        writes = sum(tensor.numel() for tensor in outputs if tensor.is_floating_point())
        index += sum(tensor.numel() * tensor.element_size() for tensor in outputs if not tensor.is_floating_point())
        if operator.kind == "embedding":
            parameters = writes  # of the table only the rows that are asked for are read
        sources = sorted({self.writer[storage] for storage in read if storage in self.writer})
        number = len(self.operators)
        for tensor in counting.tensors(result):
            self.writer[_storage(tensor)] = number
            self.kept.append(tensor.untyped_storage())
        self.operators.append(
            replace(
                operator,
                module=self.stack[-1] if self.stack else "",
                macs=operator.product.macs if operator.product else 0,
                flops=counting.operations(operator.kind, operator.product, sum(read.values()), writes),
                weights=weights,
                parameters=parameters,
                reads=sum(read.values()),
                writes=writes,
                index_bytes=index,
            )
        )
        self.sources.append(tuple(sources))
        self.read.append(tuple(read.items()))
        self.written.append(_storage(outputs[0]) if outputs else 0)

    def finish(self, cache: Sequence[Tensor], cached: bool) -> Pass:
        """Return what was traced; what reads and extends the cache is told from activations."""
        held = {_storage(tensor) for tensor in cache}
        operators = []
        for operator, read, written in zip(self.operators, self.read, self.written, strict=True):
            if written in held and operator.kind == "copy":
                operators.append(_append(operator, [size for _, size in read][-1] if cached else 0))
                continue
            kept = sum(size for storage, size in read if storage in held) if cached else 0
            operators.append(replace(operator, reads=operator.reads - kept, cache_reads=kept))
        total = sum(tensor.numel() for tensor in cache) if cached else 0
        return Pass(tuple(operators), tuple(self.sources), self.leaves, total)


def _append(operator: Operator, new: int) -> Operator:
    """Return the operator that puts new keys or values behind those that a cache holds.

    torch writes both anew; what has to be moved is what is new, as every engine with a cache does it.
    """
    return replace(operator, kind="cache", reads=new, writes=0, cache_writes=new, held=operator.writes if new else 0)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Functions(TorchFunctionMode):
    """Takes attention as one operator; dispatch would only see what it is put together from."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask")
        values = dict(zip(names, args, strict=False)) | {name: given[name] for name in names if name in given}
        query, key, value = (values[name] for name in names[:3])
        *groups, heads, rows, _ = query.shape
        # The fused kernel lays heads side by side, so that joining them again moves nothing.
        result = query.new_empty((*groups, rows, heads, value.shape[-1])).transpose(-3, -2)
        product = counting.attention_product(query, key, value)
        operator = Operator("scaled_dot_product_attention", "", "attention", product=product)
        self.log.add(operator, [query, key, value, values.get("attn_mask")], result)
        return result


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator that reaches the dispatcher."""

    def __init__(self, log: _Log) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if counting.is_view(func):
            return result
        given = [*args, *(kwargs or {}).values()]
        product = counting.product_of(func, args, result)
        weighted = any(_storage(tensor) in self.log.weights for tensor in counting.tensors(given) if tensor.dim() >= 2)
        kind = counting.kind_of(func, product, weighted, args)
        if kind != "made":
            self.log.add(Operator(counting.base_name(func), "", kind, product=product), given, result)
        return result
