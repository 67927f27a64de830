"""The matrix: what must always hold (DESIGN, "What must always hold"), over methods and anatomies.

Each function named ``holds_...`` states one invariant for one planned network; the tests below run them over every
method on every anatomy, and over a few on MiniLM. Invariants that need a whole run (the same artifact from the same
seed, a run that is stopped, bad input) are in ``test_flow.py``.
"""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import networks
import quick
import small
from isthmus.budget import parse_budget
from isthmus.cost.measure import measure_macs
from isthmus.cost.predict import example_inputs
from isthmus.errors import BadArtifact, BadInput, UnreachableBudget
from isthmus.flow.planning import check_plan, kept_of, make_plan
from isthmus.flow.study import Study, cut, start_study
from isthmus.network import Network, embed, tokenize
from isthmus.plan import Plan, load_plan
from isthmus.sites import VOCABULARY, Site, closed_values, discover, gated, narrow_model
from isthmus.storage.artifact import save_artifact
from isthmus.storage.opening import open as open_network
from isthmus.storage.weights import WEIGHTS_FILE, read_header, weight_bytes
from isthmus.tasks import load_task

METHODS = ("random", "magnitude", "activation", "taylor", "fisher", "vib", "nvit", "surgeon")
BUDGETS = (
    "params=60%",
    "bytes=70%",
    "macs=50%",
    "params=75%,macs=55%",
    "bytes=65%,macs=70%",
    "params=70%,bytes=70%,macs=70%",
    "params=45%",
)
TEXTS = small.sentences(60)
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)


@cache
def study_of(name: str) -> Study:
    return start_study(networks.worded(name), load_task(("text", TEXTS)))


@dataclass(frozen=True)
class Case:
    """One network, planned by one method for one budget, cut, saved and opened."""

    study: Study
    budget: str
    plan: Plan
    cut: Network
    folder: Path
    opened: Network


def make_case(study: Study, method: str, budget: str, place: Path) -> Case:
    plan = make_plan(study, parse_budget(budget), method=method, effort="faster").plan
    narrowed = cut(study, kept_of(plan))
    save_artifact(narrowed, place / "artifact", {"plan": plan.model_dump(mode="json")})
    return Case(study, budget, plan, narrowed, place / "artifact", open_network(place / "artifact"))


# Comparing outputs.


def outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a network is used for; of token states those that are not padding."""
    with torch.no_grad():
        found = model(**inputs)
    named = {
        name: found[name] for name in ("logits", "last_hidden_state", "pooler_output") if found.get(name) is not None
    }
    if "last_hidden_state" in named:
        named["last_hidden_state"] = named["last_hidden_state"][inputs["attention_mask"].bool()]
    return named


def agree(masked: dict[str, Tensor], removed: dict[str, Tensor], sites: Any, kept: Any, tolerance: float) -> None:
    """Closing gives what removing gives, with zeros where units went (a classifier's output loses none)."""
    width = next(site for site in sites if site.name == "width")
    pooler = next((site for site in sites if site.name == "feature.pooler.dense"), None)
    for name, narrow in removed.items():
        wide = masked[name]
        site = {"last_hidden_state": width, "pooler_output": pooler}.get(name)
        if site is not None and site.name in kept:
            lost = sorted(set(range(site.units)) - set(kept[site.name]))
            assert not wide[..., lost].any()
            wide = wide[..., list(kept[site.name])]
        scale = float(wide.abs().max())
        torch.testing.assert_close(narrow, wide, rtol=0, atol=tolerance * max(scale, 1.0))


def mask_equals_removal(network: Network, sites: tuple[Site, ...], kept: Any, inputs: Any, tolerance: float) -> None:
    with gated(network.model, sites, closed_values(sites, kept)):
        masked = outputs(network.model, inputs)
    agree(masked, outputs(narrow_model(network.model, sites, kept), inputs), sites, kept, tolerance)


# 1. Mask equals removal: any kept units at any site, alone and together.


@cache
def double(name: str) -> tuple[Network, tuple[Site, ...]]:
    """In double precision, so that equal means equal to nine digits."""
    network = networks.tiny(name)
    network.model.double()
    return network, discover(network)


def some_units(site: Site, data: st.DataObject) -> list[int]:
    most = site.units if data.draw(st.booleans()) else max(site.minimum, site.units // 2)
    units = st.sets(st.integers(0, site.units - 1), min_size=site.minimum, max_size=most)
    return sorted({*data.draw(units, label=site.name), *site.fixed})


@pytest.mark.parametrize("name", networks.NAMES)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mask_equals_removal(name: str, data: st.DataObject) -> None:
    network, sites = double(name)
    kept = {site.name: some_units(site, data) for site in sites}
    chosen = data.draw(st.sampled_from([None, *sites]), label="site")
    if chosen is not None:
        kept = {chosen.name: kept[chosen.name]}
    # ModernBERT turns queries and keys in single precision, whatever the network's.
    mask_equals_removal(network, sites, kept, networks.tokens(), 1e-5 if "modernbert" in name else 1e-9)


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_site_is_reached(name: str) -> None:
    """One unit of every site goes, site by site; the sites are those that the issue names."""
    network, sites = double(name)
    for site in sites:
        kept = {site.name: [unit for unit in range(site.units) if unit != 1]}
        mask_equals_removal(network, sites, kept, networks.tokens(), 1e-5 if "modernbert" in name else 1e-9)
    kinds = {site.kind for site in sites}
    assert {"width", "heads", "neurons", "layers"} <= kinds
    layers = [site.layer for site in sites if site.kind == "heads"]
    assert layers == ([None] if name.startswith("mpnet") else [0, 1, 2]), "heads of MPNet share a table of biases"
    assert any(site.kind == VOCABULARY for site in study_of(name).sites)


def test_the_smallest_network() -> None:
    """One layer, and everywhere no more units than must stay."""
    for name in networks.NAMES:
        network, sites = double(name)
        kept = {site.name: list(range(site.units - site.minimum, site.units)) for site in sites}
        mask_equals_removal(network, sites, kept, networks.tokens(), 1e-5 if "modernbert" in name else 1e-9)


def test_mask_equals_removal_on_minilm() -> None:
    network = open_network("minilm")
    sites = discover(network)
    generator = torch.Generator().manual_seed(0)
    inputs = tokenize(network, ["A narrow strip of land.", "The isthmus lies between two seas, a bridge.", "x"])
    for share in (0.9, 0.5):
        kept = {
            site.name: sorted(
                torch.randperm(site.units, generator=generator)[: max(1, int(site.units * share))].tolist()
            )
            for site in sites
            if site.name != VOCABULARY
        }
        mask_equals_removal(network, sites, kept, inputs, 2e-5)


# The invariants of a planned network.


def holds_mask_equals_removal(case: Case) -> None:
    """1, for the plan's own decisions, the vocabulary among them."""
    kept = {name: units for name, units in kept_of(case.plan).items() if name != VOCABULARY}
    inputs = tokenize(case.cut, TEXTS[:3])
    old = dict(inputs)
    if VOCABULARY in kept_of(case.plan):
        old["input_ids"] = torch.as_tensor(kept_of(case.plan)[VOCABULARY])[inputs["input_ids"]]
    sites = case.study.sites
    with gated(case.study.network.model, sites, closed_values(sites, kept)):
        masked = outputs(case.study.network.model, old)
    agree(masked, outputs(case.cut.model, inputs), sites, kept, 2e-5)


def holds_saved_equals_loaded(case: Case) -> None:
    """2: bit-equal weights and outputs; the tokenizer too."""
    loaded = case.opened.model.state_dict()
    for name, tensor in case.cut.model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    inputs = tokenize(case.cut, TEXTS[:5])
    again = tokenize(case.opened, TEXTS[:5])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    # A copy, for kernels round differently where weights lie in a mapped file at odd addresses.
    found, wanted = outputs(copy.deepcopy(case.opened.model), again), outputs(case.cut.model, inputs)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def holds_replay(case: Case, place: Path) -> None:
    """2: the plan, written and read again, gives the same network."""
    case.plan.save(place / "plan.json")
    plan = load_plan(place / "plan.json")
    assert plan == case.plan
    check_plan(case.study, plan)
    again = cut(case.study, kept_of(plan)).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in case.cut.model.state_dict().items())


def holds_predicted_equals_measured(case: Case) -> None:
    """3: parameters and bytes to the last one, MACs as they are counted."""
    predicted = case.plan.predicted
    header = read_header(case.folder / WEIGHTS_FILE)
    assert predicted["bytes"] == weight_bytes(case.folder) == (case.folder / WEIGHTS_FILE).stat().st_size
    assert predicted["params"] == sum(math.prod(entry["shape"]) for entry in header.values())
    assert predicted["params"] == sum(parameter.numel() for parameter in case.opened.model.parameters())
    macs = measure_macs(case.opened.model, example_inputs(case.opened.model, case.study.length))
    assert predicted["macs"] == pytest.approx(macs, rel=1e-9)


def holds_budget(case: Case, within: float) -> None:
    """4: every limit is kept, and one of them is used up but for the last units."""
    shares = []
    for limit in parse_budget(case.budget).limits:
        amount = limit.amount(case.plan.original[limit.currency])
        assert case.plan.predicted[limit.currency] <= amount
        shares.append(case.plan.predicted[limit.currency] / amount)
    assert max(shares) >= within, f"only {max(shares):.1%} of {case.budget} was spent"


def holds_no_saving_from_masks(case: Case, place: Path) -> None:
    """5: what is claimed is what the file is smaller by, and the tensors themselves are smaller."""
    save_artifact(case.study.network, place / "original", {})
    claimed = case.plan.original["params"] - case.plan.predicted["params"]
    assert claimed > 0
    smaller = weight_bytes(place / "original") - weight_bytes(case.folder)
    # Four bytes a parameter, and a shorter header.
    headers = [
        int.from_bytes((folder / WEIGHTS_FILE).read_bytes()[:8], "little")
        for folder in (place / "original", case.folder)
    ]
    assert smaller == 4 * claimed + headers[0] - headers[1]
    whole = dict(case.study.network.model.named_parameters())
    layers = kept_of(case.plan).get("layers")
    (module,) = (site.module for site in case.study.sites if site.kind == "layers")
    for site in case.study.sites:
        keep = kept_of(case.plan).get(site.name)
        if keep is None or len(keep) == site.units:
            continue
        for part in site.slices:
            name = part.parameter
            if layers is not None and (inside := re.match(rf"{re.escape(module)}\.(\d+)\.", name)):
                if int(inside[1]) not in layers:
                    continue
                name = name.replace(inside[0], f"{module}.{layers.index(int(inside[1]))}.", 1)
            narrow, wide = case.opened.model.get_parameter(name), whole[part.parameter]
            assert narrow.shape[part.dim] == wide.shape[part.dim] - (site.units - len(keep)) * part.block * part.repeat
    # No mask travels along: no buffer, and nothing in the config that would be multiplied with the weights.
    assert not any("mask" in name for name, _ in case.opened.model.named_buffers())


def holds_files_are_data(case: Case) -> None:
    """9: JSON and safetensors only; one flipped bit is noticed."""
    for path in case.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert path.suffix in (".json", ".safetensors", ".txt", ".html", ".jinja"), path.name
            assert not data.startswith(PICKLED), path.name
            if path.suffix == ".json":
                json.loads(data)
    weights = case.folder / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-7] ^= 4
    weights.write_bytes(data)
    with pytest.raises(BadArtifact):
        open_network(case.folder)


