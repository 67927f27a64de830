"""Residuals: what fine-tuning changed in each matrix, as quantized products of low rank under one budget of bytes.

Efficient Residual Encoding (Efficient Storage of Fine-Tuned Models via Low-Rank Approximation of Weight Residuals):
what fine-tuning adds to a network has spectra that fall fast, so a few singular vectors of each matrix say most of it.
A component ``s u v'`` of a matrix of shape ``(rows, columns)`` saves ``s**2`` of squared error (Eckart and Young 1936)
and takes bytes in proportion to ``rows + columns``. All components of all matrices are taken in the order of
``s**2 / (rows + columns)`` until the budget is spent; within a matrix that order is the order of its singular values,
so what is taken is a truncated decomposition of each matrix, and no other ranks of that many bytes lose less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.checks import check_matrix
from isthmus.errors import BadInput
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Coded, Floats, Product, Uniform, decode, exponents_of, scale_of

BITS = (4, 8)
_SHRINKS = np.exp2(-np.arange(8) / 4)
"""Shares of the finest scale without clipping that are tried; a finer one clips what is largest."""
_LEAST, _NOISE = 1e-20, 1e-7
"""Singular values below these, the second as a share of the matrix's largest, are rounding errors."""
_TRIES = 12


@dataclass(frozen=True)
class Spectrum:
    """A singular value decomposition, of shapes ``(rows, rank)``, ``(rank,)`` (falling) and ``(rank, columns)``."""

    left: Floats
    values: Floats
    right: Floats


def residual_code(
    base: Mapping[str, Floats],
    tuned: Mapping[str, Floats],
    budget_bytes: int,
    *,
    bits: Sequence[int] = BITS,
    overhead: Mapping[str, int] | None = None,
) -> dict[str, Coded]:
    """Return codes of ``tuned - base`` that together take at most ``budget_bytes``.

    Parameters
    ----------
    base, tuned : mapping of str to ndarray of float32, shape ``(rows, columns)``
        The same matrices before and after fine-tuning.
    budget_bytes : int
        Of all codes as ``storage.blobs.pack`` writes them, plus their overhead.
    bits : sequence of int
        Widths of the factors' integers (2 to 8), before entropy coding; the one that loses least is taken for all.
    overhead : mapping of str to int, optional
        Bytes that a matrix takes besides its code where it has one, such as its line in a file's header.

    Returns
    -------
    dict of str to Coded
        A `Product` by name; matrices that are worth no bytes are left out.

    Raises
    ------
    BadInput
        If the matrices of the two differ in name or shape, a difference is not finite, or the budget is negative.
    """
    if budget_bytes < 0:
        raise BadInput(f"budget of {budget_bytes} bytes: is negative; give the bytes that the codes may take")
    residuals = _residuals(base, tuned)
    spectra = {name: spectrum_of(residual) for name, residual in residuals.items()}
    best: dict[str, Coded] = {}
    least = np.inf
    for width in bits:
        found = _Filler(spectra, width, overhead or {}).fill(budget_bytes)
        lost = sum(_squares(residual - decode(found[name]) if name in found else residual)
                   for name, residual in residuals.items())  # fmt: skip
        if lost < least:
            best, least = found, lost
    return best


def spectrum_of(residual: Floats) -> Spectrum:
    """Return the singular value decomposition of a matrix ``(rows, columns)``, without what is rounding error."""
    left, values, right = np.linalg.svd(residual, full_matrices=False)
    rank = int((values > max(_LEAST, _NOISE * float(values[0]))).sum())
    return Spectrum(left[:, :rank], values[:rank], right[:rank])


def ordered(spectra: Mapping[str, Spectrum]) -> list[str]:
    """Return the matrix of each component, by falling ``s**2 / (rows + columns)``."""
    names = list(spectra)
    gains = [one.values.astype(np.float64) ** 2 / (len(one.left) + one.right.shape[1]) for one in spectra.values()]
    owners = np.repeat(np.arange(len(names)), [len(gain) for gain in gains])
    order = np.argsort(-np.concatenate([np.empty(0), *gains]), kind="stable")
    return [names[owner] for owner in owners[order]]


def factored(spectrum: Spectrum, rank: int, bits: int) -> Product:
    """Return the first ``rank`` components as a product of integers of ``bits`` bits, a scale for each component."""
    root = np.sqrt(spectrum.values[:rank])
    left = _rounded((spectrum.left[:, :rank] * root).T, bits)
    right = _rounded(root[:, None] * spectrum.right[:rank], bits)
    return Product(Uniform(left.integers.T.copy(), (left.scales[0].T.copy(),)), right)


