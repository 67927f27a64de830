"""Budgets and plans: what is written is what is read, and what cannot be read is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from isthmus.budget import CURRENCIES, Budget, Limit, parse_budget, parse_floor
from isthmus.errors import BadBudget, BadInput
from isthmus.plan import PLAN_VERSION, Decision, Plan, load_plan

relative = st.builds(
    lambda currency, share: Limit(currency, share / 1000, relative=True),
    st.sampled_from(CURRENCIES),
    st.integers(1, 1000),
)
absolute = st.builds(
    lambda currency, amount: Limit(currency, float(amount), relative=False),
    st.sampled_from(CURRENCIES),
    st.integers(1, 10**11),
)
budgets = st.lists(st.one_of(relative, absolute), min_size=1, max_size=4, unique_by=lambda limit: limit.currency).map(
    lambda limits: Budget(tuple(limits))
)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    units = draw(st.integers(1, 400))
    keep = draw(st.sets(st.integers(0, units - 1), min_size=1))
    return Decision(
        site=draw(st.text(min_size=1, max_size=12)),
        kind=draw(st.sampled_from(["heads", "neurons", "width", "vocabulary"])),
        bottleneck="remove",
        units=units,
        keep=tuple(sorted(keep)),
        distortion=draw(st.floats(0, 10)),
    )


plans = st.builds(
    Plan,
    network=st.text(max_size=10),
    fingerprint=st.text(max_size=10),
    method=st.just("vib"),
    budget=budgets.map(str),
    seed=st.integers(0, 2**31),
    decisions=st.lists(decisions(), max_size=5).map(tuple),
    original=st.dictionaries(st.sampled_from(CURRENCIES), st.floats(1, 1e9)),
    distortion=st.floats(0, 100),
    notes=st.lists(st.text(max_size=20), max_size=2).map(tuple),
)


@given(budgets)
def test_budget_round_trip(budget: Budget) -> None:
    again = parse_budget(str(budget))
    assert again.currencies == budget.currencies
    for old, new in zip(budget.limits, again.limits, strict=True):
        assert new.relative == old.relative
        assert new.value == pytest.approx(old.value, rel=1e-5)
    assert parse_budget(str(again)) == again


@given(budgets, st.floats(1, 1e12))
def test_amounts_are_within_the_original(budget: Budget, cost: float) -> None:
    original = dict.fromkeys(CURRENCIES, cost)
    too_much = any(limit.amount(cost) > cost for limit in budget.limits)
    if too_much:
        with pytest.raises(BadBudget):
            budget.amounts(original)
    else:
        assert all(0 < amount <= cost for amount in budget.amounts(original).values())


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params=50%", [("params", 0.5, True)]),
        ("params=0.5x", [("params", 0.5, True)]),
        ("Params = 11M , bytes=45MB", [("params", 11e6, False), ("bytes", 45e6, False)]),
        ("latency=3.5ms", [("latency", 3.5, False)]),
        ("latency=2s", [("latency", 2000.0, False)]),
        ("bytes=1MiB", [("bytes", 2.0**20, False)]),
        ("macs=1.5G", [("macs", 1.5e9, False)]),
        ("params=.5x", [("params", 0.5, True)]),
        ("params=1e7", [("params", 1e7, False)]),
    ],
)
def test_budgets_that_are_read(text: str, limits: list[tuple[str, float, bool]]) -> None:
    assert [(limit.currency, limit.value, limit.relative) for limit in parse_budget(text).limits] == limits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not currency=value"),
        ("50%", "not currency=value"),
        ("parms=50%", "did you mean params"),
        ("beauty=50%", "the currencies are params, bytes, macs, latency"),
        ("params=120%", "above 100 %"),
        ("params=1.5x", "above 100 %"),
        ("params=0%", "above zero"),
        ("params=-5%", "not an amount"),
        ("params=half", "not an amount"),
        ("params=nan", "not an amount"),
        ("params=5ms", "no unit of params"),
        ("latency=5", "no unit of latency"),
        ("params=50%,params=40%", "given twice"),
        ("params=50%,", "not currency=value"),
        ("params=1e999", "above zero"),
    ],
)
def test_budgets_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(BadBudget, match=words) as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except BadBudget:
        return
    assert budget.limits


@pytest.mark.parametrize(
    ("text", "share"), [("98%", 0.98), ("0.98", 0.98), ("1", 1.0), (" 95.5 % ", 0.955), ("0.9x", 0.9)]
)
def test_floors_that_are_read(text: str, share: float) -> None:
    assert parse_floor(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "98", "101%", "0%", "-1%", "most", "nan"])
def test_floors_that_are_refused(text: str) -> None:
    with pytest.raises(BadBudget, match="--keep 98%"):
        parse_floor(text)


@given(plans)
def test_plan_round_trip(plan: Plan) -> None:
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan.model_validate(json.loads(plan.model_dump_json(indent=1))) == plan


@given(plans)
def test_plan_finds_its_decisions(plan: Plan) -> None:
    for decision in plan.decisions:
        found = plan.decision(decision.site)
        assert found is not None
        assert found.site == decision.site
    assert plan.decision("no such site " * 3) is None


def test_plan_is_readable(tmp_path: Path) -> None:
    keep = (0, 1, 2, 3, 7, 9, 10)
    plan = Plan(
        network="minilm",
        fingerprint="f",
        method="vib",
        budget="params=50%",
        seed=0,
        decisions=(Decision(site="width", kind="width", bottleneck="remove", units=12, keep=keep),),
    )
    plan.save(tmp_path / "plan.json")
    assert '"0-3,7,9-10"' in (tmp_path / "plan.json").read_text()
    assert load_plan(tmp_path / "plan.json") == plan


def written(folder: Path, **changes: object) -> Path:
    decision = {"site": "width", "kind": "width", "bottleneck": "remove", "units": 12, "keep": "0-3"}
    plan = {"network": "n", "fingerprint": "f", "method": "vib", "budget": "params=50%", "seed": 0}
    path = folder / "plan.json"
    path.write_text(json.dumps({**plan, "decisions": [decision], **changes}))
    return path


def changed(**changes: object) -> list[dict[str, object]]:
    return [{"site": "width", "kind": "width", "bottleneck": "remove", "units": 12, "keep": "0-3", **changes}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": PLAN_VERSION + 1}, "upgrade isthmus"),
        ({"budgets": 1}, "budgets"),
        ({"seed": "one"}, "seed"),
        ({"decisions": changed(keep="0-12")}, "rising indices from 0 to 11"),
        ({"decisions": changed(keep="3,2")}, "rising indices"),
        ({"decisions": changed(keep="")}, "rising indices"),
        ({"decisions": changed(keep="a-b")}, "keep"),
        ({"decisions": changed(keep="0-99999999999")}, "too long"),
        ({"decisions": changed(units=0)}, "units"),
    ],
)
def test_plans_that_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        load_plan(written(tmp_path, **changes))
    assert str(caught.value).startswith("plan ")
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_missing_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(BadInput):
        load_plan(tmp_path / "plan.json")


def test_a_plan_is_not_changed() -> None:
    decision = Decision(site="width", kind="width", bottleneck="remove", units=2, keep=(0,))
    with pytest.raises(ValidationError):
        decision.keep = (1,)
