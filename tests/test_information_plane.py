"""The information plane: what is recorded against a direct computation, that nothing is left behind, its page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from isthmus.errors import BadInput
from isthmus.information import mutual_information
from isthmus.information.activations import activations
from isthmus.information.following import follow
from isthmus.information.noisy import Noisy
from isthmus.information.plane import InformationPlane
from isthmus.information.plane_points import points_from_json
from isthmus.report.plane import render_plane, write_plane


def samples(count: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))


def plane_of(model: nn.Module, **options: object) -> InformationPlane:
    inputs, labels = samples()
    return InformationPlane(model, ["1", "3"], inputs, labels, label_estimator="ross", **options)  # type: ignore[arg-type]


def test_both_values_are_those_of_the_layer_with_its_noise() -> None:
    model = network()
    first = plane_of(model, noise=0.5).record(7)[0]
    layer = model[1](model[0](samples()[0])).detach().double().numpy()
    assert first.noise == pytest.approx(0.5 * math.sqrt(layer.var(0).mean()), rel=1e-5)
    assert (first.step, first.path, first.input.estimator, first.label.estimator) == (7, "1", "noisy", "ross")
    low, high = mutual_information(samples()[0].numpy(), layer, estimator=Noisy(first.noise)).interval or (0, 0)
    assert first.input.nats is not None
    assert low < first.input.nats < high
    assert first.label.nats is not None
    assert 0 < first.label.nats < math.log(2)


def test_a_layer_of_known_information() -> None:
    """T is the input's first column, uniform: with normal noise its information is an integral over one dimension."""
    model = nn.Sequential(nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    inputs = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0.5).long()
    point = InformationPlane(model, ["0"], inputs, labels, noise=0.5, label_estimator="ross").record(0)[0]
    size = point.noise
    assert size == pytest.approx(0.5 / math.sqrt(12), rel=0.05)

    def density(place: float) -> float:
        return 0.5 * (math.erf(place / size / math.sqrt(2)) - math.erf((place - 1) / size / math.sqrt(2)))

    def part(place: float) -> float:
        value = density(place)
        return -value * math.log(value) if value > 0 else 0.0

    entropy = integrate.quad(part, -6 * size, 1 + 6 * size, limit=200)[0]
    expected = entropy - 0.5 * math.log(2 * math.pi * math.e * size**2)
    low, high = point.input.interval or (0, 0)
    assert low < expected < high
    assert point.input.nats == pytest.approx(expected, rel=0.05)

    def given_label(place: float) -> float:
        upper = 0.5 * (math.erf((place - 0.5) / size / math.sqrt(2)) - math.erf((place - 1) / size / math.sqrt(2)))
        share = min(max(upper / max(density(place), 1e-300), 1e-12), 1 - 1e-12)
        return density(place) * -(share * math.log(share) + (1 - share) * math.log(1 - share))

    left = integrate.quad(given_label, -3 * size, 1 + 3 * size, limit=200)[0]
    assert point.label.nats == pytest.approx(math.log(2) - left, abs=0.06)


