"""A language model is narrowed, opened again and compared; recovery brings it closer to the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import decoders
import isthmus
import quick
import small
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput
from isthmus.flow import verifying
from isthmus.flow.suiting import check_suits
from isthmus.network import Network
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.reconstruct import reconstruct
from isthmus.recovery.train import recover
from isthmus.relevance.probe import make_probe, measure_closed, measure_network, most_examples
from isthmus.relevance.resuming import Resuming
from isthmus.sites import discover, narrow_model
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task, load_task


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return open_network(decoders.write_decoder(tmp_path_factory.mktemp("lm") / "tiny"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(f"lm:{small.write_text(tmp_path_factory.mktemp('text') / 'running.txt', 300)}")


def test_narrowed_opened_and_compared(
    network: Network, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    monkeypatch.setattr(verifying, "bench_networks", quick.benched)  # engines have tests of their own
    made = isthmus.narrow(network, task, to="params=70%", method="magnitude", effort="none", out=tmp_path / "small")
    opened = isthmus.open(tmp_path / "small")
    assert opened.continues
    assert count_parameters(opened.model) <= 0.7 * count_parameters(network.model)
    first, second = (made.record["measurements"][name] for name in ("original", "narrowed"))
    assert second["params"] == made.record["plan"]["predicted"]["params"]
    for row in (first, second):
        assert (row["metric_name"], row["recall"]) == ("likelihood", {}), "a window of 64 tokens is too short to recall"
        assert row["perplexity"] == pytest.approx(1 / row["metric"])
    assert made.record["measurements"]["distortion"]
    assert (tmp_path / "small" / "report.html").exists()


def test_recovery_brings_it_closer(network: Network) -> None:
    sites = discover(network)
    kept = {site.name: range(site.units // 2) for site in sites if site.kind == "neurons"}
    student = network.with_model(narrow_model(network.model, sites, kept))
    texts = small.sentences(200)
    probe = make_probe(network, texts[180:])
    before = measure_network(probe, student)
    recipe = Recipe(steps=16, learning_rate=1e-3, batch=16, warmup=2, evaluate_every=8, precision="fp32", length=32)
    made = recover(student, network, texts[:180], recipe, kept=kept)
    assert 0 < measure_network(probe, made.network) < 0.9 * before
    held = next(points for name, _, points in made.curves if name == "recovery: held-out divergence")
    assert 0 < held[-1][1] < held[0][1], "in nats a token, on texts that were not trained on"


def test_projections_are_solved_with_norms_by_the_mean_square(network: Network, task: Task) -> None:
    sites = discover(network)
    kept = {site.name: range(site.units // 2) for site in sites if site.kind == "neurons"}
    student = network.with_model(narrow_model(network.model, sites, kept))
    probe = make_probe(network, task.train[:8])
    before = measure_network(probe, student)
    reconstruct(student, network, sites, kept, task.train[8:])
    assert 0 < measure_network(probe, student) < 0.9 * before


def test_a_late_start_changes_no_measurement(network: Network, task: Task) -> None:
    sites = discover(network)
    probe = make_probe(network, task.train[:6])
    site = next(site for site in sites if site.name == "layers.1.neurons")
    value = torch.ones(site.units)
    value[::2] = 0
    whole = measure_closed(probe, [site], {site.name: value})
    with Resuming(probe, sites) as resuming:
        resuming.start_at(1)
        assert measure_closed(probe, [site], {site.name: value}) == whole > 0


def test_a_probe_holds_no_more_logits_than_it_may(network: Network) -> None:
    assert most_examples(network) > 8
    wide = network.with_model(decoders.decoder(vocab_size=50_000))
    assert most_examples(wide) == 13


def test_a_task_of_another_sort_is_refused(network: Network, task: Task) -> None:
    with pytest.raises(BadInput, match="a language model, and text:data is of another sort; give lm:PATH"):
        check_suits(network, load_task(small.sentences(30)))
    with pytest.raises(BadInput, match="no language model"):
        check_suits(replace(network, pooling="mean"), task)


def test_recall_is_measured_where_windows_are_long(
    network: Network, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts as long as the window, with the seed that was given; of shorter windows none."""
    assert verifying.recall_of(network, task, 0) == {}
    seen = []

    def known(model: object, tokenizer: object, length: int, text: np.ndarray, *, seed: int) -> dict[str, float]:
        seen.append((length, text.dtype, seed))
        return {"pairs": 1.0}

    monkeypatch.setattr(verifying, "recalled", known)
    longer = replace(network, max_length=160)
    assert verifying.recall_of(longer, task, 3) == {"pairs": 1.0}
    assert seen == [(160, np.int32, 3)]
