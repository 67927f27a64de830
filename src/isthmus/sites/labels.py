"""Labels: which unit every entry of a tensor belongs to, so that coupled entries can be found.

An entry of a tensor carries the number of the thing that it leaves with. Numbers that must be equal (the channels of
two tensors that are added, the columns of a matrix and what they multiply) are *tied*; connected numbers are one unit.
Number 0 stands for what cannot leave.

The labels of a tensor are *factors*: integer tensors with as many dimensions as the tensor, each of full size or of
size 1 (then the label does not depend on it). An entry is there if all of its factors' labels are. A weight matrix has
two factors, one for its rows and one for its columns; an activation mostly one. No two factors of a tensor depend on
the same dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIXED = 0

Factors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Value:
    """The shape of a tensor and the factors of its labels; none where nothing of it can leave."""

    shape: tuple[int, ...]
    factors: Factors = ()

    def along(self, dim: int) -> Tensor | None:
        """Return the labels along ``dim``, shape ``(size,)``, where they depend on nothing else; else None."""
        for factor in self.factors:
            if support(factor) == [dim % len(self.shape)]:
                return factor.reshape(-1)
        return None

    def aligned(self, dims: int) -> Value:
        """Return the same with leading dimensions of size 1, so that it has ``dims`` of them."""
        extra = (1,) * (dims - len(self.shape))
        return Value(extra + self.shape, tuple(factor.reshape(extra + factor.shape) for factor in self.factors))


def support(factor: Tensor) -> list[int]:
    """Return the dimensions that a factor depends on."""
    return [dim for dim, size in enumerate(factor.shape) if size > 1]


class Ties:
    """Which labels are one and the same."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[NDArray[np.int64]] = []
        self._copies = np.zeros(0, dtype=np.int64)

    @property
    def ties(self) -> int:
        """How many sets of labels have been tied so far."""
        return len(self._pairs)

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` labels that nothing has yet."""
        first, self.count = self.count, self.count + count
        return torch.arange(first, self.count)

    def copies(self, count: int) -> Tensor:
        """Return labels of copies of one thing, any of which can leave by itself: where nothing else names them."""
        labels = self.fresh(count)
        self._copies = np.append(self._copies, labels.numpy())
        return labels

    def are_copies(self, factor: Tensor) -> bool:
        """Return whether a factor's labels are of copies."""
        return bool(np.isin(factor.numpy(), self._copies).all())

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Make two sets of labels the same, entry by entry; shapes are broadcast."""
        one, other = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        pairs = torch.stack((one.reshape(-1), other.reshape(-1)), 1).numpy()
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self._pairs.append(np.unique(pairs, axis=0))

    def fix(self, labels: Tensor) -> None:
        """Say that what these labels stand for cannot leave."""
        self.tie(labels, torch.zeros((), dtype=torch.int64))

    def merge(self, factor: Tensor, dim: int) -> Tensor | None:
        """Make a factor independent of ``dim``: entries that differ in it only leave together.

        Returns
        -------
        Tensor or None
            None where the factor depended on nothing else: all of the dimension would have to leave, so none can.
        """
        if factor.shape[dim] == 1:
            return factor
        first = factor.narrow(dim, 0, 1)
        self.tie(factor, first)
        return self.checked(first)

    def checked(self, factor: Tensor) -> Tensor | None:
        """Return a factor that depends on something; one that does not cannot leave and is None."""
        if factor.numel() == 1:
            self.fix(factor)
            return None
        return factor

    def compress(self, factor: Tensor) -> Tensor | None:
        """Return a factor without the dimensions along which it does not change."""
        for dim, size in enumerate(factor.shape):
            if size > 1 and bool((factor == factor.narrow(dim, 0, 1)).all()):
                factor = factor.narrow(dim, 0, 1)
        return self.checked(factor)

    def disjoint(self, factors: Sequence[Tensor | None]) -> Factors:
        """Return factors of which no two depend on the same dimension; those that do are fixed, copies first."""
        found = [factor for factor in factors if factor is not None]
        own = {dim for factor in found if not self.are_copies(factor) for dim in support(factor)}
        for factor in found:
            if self.are_copies(factor) and own & set(support(factor)):
                self.fix(factor)
        found = [factor for factor in found if not (self.are_copies(factor) and own & set(support(factor)))]
        clashing = {
            index
            for index, factor in enumerate(found)
            for other, rival in enumerate(found)
            if other != index and set(support(factor)) & set(support(rival))
        }
        for index in clashing:
            self.fix(found[index])
        return tuple(factor for index, factor in enumerate(found) if index not in clashing)

    def fix_all(self, value: Value) -> None:
        """Say that nothing of a tensor can leave."""
        for factor in value.factors:
            self.fix(factor)

    def units(self) -> NDArray[np.int64]:
        """Return the unit of every label, shape ``(count,)``; 0 is that of what cannot leave."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate(self._pairs) if self._pairs else np.zeros((0, 2), dtype=np.int64)
        graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), (self.count, self.count))
        _, component = connected_components(graph, directed=False)
        fixed = component[FIXED]
        # The fixed component swaps its number with whichever was called 0.
        return np.where(component == fixed, 0, np.where(component == 0, fixed, component)).astype(np.int64)
