"""Operators: how labels pass through what a network computes, one rule for each kind of operator of ATen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.sites.labels import Ties, Value, support


def elementwise(ties: Ties, operands: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """Return the labels of what is computed entry by entry from operands that are broadcast to ``shape``.

    Where two operands both have labels these are tied. Where an operand has entries of its own along a dimension and no
    labels for it, nothing of the others can leave along that dimension.
    """
    aligned = [operand.aligned(len(shape)) for operand in operands]
    found: list[Tensor] = []
    for operand in aligned:
        for factor in operand.factors:
            found = _joined(ties, found, factor)
    result = Value(shape, tuple(found))
    for operand in aligned:
        labelled = {dim for factor in operand.factors for dim in support(factor)}
        bare = [dim for dim, size in enumerate(operand.shape) if size > 1 and dim not in labelled]
        result = without(ties, result, bare)
    return result


def _joined(ties: Ties, found: list[Tensor], factor: Tensor) -> list[Tensor]:
    """Add a factor to those found: tied to the one that depends on the same dimensions."""
    rivals = [other for other in found if set(support(other)) & set(support(factor))]
    rest = [other for other in found if all(other is not rival for rival in rivals)]
    if not rivals:
        return [*found, factor]
    if len(rivals) > 1:
        for one in (*rivals, factor):
            ties.fix(one)
        return rest
    both = set(support(rivals[0])) & set(support(factor))
    known, new = _reduced(ties, rivals[0], both), _reduced(ties, factor, both)
    if known is None or new is None:  # cannot be: both depend on what they have in common
        return rest
    ties.tie(known, new)
    return [*rest, known]


def _reduced(ties: Ties, factor: Tensor, keep: set[int]) -> Tensor | None:
    """Make a factor independent of all dimensions but those in ``keep``."""
    reduced: Tensor | None = factor
    for dim in support(factor):
        if dim not in keep and reduced is not None:
            reduced = ties.merge(reduced, dim)
    return reduced


def without(ties: Ties, value: Value, dims: Sequence[int]) -> Value:
    """Return the labels of a tensor where nothing may leave along ``dims`` alone (they are summed or compared over)."""
    factors = value.factors
    for dim in dims:
        merged = (ties.merge(factor, dim % len(value.shape)) for factor in factors)
        factors = tuple(factor for factor in merged if factor is not None)
    return Value(value.shape, factors)


def product(ties: Ties, left: Value, right: Value, *, weight: bool) -> tuple[Value, Tensor | None, Tensor | None]:
    """Return the labels of the batched matrix product of ``(n, p, k)`` and ``(n, k, q)``.

    Parameters
    ----------
    weight : bool
        Whether ``right`` is a parameter. Then single entries can leave along ``k``: a gate closes what enters. Between
        two activations there is no such gate, and a dimension that is summed over leaves as a whole or not at all,
        which is what makes the heads of attention units.

    Returns
    -------
    tuple of (Value, Tensor or None, Tensor or None)
        Of shape ``(n, p, q)``; the labels summed over, where they can leave; the labels of the batch, where they can.
    """
    (n, p, k), q = left.shape, right.shape[-1]
    summed = None
    rows, columns = left.along(2), right.along(1)
    if weight and rows is not None and columns is not None:
        ties.tie(rows, columns)
        summed = rows
        left = Value(left.shape, tuple(f for f in left.factors if support(f) != [2]))
        right = Value(right.shape, tuple(f for f in right.factors if support(f) != [1]))
    elif k > 1:
        left, right = without(ties, left, [2]), without(ties, right, [1])
    batch = [
        reduced
        for value in (left, right)
        for factor in value.factors
        if factor.shape[0] > 1 and (reduced := _reduced(ties, factor, {0})) is not None
    ]
    factors = [f.expand(1, f.shape[1], 1) for f in left.factors if support(f) == [1]]
    factors += [f for f in right.factors if support(f) == [2]]
    together = None
    if len(batch) == 2:
        ties.tie(batch[0], batch[1])
        # Heads that share keys and values: what one of them leaves with is the head, not an entry of all of them.
        for factor in factors:
            ties.fix(factor)
        factors = []
        factors.append(batch[0])
        together = batch[0].reshape(-1)
    else:
        for factor in batch:
            ties.fix(factor)
    return Value((n, p, q), tuple(factors)), summed, together


def attention(ties: Ties, query: Value, key: Value, value: Value, bias: Value | None) -> tuple[Value, Tensor | None]:
    """Return the labels of attention over ``(batch, heads, tokens, size)``, and those of its heads."""
    batch, heads, rows, _ = query.shape
    key, value = (_repeated(ties, one, heads) for one in (key, value))
    flat = [_flattened(ties, one) for one in (query, key, value)]
    turned = Value(
        (flat[1].shape[0], flat[1].shape[2], flat[1].shape[1]), tuple(f.transpose(1, 2) for f in flat[1].factors)
    )
    scores, _, _ = product(ties, flat[0], turned, weight=False)
    shape = (batch, heads, rows, key.shape[2])
    scores = moved(ties, torch.ops.aten.view.default, (scores, list(shape)), {}, [shape])[0]
    if bias is not None:
        scores = elementwise(ties, [scores, bias], shape)
    result, _, together = product(ties, _flattened(ties, scores), flat[2], weight=False)
    shape = (batch, heads, rows, value.shape[3])
    return moved(ties, torch.ops.aten.view.default, (result, list(shape)), {}, [shape])[0], together


def _repeated(ties: Ties, value: Value, heads: int) -> Value:
    """Return the labels of keys or values that as many query heads read, each its own copy."""
    batch, own, rows, size = value.shape
    if own == heads:
        return value
    wide, whole = (batch, own, heads // own, rows, size), (batch, heads, rows, size)
    value = Value((batch, own, 1, rows, size), tuple(factor.unsqueeze(2) for factor in value.factors))
    value = expanded(ties, value, wide)
    return moved(ties, torch.ops.aten.reshape.default, (value, list(whole)), {}, [whole])[0]


def expanded(ties: Ties, value: Value, shape: tuple[int, ...]) -> Value:
    """Return the labels of a tensor that is repeated along dimensions of size 1; each copy can leave by itself."""
    value = value.aligned(len(shape))
    copies = []
    for dim, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old != new:
            size = [1] * len(shape)
            size[dim] = new
            copies.append(ties.copies(new).reshape(size))
    return Value(shape, (*value.factors, *copies))


def _flattened(ties: Ties, value: Value) -> Value:
    batch, heads, rows, size = value.shape
    shape = (batch * heads, rows, size)
    return moved(ties, torch.ops.aten.reshape.default, (value, list(shape)), {}, [shape])[0]


def moved(
    ties: Ties, operator: Any, args: Sequence[Any], kwargs: dict[str, Any], shapes: Sequence[tuple[int, ...]]
) -> list[Value]:
    """Return the labels after an operator that only moves entries: what it does to entries it does to their labels."""
    source: Value = args[0]
    results: list[list[Tensor | None]] = [[] for _ in shapes]
    for factor in source.factors:
        output = operator(factor.expand(source.shape), *args[1:], **kwargs)
        parts = list(output) if isinstance(output, list | tuple) else [output]
        for found, part in zip(results, parts, strict=True):
            found.append(ties.compress(part))
    return [Value(shape, ties.disjoint(found)) for shape, found in zip(shapes, results, strict=True)]


def parted(ties: Ties, value: Value, dim: int, sizes: Sequence[int]) -> Value:
    """Return the labels of a tensor that is about to be cut into parts of these sizes along ``dim``.

    Code that cuts in equal parts goes by the size there is, so all parts lose equally; other cuts state sizes, and
    nothing can leave along them.
    """
    for factor in value.factors:
        if support(factor) == [dim % len(value.shape)]:
            labels = factor.reshape(-1)
            if len(set(sizes)) == 1 and sum(sizes) == len(labels):
                parts = labels.reshape(len(sizes), -1)
                ties.tie(parts, parts[:1])
            else:
                ties.fix(labels)
    if any(len(support(factor)) > 1 for factor in value.factors):
        return without(ties, value, [dim])
    return value


def joined(ties: Ties, parts: Sequence[Value], dim: int, shape: tuple[int, ...]) -> Value:
    """Return the labels of tensors that are concatenated along ``dim``."""
    dim %= len(shape)
    parts = [part for part in parts if len(part.shape) == len(shape) and part.shape[dim] > 0]
    across = [
        Value((*part.shape[:dim], 1, *part.shape[dim + 1 :]), tuple(f for f in part.factors if dim not in support(f)))
        for part in parts
    ]
    factors: list[Tensor | None] = list(elementwise(ties, across, (*shape[:dim], 1, *shape[dim + 1 :])).factors)
    along = [next((f for f in part.factors if dim in support(f)), None) for part in parts]
    if any(factor is not None for factor in along):
        pieces = []
        for part, factor in zip(parts, along, strict=True):
            piece = torch.zeros([1] * len(shape), dtype=torch.int64) if factor is None else factor
            pieces.append(piece.expand(part.shape))
        factors.append(ties.compress(torch.cat(pieces, dim)))
    return Value(shape, ties.disjoint(factors))


def padded(ties: Ties, value: Value, dim: int, before: int, after: int) -> tuple[Value, Tensor, Tensor]:
    """Return the labels of a tensor that gets zeros before and after along ``dim``, and those of the zeros.

    Nothing is lost where only zeros leave, so what is padded to labelled entries may leave too.
    """
    shape = (*value.shape[:dim], value.shape[dim] + before + after, *value.shape[dim + 1 :])
    labels = value.along(dim)
    if labels is None or before < 0 or after < 0:
        return Value(shape, without(ties, value, [dim]).factors), ties.fresh(0), ties.fresh(0)
    front, back = ties.fresh(before), ties.fresh(after)
    size = [1] * len(shape)
    size[dim] = shape[dim]
    rest = tuple(factor for factor in value.factors if support(factor) != [dim])
    return Value(shape, (*rest, torch.cat((front, labels, back)).reshape(size))), front, back


def convolution(
    ties: Ties, value: Value, weight: Value, bias: Value | None, shape: tuple[int, ...], groups: int
) -> tuple[Value, Tensor | None]:
    """Return the labels of a convolution, and the labels that it sums over, where they can leave.

    A group of a grouped convolution leaves as a whole; in a depthwise one a group is one channel.
    """
    dims = len(shape)
    weight = without(ties, weight, range(2, dims))
    value = without(ties, value, range(2, dims))
    rows, columns, entering = weight.along(0), weight.along(1), value.along(1)
    for factor in value.factors:
        if support(factor) != [1]:
            ties.fix(factor)
    summed = None
    if groups == 1:
        if columns is not None and entering is not None:
            ties.tie(columns, entering)
            summed = entering
        else:
            for labels in (columns, entering):
                if labels is not None:
                    ties.fix(labels)
    else:
        if columns is not None:
            ties.fix(columns)
        if rows is not None and entering is not None:
            inside = torch.cat((rows.reshape(groups, -1), entering.reshape(groups, -1)), 1)
            ties.tie(inside, inside[:, :1])
        else:
            for labels in (rows, entering):
                if labels is not None:
                    ties.fix(labels)
    out = Value(shape, () if rows is None else (rows.reshape(1, -1, *[1] * (dims - 2)),))
    if bias is not None:
        labels = bias.along(0)
        factors = () if labels is None else (labels.reshape(1, -1, *[1] * (dims - 2)),)
        out = elementwise(ties, [out, Value((1, shape[1], *[1] * (dims - 2)), factors)], shape)
    return out, summed


def by_channel(ties: Ties, value: Value, parameters: Sequence[Value | None]) -> Value:
    """Return the labels of a batch norm: parameters and statistics of shape ``(channels,)`` go with channel dim 1."""
    shaped = [value]
    for parameter in parameters:
        if parameter is not None:
            size = (1, parameter.shape[0], *[1] * (len(value.shape) - 2))
            shaped.append(Value(size, tuple(factor.reshape(size) for factor in parameter.factors)))
    return elementwise(ties, shaped, value.shape)


def grouped(ties: Ties, value: Value, groups: int) -> Value:
    """Return the labels of a group norm of more than one group: a group leaves as a whole."""
    labels = value.along(1)
    if labels is None:
        return without(ties, value, [1])
    inside = labels.reshape(groups, -1)
    ties.tie(inside, inside[:, :1])
    return value