# Every method on every anatomy, as an encoder or as a classifier in turn: a head adds one site at most, and each head
# meets half of the methods, each without a head the others. Budgets go round: each is met by five methods or more.
PLANNED = [
    (method, family + "-classifier" * ((turn + place) % 2), BUDGETS[(turn - place) % len(BUDGETS)])
    for place, family in enumerate(networks.ARCHITECTURES)
    for turn, method in enumerate(METHODS)
]


@pytest.mark.parametrize(("method", "name", "budget"), PLANNED)
def test_a_planned_network(method: str, name: str, budget: str, tmp_path: Path) -> None:
    case = make_case(study_of(name), method, budget, tmp_path)
    assert case.plan.method == method
    holds_mask_equals_removal(case)
    holds_saved_equals_loaded(case)
    holds_replay(case, tmp_path)
    holds_predicted_equals_measured(case)
    holds_budget(case, within=0.85)
    holds_no_saving_from_masks(case, tmp_path)
    holds_files_are_data(case)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_plan(method: str) -> None:
    """6, of the plan; of the artifact in test_flow.py."""
    name = networks.NAMES[METHODS.index(method)]
    first = make_plan(study_of(name), parse_budget("params=60%"), method=method, effort="faster").plan
    study = start_study(networks.worded(name), load_task(("text", TEXTS)))
    assert make_plan(study, parse_budget("params=60%"), method=method, effort="faster").plan == first