def truncated(product: Product, rank: int) -> Product:
    """Return the first ``rank`` components of a product of `factored`; no scale depends on another component."""
    left, right = product.left, product.right
    assert isinstance(left, Uniform)
    assert isinstance(right, Uniform)
    return Product(
        Uniform(left.integers[:, :rank], (left.scales[0][:, :rank],)),
        Uniform(right.integers[:rank], (right.scales[0][:rank],)),
    )


def _rounded(vectors: Floats, bits: int) -> Uniform:
    """Return vectors ``(count, length)`` as integers, the scale of each the one of a few that loses least."""
    most = 2 ** (bits - 1) - 1
    finest = np.abs(vectors).max(1, keepdims=True) / most
    exponents = exponents_of(finest) + (scale_of(exponents_of(finest)) < finest)
    kept = np.zeros(vectors.shape, dtype=np.int32)
    chosen, least = exponents, np.full((len(vectors), 1), np.inf)
    for shrink in _SHRINKS:
        own = (exponents + exponents_of(shrink)).astype(np.int32)
        scale = scale_of(own)
        integers = np.clip(np.rint(vectors / scale), -most, most).astype(np.int32)
        lost = ((vectors - integers * scale).astype(np.float64) ** 2).sum(1, keepdims=True)
        better = lost < least
        kept, chosen = np.where(better, integers, kept), np.where(better, own, chosen)
        least = np.minimum(least, lost)
    return Uniform(kept, (chosen.astype(np.int32),))


class _Filler:
    """Takes components in order while their bytes, as written, fit."""

    def __init__(self, spectra: Mapping[str, Spectrum], bits: int, overhead: Mapping[str, int]) -> None:
        self.whole = {name: factored(one, len(one.values), bits) for name, one in spectra.items() if len(one.values)}
        self.overhead = overhead
        self.order = ordered(spectra)
        self._known: dict[tuple[str, int], int] = {}

    def fill(self, budget: int) -> dict[str, Coded]:
        """Return the codes of as many components as fit, then of single ones that fit into what is left."""
        taken = self._prefix(budget)
        ranks = Counter(self.order[:taken])
        left = budget - self._total(ranks)
        closed: set[str] = set()
        for name in self.order[taken:]:
            if name in closed:
                continue
            more = self._size(name, ranks[name] + 1) - self._size(name, ranks[name])
            if more <= left:
                ranks[name], left = ranks[name] + 1, left - more
            else:
                closed.add(name)
        return {name: truncated(self.whole[name], rank) for name, rank in sorted(ranks.items()) if rank}

    def _prefix(self, budget: int) -> int:
        """Return how many components fit, or a few less; where to look next follows from what the last ones took."""
        lengths = {name: sum(product.shape) for name, product in self.whole.items()}
        guess = np.cumsum([lengths[name] for name in self.order]) / 2.0  # four bits each
        taken, beyond, ratio = 0, len(self.order) + 1, 1.0
        for _ in range(_TRIES):
            if beyond - taken < 2:
                break
            middle = min(max(int(np.searchsorted(guess, budget / ratio)), taken + 1), beyond - 1)
            held = self._total(Counter(self.order[:middle]))
            taken, beyond = (middle, beyond) if held <= budget else (taken, middle)
            ratio = held / float(guess[middle - 1])
        return taken

    def _total(self, ranks: Mapping[str, int]) -> int:
        return sum(self._size(name, rank) for name, rank in ranks.items())

    def _size(self, name: str, rank: int) -> int:
        """Return the bytes of a matrix at a rank."""
        if not rank:
            return 0
        if (name, rank) not in self._known:
            held = len(pack(truncated(self.whole[name], rank)))
            self._known[name, rank] = held + self.overhead.get(name, 0)
        return self._known[name, rank]


def _residuals(base: Mapping[str, Floats], tuned: Mapping[str, Floats]) -> dict[str, Floats]:
    if base.keys() != tuned.keys():
        name = min(base.keys() ^ tuned.keys())
        raise BadInput(f"{name}: is in one network only; give a network that was fine-tuned from this base")
    found = {}
    for name, weight in base.items():
        if weight.shape != tuned[name].shape:
            shapes = f"{list(weight.shape)} in the base and {list(tuned[name].shape)} in the other"
            raise BadInput(f"{name}: is {shapes}; give a network that was fine-tuned from this base")
        residual = tuned[name].astype(np.float32) - weight.astype(np.float32)
        try:
            check_matrix(residual)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        found[name] = residual
    return found


def _squares(matrix: npt.NDArray[np.float32]) -> float:
    return float((matrix.astype(np.float64) ** 2).sum())
