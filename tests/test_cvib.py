"""The contrastive bottleneck: each formula against another computation, and a label's shadow that is discarded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from isthmus.errors import BadInput
from isthmus.information.invariance import info_nce
from isthmus.information.training.cvib import CvibLoss, InformationGates, self_pruning_contrast


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


def test_the_contrast_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    every = torch.cat([first, second])
    every = every / every.norm(dim=1, keepdim=True)
    total = 0.0
    for one in range(10):
        scores = [math.exp(float(every[one] @ every[other]) / 0.2) for other in range(10)]
        total -= math.log(scores[(one + 5) % 10] / (sum(scores) - scores[one]))
    assert float(self_pruning_contrast(first, second, temperature=0.2)) == pytest.approx(total / 10)


def test_it_bounds_what_the_views_share() -> None:
    """With only the other kind of views as strangers it is InfoNCE: with more of them it can only be harder."""
    first = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    second = first + 0.1
    contrast = float(self_pruning_contrast(first, second))
    assert math.log(50) - contrast < info_nce(first, second)
    assert contrast < float(self_pruning_contrast(first, second.roll(1, 0)))


def test_gates_pass_what_a_gaussian_channel_does() -> None:
    gates = InformationGates(network(), {"1": 8})
    with torch.no_grad():
        gates.means[0].copy_(torch.linspace(0, 2, 8))
        gates.logs[0].fill_(math.log(0.25))
    torch.testing.assert_close(gates.nats(), 0.5 * torch.log(1 + torch.linspace(0, 2, 8) ** 2 / 0.25))
    assert gates.closed()["1"].tolist() == [True] + [False] * 7


def test_a_model_is_gated_within_the_block_only() -> None:
    model = network().eval()
    inputs = torch.randn(6, 4)
    gates = InformationGates(model, {"1": 8})
    with torch.no_grad():
        gates.means[0][3] = 0.0
        gates.means[0][4] = 0.5
    before = model(inputs)
    with gates.applied():
        gated = model(inputs)
    mask = torch.ones(8)
    mask[3], mask[4] = 0.0, 0.5
    torch.testing.assert_close(gated, model[2](model[1](model[0](inputs)) * mask))
    torch.testing.assert_close(model(inputs), before)
    model.train()
    with gates.applied():
        assert not torch.equal(model(inputs), model(inputs))
    assert {name for name, _ in gates.named_parameters()} == {"means.0", "logs.0"}
    assert not model[1]._forward_hooks


def test_the_loss_is_the_sum_of_its_parts() -> None:
    model = network().eval()
    gates = InformationGates(model, {"1": 8})
    inputs, labels = torch.randn(6, 4), torch.arange(6) % 2

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        handle = model[2].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        logits = model(inputs)
        handle.remove()
        return seen[0], logits

    found = CvibLoss(contrast_weight=0.3, rate_weight=0.01)(call, gates, labels)
    expected = found.original + found.narrowed + 0.3 * found.contrast + 0.01 * found.rate
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.original, nn.functional.cross_entropy(model(inputs), labels))
    found.loss.backward()
    assert gates.means[0].grad is not None
    assert model[0].weight.grad is not None


def test_the_rate_closes_units_that_carry_no_label() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    gates = InformationGates(model, {"0": 4})
    optimizer = torch.optim.Adam([*model.parameters(), *gates.parameters()], lr=0.05)
    inputs = torch.randn(256, 4)
    labels = (inputs[:, 1] > 0).long()
    loss_of = CvibLoss(contrast_weight=0.01, rate_weight=0.1)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs)
        return logits, logits

    model.train()
    for _ in range(300):
        parts = loss_of(call, gates, labels)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
    nats = gates.nats().detach()
    assert int(nats.argmax()) == 1
    assert nats[1] > 4 * nats[[0, 2, 3]].max()
    model.eval()
    with gates.applied():
        assert (model(inputs).argmax(1) == labels).float().mean() > 0.95


def test_bad_input() -> None:
    model = network()
    views = torch.randn(4, 3)
    for call, words in (
        (lambda: InformationGates(model, {}), "no module"),
        (lambda: InformationGates(model, {"9": 4}), "unknown module '9'"),
        (lambda: InformationGates(model, {"1": 0}), "width 0"),
        (lambda: CvibLoss(temperature=0), "temperature above 0"),
        (lambda: CvibLoss(rate_weight=-1), "weights of 0 or more"),
        (lambda: self_pruning_contrast(views, views[:2]), "views of shapes"),
        (lambda: self_pruning_contrast(views[:1], views[:1]), "2 or more"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
    with InformationGates(model, {"1": 5}).applied(), pytest.raises(BadInput, match="5 for an output"):
        model(torch.randn(2, 4))
