"""White-box transformer blocks: attention that lowers the coding rate of tokens, then a step that makes them sparse.

Yu et al. 2023 (arXiv 2311.13110): each block takes one step of descent on the sparse rate reduction objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.information.activations import still
from isthmus.information.spectra import coding_rate


class SubspaceAttention(nn.Module):
    """Multi-head subspace self-attention (MSSA): queries, keys and values are one projection onto each head's subspace.

    ``sum_k U_k (U_k' Z) softmax((U_k' Z)' (U_k' Z) / sqrt(p))``, tokens in columns: an approximate step down the
    gradient of the tokens' coding rate in the subspaces.

    Parameters
    ----------
    width, heads, head_width : int
        ``heads`` subspaces of ``head_width`` (p) dimensions.
    tied : bool
        Whether results go back through the subspaces themselves, as derived; otherwise through weights of their own, as
        the paper trains it.
    causal : bool
        Whether a token sees only those before it and itself.

    Raises
    ------
    BadInput
        If a size is below 1.
    """

    def __init__(self, width: int, heads: int, head_width: int, *, tied: bool = False, causal: bool = False) -> None:
        super().__init__()
        if min(width, heads, head_width) < 1:
            raise BadInput(f"subspace attention: width {width}, {heads} heads of {head_width}; give 1 or more of each")
        self.heads, self.head_width, self.causal = heads, head_width, causal
        self.subspaces = nn.Linear(width, heads * head_width, bias=False)
        self.back = None if tied else nn.Linear(heads * head_width, width, bias=False)

    def projected(self, tokens: Tensor) -> Tensor:
        """Return tokens in each subspace, shape ``(batch, heads, tokens, head_width)``."""
        found: Tensor = self.subspaces(tokens).unflatten(-1, (self.heads, self.head_width)).transpose(-2, -3)
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to tokens, shape ``(batch, tokens, width)``."""
        own = self.projected(tokens)
        mixed = nn.functional.scaled_dot_product_attention(own, own, own, is_causal=self.causal)
        joined = mixed.transpose(-2, -3).flatten(-2)
        found: Tensor = joined @ self.subspaces.weight if self.back is None else self.back(joined)
        return found


class SparsifyingStep(nn.Module):
    """One step of iterative shrinkage-thresholding (ISTA) towards a sparse, non-negative code in a dictionary.

    ``relu(z + s D'(z - D z) - s l)``: from z towards a code of z itself.

    Parameters
    ----------
    width : int
    step, threshold : float
        ``s`` and ``l``, above 0.

    Raises
    ------
    BadInput
        If a parameter is not above 0.
    """

    def __init__(self, width: int, *, step: float = 0.1, threshold: float = 0.1) -> None:
        super().__init__()
        if width < 1 or not min(step, threshold) > 0:
            raise BadInput(f"sparsifying step: width {width}, step {step}, threshold {threshold}; give all above 0")
        self.step, self.threshold = step, threshold
        self.dictionary = nn.Parameter(torch.empty(width, width))
        nn.init.orthogonal_(self.dictionary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the codes, none below 0, shape ``(..., width)``."""
        left = tokens - tokens @ self.dictionary.T
        return (tokens + self.step * (left @ self.dictionary) - self.step * self.threshold).relu()


class CrateBlock(nn.Module):
    """Subspace attention with what it is given added, then a sparsifying step; a layer norm before each.

    Parameters
    ----------
    width, heads, head_width : int
    tied, causal : bool
    step, threshold : float
        See `SubspaceAttention` and `SparsifyingStep`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        tied: bool = False,
        causal: bool = False,
        step: float = 0.1,
        threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm, self.sparse_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SubspaceAttention(width, heads, head_width, tied=tied, causal=causal)
        self.sparsify = SparsifyingStep(width, step=step, threshold=threshold)

    def compressed(self, tokens: Tensor) -> Tensor:
        """Return tokens after attention, before they are made sparse, shape ``(batch, tokens, width)``."""
        found: Tensor = tokens + self.attention(self.norm(tokens))
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens, shape ``(batch, tokens, width)``."""
        found: Tensor = self.sparsify(self.sparse_norm(self.compressed(tokens)))
        return found


@dataclass(frozen=True)
class BlockRates:
    """What one block does, in the mean over samples.

    Parameters
    ----------
    before, after : float
        Coding rate of tokens of unit length in the block's subspaces, summed over them, in nats a sample: as they enter
        the block, and after its attention.
    sparsity : float
        Share of the block's outputs that are zero.
    """

    before: float
    after: float
    sparsity: float


def block_rates(blocks: Sequence[CrateBlock], tokens: Tensor, *, precision: float = 0.5) -> tuple[BlockRates, ...]:
    """Return what each of a stack of blocks does to tokens: the two sides of sparse rate reduction.

    Parameters
    ----------
    blocks : sequence of CrateBlock
        In their order; what one gives enters the next.
    tokens : Tensor, shape ``(samples, tokens, width)``
        What enters the first.
    precision : float
        Of the coding rate; see `isthmus.information.spectra.coding_rate`.

    Raises
    ------
    BadInput
        If there is no block, tokens are of another shape or not finite, or the precision is not above 0.
    """
    if not blocks or tokens.ndim != 3 or not len(tokens):
        raise BadInput(f"{len(blocks)} blocks, tokens of shape {tuple(tokens.shape)}; give (samples, tokens, width)")
    found = []
    with still(nn.ModuleList(blocks)):
        for block in blocks:
            compressed = block.compressed(tokens)
            before, after = (_rate(block, one, precision) for one in (tokens, compressed))
            tokens = block.sparsify(block.sparse_norm(compressed))
            found.append(BlockRates(before, after, float((tokens == 0).float().mean())))
    return tuple(found)


def _rate(block: CrateBlock, tokens: Tensor, precision: float) -> float:
    projected = block.attention.projected(nn.functional.normalize(tokens, dim=-1)).double().cpu().numpy()
    rates = [sum(coding_rate(head, precision=precision) for head in sample) for sample in projected]
    return float(np.mean(rates))
