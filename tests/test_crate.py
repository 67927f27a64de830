"""White-box blocks: each step against its formula, and what a stack does to rate and sparsity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import sparse_encode
from torch import nn

from isthmus.errors import BadInput
from isthmus.information.training.crate import CrateBlock, SparsifyingStep, SubspaceAttention, block_rates


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_formula_written_out(tied: bool, causal: bool) -> None:
    torch.manual_seed(0)
    layer = SubspaceAttention(6, 2, 3, tied=tied, causal=causal)
    tokens = torch.randn(2, 4, 6)
    found = layer(tokens)
    for sample in range(2):
        total = torch.zeros(4, 6)
        for head in range(2):
            basis = layer.subspaces.weight[3 * head : 3 * head + 3]
            own = tokens[sample] @ basis.T
            scores = own @ own.T / math.sqrt(3)
            if causal:
                scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
            back = basis.T if layer.back is None else layer.back.weight[:, 3 * head : 3 * head + 3]
            total += scores.softmax(1) @ own @ back.T
        torch.testing.assert_close(found[sample], total)


def test_a_step_is_a_proximal_step_of_the_lasso() -> None:
    """The gradient is autograd's, and the fixed points of repeated steps are scikit-learn's sparse codes."""
    torch.manual_seed(0)
    layer = SparsifyingStep(5, step=0.2, threshold=0.3)
    with torch.no_grad():
        layer.dictionary.copy_(torch.randn(5, 5) / 3)
    tokens = torch.randn(7, 5)
    code = tokens.clone().requires_grad_()
    error = 0.5 * (tokens - code @ layer.dictionary.T).square().sum() + 0.3 * code.sum()
    (gradient,) = torch.autograd.grad(error, code)
    torch.testing.assert_close(layer(tokens), (tokens - 0.2 * gradient).clamp(min=0))
    codes = tokens.clone()
    with torch.no_grad():
        for _ in range(2000):
            left = tokens - codes @ layer.dictionary.T
            codes = (codes + 0.2 * left @ layer.dictionary - 0.2 * 0.3).relu()
    best = sparse_encode(
        tokens.numpy(),
        layer.dictionary.detach().numpy().T,
        algorithm="lasso_cd",
        alpha=0.3,
        positive=True,
        max_iter=9999,
    )
    np.testing.assert_allclose(codes.numpy(), best, atol=1e-3)


def test_a_block_is_its_two_steps() -> None:
    torch.manual_seed(0)
    block = CrateBlock(6, 2, 3)
    tokens = torch.randn(2, 4, 6)
    half = tokens + block.attention(block.norm(tokens))
    torch.testing.assert_close(block(tokens), block.sparsify(block.sparse_norm(half)))


def test_rates_are_logarithms_of_determinants() -> None:
    torch.manual_seed(0)
    block = CrateBlock(6, 2, 3)
    tokens = torch.randn(2, 5, 6)
    found = block_rates([block], tokens, precision=0.3)[0]
    expected = []
    for sample in tokens:
        own = sample / sample.norm(dim=1, keepdim=True)
        for head in range(2):
            seen = own @ block.attention.subspaces.weight[3 * head : 3 * head + 3].T
            moments = torch.eye(5) + 3 / (5 * 0.3**2) * seen @ seen.T
            expected.append(0.5 * float(torch.logdet(moments)))
    assert found.before == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert found.sparsity == pytest.approx(float((block(tokens) == 0).float().mean()))
    two = block_rates([block, CrateBlock(6, 2, 3)], tokens, precision=0.3)
    assert two[0] == found


def test_tied_attention_over_a_mixture_of_subspaces_lowers_their_rate() -> None:
    """Tokens near two orthogonal subspaces, which the heads know: a step brings tokens of one subspace together."""
    torch.manual_seed(0)
    block = CrateBlock(8, 2, 4, tied=True)
    block.norm = nn.Identity()
    with torch.no_grad():
        block.attention.subspaces.weight.copy_(4 * torch.eye(8))
    one = torch.cat([torch.randn(3, 10, 4), 0.05 * torch.randn(3, 10, 4)], 2)
    other = torch.cat([0.05 * torch.randn(3, 10, 4), torch.randn(3, 10, 4)], 2)
    found = block_rates([block], torch.cat([one, other], 1))[0]
    assert found.after < 0.95 * found.before


def test_training_makes_codes_sparse() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList([CrateBlock(8, 2, 4, threshold=0.3) for _ in range(2)])
    head = nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*blocks.parameters(), *head.parameters()], lr=0.01)
    tokens = torch.randn(64, 5, 8)
    labels = (tokens[:, :, 0].mean(1) > 0).long()
    for _ in range(60):
        states = tokens
        for block in blocks:
            states = block(states)
        loss = nn.functional.cross_entropy(head(states.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.4
    rates = block_rates(list(blocks), tokens)  # type: ignore[arg-type]
    assert all(0.2 < one.sparsity < 0.9 for one in rates)
    assert blocks.training


def test_bad_input() -> None:
    block = CrateBlock(6, 2, 3)
    for call, words in (
        (lambda: SubspaceAttention(6, 0, 3), "0 heads"),
        (lambda: SparsifyingStep(6, step=0), "step 0"),
        (lambda: block_rates([], torch.zeros(1, 2, 6)), "0 blocks"),
        (lambda: block_rates([block], torch.zeros(2, 6)), "give .samples"),
        (lambda: block_rates([block], torch.zeros(1, 2, 6), precision=0), "precision 0"),
        (lambda: block_rates([block], torch.full((1, 2, 6), math.nan)), "not a finite number"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
