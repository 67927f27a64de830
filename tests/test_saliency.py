"""Saliency maps: what locations add is autograd's gradient of weights, and what holds of every map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from isthmus.errors import BadInput
from isthmus.information.saliency import (
    AGGREGATIONS,
    EXTRACTIONS,
    class_sensitivity,
    combined,
    contributions,
    locations,
    observe,
    saliency,
)


class Mean(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.mean((2, 3))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(inplace=True),
        Mean(), nn.Linear(8, 10),
    )  # fmt: skip


def images(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(load_digits().images[:count]).float()[:, None] / 8 - 1


def test_locations_add_up_to_the_gradient_of_an_inserted_identity() -> None:
    model, inputs = network(), images()
    classes = torch.arange(6)
    seen = observe(model, ["1"], inputs, classes)["1"]
    found = contributions(locations(seen.output), locations(seen.gradient))
    assert found.shape == (6, 64, 6, 6)
    identity = nn.Conv2d(6, 6, 1, bias=False)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(6)[..., None, None])
    logits = nn.Sequential(*model[:2], identity, *model[2:])(inputs)
    logits[torch.arange(6), classes].sum().backward()
    assert identity.weight.grad is not None
    torch.testing.assert_close(found.sum((0, 1)), identity.weight.grad[..., 0, 0], rtol=1e-4, atol=1e-6)
    maps = saliency(model, ["1"], inputs, classes)["1"]
    torch.testing.assert_close(maps.flatten(1), found.flatten(2).norm(dim=2))


def test_locations_of_a_kernel_add_up_to_its_own_gradient() -> None:
    model, inputs = network(), images()
    seen = observe(model, ["2"], inputs)["2"]
    logits = model(inputs)
    logits.max(1).values.sum().backward()
    gradient = model[2].weight.grad
    assert gradient is not None
    own = nn.functional.unfold(seen.given, 3, stride=2).transpose(1, 2)
    total = contributions(own, locations(seen.gradient))
    torch.testing.assert_close(total.sum((0, 1)).view_as(gradient), gradient, rtol=1e-4, atol=1e-6)
    found = saliency(model, ["2"], inputs, extraction="kernel")["2"]
    torch.testing.assert_close(found.flatten(1), total.flatten(2).norm(dim=2))
    assert found.shape == (6, 3, 3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregates_of_outer_products_are_those_written_out(aggregation: str) -> None:
    model, inputs = network(), images()
    seen = observe(model, ["3"], inputs)["3"]
    whole = contributions(locations(seen.output), locations(seen.gradient)).flatten(2)
    expected = {
        "norm": whole.norm(dim=2),
        "sum": whole.sum(2),
        "max": whole.abs().amax(2),
        "positive": whole.sum(2).clamp(min=0),
    }[aggregation]
    found = saliency(model, ["3"], inputs, aggregation=aggregation)["3"]  # type: ignore[arg-type]
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_and_gradient_times_input() -> None:
    """After the last convolution the score is linear in the mean over locations: both are its weights' products."""
    model, inputs = network(), images()
    classes = torch.arange(6)
    states = model[:4](inputs)
    weights = model[5].weight[classes]
    expected = torch.einsum("nc,nchw->nhw", weights, states) / 9
    linear = saliency(model, ["3"], inputs, classes, extraction="linear", aggregation="sum")["3"]
    torch.testing.assert_close(linear, expected)
    cam = saliency(model, ["3"], inputs, classes, extraction="cam", aggregation="positive")["3"]
    torch.testing.assert_close(cam, expected.clamp(min=0))


def test_tokens_have_maps_too_and_nothing_is_left_behind() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.mix(self.embed(ids)).relu().mean(1))
            return found

    torch.manual_seed(0)
    model = Model().requires_grad_(False)
    model.train()
    ids = torch.randint(0, 9, (3, 7))
    for extraction in EXTRACTIONS:
        found = saliency(model, ["mix"], ids, extraction=extraction)["mix"]  # type: ignore[arg-type]
        assert found.shape == (3, 7)
        assert found.abs().sum() > 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.mix._forward_hooks


def test_maps_are_combined_by_their_geometric_mean() -> None:
    torch.manual_seed(0)
    fine, coarse = torch.rand(2, 4, 4) + 0.1, torch.rand(2, 2, 2) + 0.1
    found = combined([fine, coarse])
    scaled = nn.functional.interpolate(coarse[:, None], size=(4, 4), mode="bilinear")[:, 0]
    for sample in range(2):
        expected = (fine[sample] / fine[sample].max() * scaled[sample] / scaled[sample].max()).sqrt()
        torch.testing.assert_close(found[sample], expected)
    torch.testing.assert_close(combined([fine, coarse], weights=[2.0, 0.0])[0], fine[0] / fine[0].max())


def test_class_sensitivity() -> None:
    """At the last convolution, trained, maps depend on the class more than with random weights."""
    data = load_digits()
    inputs = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(np.asarray(data.target))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    untrained = class_sensitivity(model, "4", inputs[:64])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(100):
        rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(step))[:128]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.9
    trained = class_sensitivity(model, "4", inputs[:64])
    assert 0 < untrained < trained < 2
    maps = [saliency(model, ["4"], inputs[:64], end)["4"].flatten(1).numpy() for end in _ends(model, inputs[:64])]
    expected = 1 - np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(*maps, strict=True)])
    assert trained == pytest.approx(float(expected), abs=1e-5)


def _ends(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        logits = model.eval()(inputs)
    return logits.argmax(1), logits.argmin(1)


def test_bad_input() -> None:
    model, inputs = network(), images()
    flat = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Linear(2, 3))
    for call, words in (
        (lambda: saliency(model, ["9"], inputs), "unknown module '9'"),
        (lambda: saliency(model, ["1"], inputs, extraction="all"), "unknown extraction"),  # type: ignore[arg-type]
        (lambda: saliency(model, ["1"], inputs, aggregation="mean"), "unknown aggregation"),  # type: ignore[arg-type]
        (lambda: saliency(model, ["1"], inputs, torch.arange(3)), "give one for each"),
        (lambda: saliency(model, ["1"], inputs, torch.full((6,), 10)), "give one for each"),
        (lambda: saliency(model, ["5"], inputs), "saliency of shape"),
        (lambda: saliency(model, ["1"], inputs, extraction="kernel"), "no linear map"),
        (lambda: saliency(nn.Sequential(nn.Conv2d(1, 2, 3)), ["0"], inputs), "no logits"),
        (lambda: class_sensitivity(flat, "0", inputs), "all maps are flat"),
        (lambda: combined([]), "0 maps"),
        (lambda: combined([torch.rand(1, 2, 2)], weights=[0.0]), "not all 0"),
        (lambda: combined([-torch.rand(1, 2, 2)]), "none below 0"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