def test_nothing_is_left_behind_and_the_training_is_the_same() -> None:
    def trained(record: bool) -> list[torch.Tensor]:
        model = network()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs, labels = samples()
        plane = plane_of(model, every=2)
        torch.manual_seed(3)
        for step in range(5):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if record:
                plane(step)
        if record:
            assert [point.step for point in plane.points] == [0, 0, 2, 2, 4, 4]
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())
        return [parameter.detach().clone() for parameter in model.parameters()]

    for one, other in zip(trained(True), trained(False), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_is_followed_and_let_go() -> None:
    model = network()
    inputs, labels = samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    plane = plane_of(model, every=30)
    with plane.following(optimizer):
        train(60)
    train(30)
    last = [point for point in plane.points if point.path == "3"]
    assert [point.step for point in last] == [0, 30, 60]
    assert (last[-1].label.nats or 0) > (last[0].label.nats or 0) + 0.1, "the label is learnt"


def test_what_is_not_estimable_keeps_its_reason() -> None:
    model = network()
    plane = plane_of(model, noise=1e-4)
    assert "near the" in (plane.record(0)[0].input.not_estimable or "")
    bare = InformationPlane(model, ["0"], *samples(), estimator="ksg", label_estimator="ross", noise=None)
    assert "function of x" in (bare.record(0)[0].input.not_estimable or "")
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    point = plane.record(1)[0]
    assert "not finite" in (point.input.not_estimable or "")
    assert "not finite" in (point.label.not_estimable or "")
    with torch.no_grad():
        model[0].weight.zero_()
    dead = plane.record(2)[0]
    assert (dead.input.nats, dead.label.nats, dead.noise) == (0, 0, 0)
    again = points_from_json(plane.to_json())
    assert again == plane.points


@pytest.mark.parametrize("estimator", ["adaptive-bins", "compressed", "gaussian"])
def test_other_estimators_of_layers_without_noise(estimator: str) -> None:
    """Of a linear layer of one unit: information of a Gaussian channel is known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1))
    inputs = torch.randn(3000, 1)
    labels = inputs[:, 0] > 0
    point = InformationPlane(
        model, ["0"], inputs, labels, estimator=estimator, label_estimator="ross", noise=0.5
    ).record(0)[0]
    assert point.input.nats == pytest.approx(0.5 * math.log(1 + 1 / 0.25), abs=0.12)


def test_positions_are_pooled_by_the_mask() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 4), nn.Conv2d(1, 2, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.embed(input_ids)
            self.conv(states[:, None])
            return states

    torch.manual_seed(0)
    model = Model()
    ids = torch.randint(0, 9, (40, 6))
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    found = activations(model, ["embed", "conv"], given, batch_size=16)
    torch.testing.assert_close(found["embed"], model.embed(ids)[:, :4].mean(1).detach())
    torch.testing.assert_close(found["conv"], model.conv(model.embed(ids)[:, None]).mean((2, 3)).detach())
    assert activations(model, ["conv"], given, pooling="flatten")["conv"].shape == (40, 2 * 4 * 2)
    labels = np.arange(40) % 2
    assert InformationPlane(model, ["embed"], given, labels, label_estimator="ross", noise=2).record(0)[0].input.nats
    with pytest.raises(BadInput, match="give features="):
        InformationPlane(model, ["embed"], given, labels, estimator="ksg")


def test_a_trainer_records_at_both_ends_and_between(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=20,
            max_position_embeddings=16,
        )
    )  # fmt: skip
    ids = torch.randint(1, 20, (40, 5))
    labels = (ids[:, 0] > 9).long()
    rows = [{"input_ids": one, "labels": label} for one, label in zip(ids, labels, strict=True)]
    plane = InformationPlane(
        model, ["bert.encoder.layer.0"], {"input_ids": ids}, labels, every=3, label_estimator="ross"
    )
    settings = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
        save_strategy="no", use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=[plane.trainer_callback()]).train()
    assert [point.step for point in plane.points] == [0, 3, 5]


SCRIPT = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
inputs = torch.randn(100, 3)
labels = (inputs[:, 0] > 0).long()
def train(callback):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(1, 5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        callback(step)
if __name__ == "__main__":
    raise SystemExit("not to be run")
"""


def test_a_script_is_followed_saved_and_drawn(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    plane = follow(script, ["1", "2"], every=2, label_estimator="ross")
    assert [point.step for point in plane.points] == [0, 0, 2, 2, 4, 4]
    plane.save(tmp_path / "plane.json")
    points = points_from_json((tmp_path / "plane.json").read_text())
    assert points == plane.points
    write_plane(points, tmp_path / "plane.html", title="Two layers")
    page = (tmp_path / "plane.html").read_text()
    assert page.count('<svg class="chart"') == 3
    assert "<h1>Two layers</h1>" in page
    assert page == render_plane(points, title="Two layers")
    assert {file.name for file in tmp_path.iterdir()} == {"train.py", "plane.json", "plane.html"}
    script.write_text("model = None")
    with pytest.raises(BadInput, match="defines no inputs, labels, train"):
        follow(script, ["1"])


def test_bad_input(tmp_path: Path) -> None:
    model = network()
    inputs, labels = samples()
    for call, words in (
        (lambda: InformationPlane(model, ["1"], inputs, labels[:5]), "5 labels for 400"),
        (lambda: InformationPlane(model, ["1"], inputs, labels, features=inputs[:7]), "7 features for 400"),
        (lambda: InformationPlane(model, "1", inputs, labels), "give a list"),
        (lambda: InformationPlane(model, [], inputs, labels), "give a list"),
        (lambda: InformationPlane(model, ["1"], inputs, labels, noise=-1), "noise -1"),
        (lambda: InformationPlane(model, ["1"], inputs, labels, every=0), "every 0"),
        (lambda: InformationPlane(model, ["1"], inputs, labels, estimator="no"), "unknown estimator"),
        (lambda: InformationPlane(model, ["layer"], inputs, labels).record(0), "unknown module 'layer'"),
        (lambda: InformationPlane(model, ["1"], (inputs, labels[:3]), labels), "lengths"),
        (lambda: activations(model, ["1"], inputs, pooling="sum"), "unknown pooling"),  # type: ignore[arg-type]
        (lambda: points_from_json("{}"), "not a recorded plane"),
        (lambda: points_from_json("[1"), "not a recorded plane"),
        (lambda: render_plane([]), "no points"),
        (lambda: follow(tmp_path / "none.py", ["1"]), "no such file"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