@pytest.mark.parametrize("method", ["magnitude", "fisher"])
def test_minilm(method: str, tmp_path: Path) -> None:
    """Half the parameters of MiniLM, met within 1 % from below; every invariant of a planned network."""
    task = load_task(("text", [*TEXTS, "The isthmus lies between two seas.", "A bridge for wayfarers."]))
    budget = "params=50%" if method == "magnitude" else "bytes=40%,macs=60%"
    case = make_case(start_study(open_network("minilm"), task), method, budget, tmp_path)
    holds_mask_equals_removal(case)
    holds_saved_equals_loaded(case)
    holds_replay(case, tmp_path)
    holds_predicted_equals_measured(case)
    holds_budget(case, within=0.99)
    holds_no_saving_from_masks(case, tmp_path)
    holds_files_are_data(case)
    assert embed(case.cut, TEXTS[:3]).shape[0] == 3


# 4. A budget that cannot be met is refused, with one that can.


ADVICE = re.compile(r"ask for at least (?P<ask>\S+)$")


UNREACHABLE = ("params=0.5%", "bytes=2%", "macs=0.01%", "params=0.5%,macs=60%", "bytes=90%,macs=0.02%")
REFUSING = ("bert", "roberta-classifier", "mpnet", "electra-classifier", "modernbert")


# One limit and two of them on each network: what is advised is worked out from rates alone, whatever the anatomy.
@pytest.mark.parametrize(
    ("name", "budget"),
    [(name, UNREACHABLE[at]) for place, name in enumerate(REFUSING) for at in (place % 3, 3 + place % 2)],
)
def test_an_unreachable_budget_is_refused_with_one_that_can_be_met(name: str, budget: str) -> None:
    study = study_of(name)
    with pytest.raises(UnreachableBudget) as refused:
        make_plan(study, parse_budget(budget), method="random", effort="faster")
    message = str(refused.value)
    assert "\n" not in message
    found = ADVICE.search(message)
    assert found is not None, message
    advised = found["ask"]
    if advised == "that":
        advised = re.search(r"can become is (\S+) \(", message)[1]  # type: ignore[index]
    plan = make_plan(study, parse_budget(advised), method="random", effort="faster").plan
    for limit in parse_budget(advised).limits:
        assert plan.predicted[limit.currency] <= limit.amount(plan.original[limit.currency])


def test_a_budget_above_the_original_is_refused() -> None:
    with pytest.raises(BadInput.__base__, match="costs only"):
        make_plan(study_of("bert"), parse_budget("params=5M"), method="random", effort="faster")


def test_a_plan_of_other_weights_is_refused() -> None:
    plan = make_plan(study_of("bert"), parse_budget("params=60%"), method="random", effort="faster").plan
    with pytest.raises(BadInput, match="other weights"):
        check_plan(replace(study_of("bert"), network=networks.worded("bert", seed=1)), plan)
