"""Joining: what an engine runs as one. Element-wise work is done as the result before it is written, if it can be.

OpenVINO, ONNX Runtime and compilers for GPUs all do this; torch without a compiler does not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from isthmus.cost.roofline.operators import PRODUCTS, Operator, Pass

_SIMPLE = ("activation", "scaling")
_HOSTS = ("linear", "convolution", "depthwise", "activation", "norm")


def joined(traced: Pass) -> tuple[Operator, ...]:
    """Return the kernels of a pass: its operators, those left out that are carried out within another.

    - A module with none inside that only works element by element, or normalizes, is one kernel: it reads what goes
      in and writes what comes out, however many operators it is written in.
    - Element-wise work joins the operator whose result it changes, where nobody else reads that result and both are of
      one size. A sum with another tensor joins a convolution, which then reads that too, but no linear map.

    Macs are the same before and after; of what is moved, what goes between joined operators is gone.
    """
    return _join_elementwise(_join_leaves(traced))


def _join_leaves(traced: Pass) -> Pass:
    """Make one operator of each run of operators that belong to a module which only norms or works by element."""
    groups: list[list[int]] = []
    for index, operator in enumerate(traced.operators):
        simple = operator.module in traced.leaves and operator.kind in (*_SIMPLE, "norm", "reduction", "softmax")
        last = groups[-1] if groups else []
        if simple and last and traced.operators[last[0]].module == operator.module and _is_simple(traced, last):
            last.append(index)
        else:
            groups.append([index])
    number = {index: at for at, group in enumerate(groups) for index in group}
    operators = tuple(_whole(traced, group) for group in groups)
    sources = tuple(
        tuple(sorted({number[source] for index in group for source in traced.sources[index]} - {at}))
        for at, group in enumerate(groups)
    )
    return Pass(operators, sources, traced.leaves, traced.cache)


def _is_simple(traced: Pass, group: list[int]) -> bool:
    return traced.operators[group[0]].kind in (*_SIMPLE, "norm", "reduction", "softmax")


def _whole(traced: Pass, group: list[int]) -> Operator:
    operators = [traced.operators[index] for index in group]
    first = operators[0]
    if len(operators) == 1:
        return first
    norm = "norm" in traced.leaves[first.module].lower() or any(one.kind in ("norm", "reduction") for one in operators)
    return replace(
        first,
        name=traced.leaves[first.module],
        kind="norm" if norm else "activation",
        flops=sum(one.flops for one in operators),
        parameters=sum(one.parameters for one in operators),
        reads=max(one.reads for one in operators[:1]),
        writes=operators[-1].writes,
        index_bytes=sum(one.index_bytes for one in operators),
        joined=tuple(one.name for one in operators),
    )


def _join_elementwise(traced: Pass) -> tuple[Operator, ...]:
    readers = Counter(source for sources in traced.sources for source in sources)
    host = list(range(len(traced.operators)))  # where each operator is carried out
    kernels: dict[int, Operator] = {}
    for index, operator in enumerate(traced.operators):
        chosen = None
        for source in reversed(traced.sources[index]) if operator.kind in _SIMPLE else ():
            kernel = kernels.get(host[source])
            if kernel is not None and readers[source] == 1 and _fits(traced.operators[source], kernel, operator):
                chosen = source
                break
        if chosen is None:
            kernels[index] = operator
            continue
        host[index] = host[chosen]
        kernels[host[index]] = _merged(kernels[host[chosen]], operator, traced.operators[chosen].writes)
    return tuple(kernels[index] for index in sorted(kernels))


def _fits(source: Operator, kernel: Operator, operator: Operator) -> bool:
    """Return whether an element-wise operator can be carried out as the source's result is written."""
    if kernel.kind not in _HOSTS or source.writes != operator.writes or not operator.writes:
        return False
    whole = operator.reads >= 2 * operator.writes  # another tensor of the same size is read too
    sums = operator.name.startswith("add") and kernel.kind in ("convolution", "depthwise")
    return not whole or sums or kernel.kind not in PRODUCTS


def _merged(kernel: Operator, operator: Operator, passed: int) -> Operator:
    return replace(
        kernel,
        flops=kernel.flops + operator.flops,
        parameters=kernel.parameters + operator.parameters,
        reads=kernel.reads + max(0, operator.reads - passed),
        writes=operator.writes,
        index_bytes=kernel.index_bytes + operator.index_bytes,
        joined=(*kernel.joined, operator.name),
    )
