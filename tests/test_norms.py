"""Batch norms after a cut: what is estimated, that it helps, and that it is left out where it does not."""

from __future__ import annotations

import pytest
import torch

import pictured
from isthmus.flow import solving
from isthmus.flow.solving import solve
from isthmus.flow.study import Study, cut, start_study
from isthmus.network import encode
from isthmus.recovery.norms import BATCH, batch_norms, estimate_norms
from isthmus.relevance.probe import measure_network


@pytest.fixture(scope="module")
def study() -> Study:
    task = pictured.pictures_task(160, channels=3)
    network = pictured.resnet()
    images = [image for image, _ in task.labelled]
    assert estimate_norms(network, images)
    network = pictured.learned(network, task, steps=30)
    # As of any network that was trained with them, its statistics are those of its own maps.
    assert estimate_norms(network, images)
    return start_study(network, task)


def halved(study: Study) -> dict[str, tuple[int, ...]]:
    return {site.name: tuple(range(0, site.units, 2)) for site in study.sites if "conv1" in site.name}


def test_statistics_are_the_means_over_batches_and_all_else_stays(study: Study) -> None:
    network = cut(study, halved(study))
    norms = batch_norms(network.model)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    momenta = [norm.momentum for norm in norms]
    assert len(study.examples) >= 40
    examples = study.examples[:40]
    assert estimate_norms(network, examples)
    first = network.model.get_submodule("bn1")
    with torch.no_grad():
        maps = network.model.get_submodule("conv1")(encode(network, examples)["pixel_values"])
    assert len(examples) < BATCH
    flat = maps.transpose(0, 1).flatten(1)
    assert torch.allclose(first.running_mean, flat.mean(1), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(first.running_var, flat.var(1), rtol=1e-4)  # type: ignore[arg-type]
    changed = {name for name, tensor in network.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("running" in name for name in changed)
    assert [norm.momentum for norm in norms] == momenta
    assert not any(module.training for module in network.model.modules())


def test_what_was_cut_comes_closer_and_is_the_same_each_time(study: Study) -> None:
    kept = halved(study)
    student = cut(study, kept)
    before = measure_network(study.probe, student)
    solved, again = solve(study, student, kept), solve(study, student, kept)
    assert solved is not None
    assert again is not None
    assert measure_network(study.probe, student) == before, "what was given is left as it is"
    assert measure_network(study.probe, solved) < before
    for name, tensor in solved.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_it_is_left_out_where_it_is_of_no_use(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert solve(study, study.network, {}) is None
    kept = halved(study)
    spoilt = cut(study, kept)

    def spoil(network: object, *_: object, **__: object) -> bool:
        for norm in batch_norms(network.model):  # type: ignore[attr-defined]
            norm.running_var.fill_(1e-6)  # type: ignore[union-attr]
        return True

    monkeypatch.setattr(solving, "estimate_norms", spoil)
    assert solve(study, spoilt, kept) is None


def test_without_norms_or_images_nothing_is_estimated(study: Study) -> None:
    assert not estimate_norms(pictured.vit(), study.examples[:4])
    assert not estimate_norms(study.network, study.examples[:1])
