"""The joint plan beside each family alone: the same bytes, the same texts, the same recovery, in one run.

A family alone is what a user gets who leaves the others out: ``--codes`` names its coders, and ``--sites none`` takes
no units away. What coders save and lose on each matrix is measured once and shared.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from claims.common import Ledger, Outcome, Say
from claims.data import encoder_task, why_not
from claims.tables import markdown_table

from isthmus import bottlenecks
from isthmus.bottlenecks.coder import Setting
from isthmus.bottlenecks.curves import Candidate, Curves
from isthmus.budget import parse_budget
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.flow.coding import curves_of
from isthmus.flow.joint import make_joint_plan
from isthmus.flow.order import Order
from isthmus.flow.planning import Planned, make_plan
from isthmus.flow.record import versions
from isthmus.flow.recovering import recover_stage
from isthmus.flow.study import Study, start_study
from isthmus.flow.verifying import measure_quality
from isthmus.network import Network, embed
from isthmus.storage.artifact import save_artifact
from isthmus.storage.files import write_atomic
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.storage.stages import StageStore
from isthmus.storage.weights import weight_bytes
from isthmus.tasks import Task
from isthmus.tasks.data import data_folder
from isthmus.tasks.metrics import spearman

NEEDS = ("stsb/train.csv", "stsb/dev.csv", "sst2/train.tsv")
BUDGETS = ("12MB", "8MB", "5MB", "3MB")
JOINT = "joint"
KEPT = Path(__file__).resolve().parents[1] / "build" / "curves"
"""Where what coders save and lose is kept between runs."""


@dataclass(frozen=True)
class Family:
    """What may be used: coders, and whether units may go."""

    codes: tuple[str, ...]
    units: bool = False


DRAWS = 500
"""Bootstraps over the scored pairs."""
FAMILIES = {
    JOINT: Family(("deepcabac", "vptq", "alds"), units=True),
    "bits": Family(("deepcabac",)),
    "codebook": Family(("vptq",)),
    "rank": Family(("alds",)),
    "structure": Family((), units=True),
}


@dataclass(frozen=True)
class Point:
    """One family at one budget."""

    family: str
    budget: str
    effort: str

    @property
    def label(self) -> str:
        """What the tables call it."""
        return self.family


class Bench:
    """What all points share: a network, a task, and what each coder saves and loses on each matrix."""

    def __init__(self, model: str, task: Task, *, method: str, seed: int, say: Say) -> None:
        self.network, self.task, self.method, self.say = open_network(model), task, method, say
        self.whole = start_study(self.network, task, seed=seed)
        self.bare = replace(self.whole, sites=())
        self.measured: dict[str, Curves] = {}
        self.reference = measure_quality([self.network], task)[0]
        self.joint_likeness: dict[tuple[str, str], Any] = {}

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself; nothing of it is about the machine."""
        return {
            "versions": versions(),
            "network": fingerprint(self.network),
            "data": self.task.fingerprint,
            "method": self.method,
            "seed": self.whole.seed,
            "families": {
                name: [*family.codes, *(["units"] if family.units else [])] for name, family in FAMILIES.items()
            },
        }

    def curves(self, codes: Sequence[str]) -> Curves:
        """Return what coders save and lose, each measured once."""
        for name in codes:
            if name not in self.measured:
                started = time.monotonic()
                self.measured[name] = self._kept(name)
                self.say(
                    f"{name}: measured on {len(self.measured[name])} matrices in {time.monotonic() - started:.0f} s"
                )
        found = [self.measured[name] for name in codes]
        return {matrix: tuple(one for curve in found for one in curve[matrix]) for matrix in found[0]}

    def _kept(self, coder: str) -> Curves:
        """Return one coder's curves, read if they were measured with this very code on this very study."""
        sources = sorted(Path(*bottlenecks.__path__).rglob("*.py"))
        made_by = [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
        key = hashlib.sha256(json.dumps([self.record(), made_by], sort_keys=True).encode()).hexdigest()[:16]
        path = KEPT / f"{coder}-{key}.json"
        if path.exists():
            return _read_curves(path)
        measured = curves_of(self.whole, [coder])
        _write_curves(path, measured)
        return measured

    def plan(self, point: Point) -> tuple[Study, Planned]:
        """Decide within a family alone."""
        family = FAMILIES[point.family]
        study = self.whole if family.units else self.bare
        budget = parse_budget(f"bytes={point.budget}")
        if not family.codes:
            return study, make_plan(study, budget, method=self.method, effort="faster")
        curves = self.curves(family.codes)
        return study, make_joint_plan(
            study, budget, method=self.method, effort="faster", codes=family.codes, curves=curves
        )

    def measure(self, point: Point) -> Outcome:
        """Plan, cut, recover, code and score; a budget that a family cannot meet is an outcome too."""
        identity = {"family": point.family, "budget": point.budget, "effort": point.effort}
        started = time.monotonic()
        try:
            study, planned = self.plan(point)
        except UnreachableBudget as error:
            return {**identity, "refused": str(error)}
        codes = FAMILIES[point.family].codes
        asked = f"bytes={point.budget}", None, None, self.method, point.effort, codes, None, "float32"
        order = Order(*asked, None, None, study.seed, study.engine)
        with tempfile.TemporaryDirectory(prefix="isthmus-families-") as folder:
            stages = StageStore(Path(folder) / "stages", {"point": vars(point)}, resume=False)
            done = recover_stage(study, order, planned, stages, started, lambda *_: None)
            saved = Path(folder) / "artifact"
            save_artifact(done.network, saved, {"network": self.network.name})
            size = weight_bytes(saved)
            opened = open_network(saved)
            score = measure_quality([opened], self.task)[0]
            against = self._against_joint(point, opened)
        return {
            **identity,
            **against,
            "bytes": size,
            "params": count_parameters(done.network.model),
            "nats": done.distortion["measured_after_recovery"],
            "predicted": done.distortion["predicted"],
            "relative": score.value / self.reference.value,
            "coders": sorted({coding.coder for coding in planned.plan.codings}),
            "seconds": time.monotonic() - started,
        }

    def _against_joint(self, point: Point, network: Network) -> dict[str, Any]:
        """Return the joint plan's lead in points on the same pairs, with its standard error; none without its run."""
        held, at = self.task.held_out, (point.budget, point.effort)
        sides = [np.asarray(embed(network, list(side), batch_size=64)) for side in (held.left, held.right)]
        likeness = (sides[0] * sides[1]).sum(1)
        if point.family == JOINT:
            self.joint_likeness[at] = likeness
        if point.family == JOINT or at not in self.joint_likeness:
            return {}
        truth, ours = np.asarray(held.scores), self.joint_likeness[at]
        whole = 100 / self.reference.value

        def lead(rows: Any) -> float:
            return whole * (spearman(ours[rows], truth[rows]) - spearman(likeness[rows], truth[rows]))

        drawing = np.random.default_rng(0)
        drawn = [lead(drawing.integers(len(truth), size=len(truth))) for _ in range(DRAWS)]
        return {"joint_lead": {"points": lead(slice(None)), "error": float(np.std(drawn))}}


def _write_curves(path: Path, curves: Curves) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({name: [asdict(one) for one in found] for name, found in curves.items()}).encode())


def _read_curves(path: Path) -> Curves:
    return {
        name: tuple(Candidate(**{**one, "setting": Setting(**one["setting"])}) for one in found)
        for name, found in json.loads(path.read_text(encoding="utf-8")).items()
    }


def point_of(outcome: Mapping[str, Any]) -> Point:
    """Return the point that an outcome belongs to."""
    return Point(outcome["family"], outcome["budget"], outcome["effort"])


def conclude(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return by how much the joint plan leads the best family alone, at each budget and effort.

    The best family is that of the best score; ``nats`` are how many times fewer the joint plan loses than the family
    that loses fewest. It is ahead where its score is the higher one, and ahead in nats where it loses fewer; it is
    behind where its score is lower by more than two standard errors of the difference over pairs.
    """
    leads: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        if outcome["family"] != JOINT or "refused" in outcome:
            continue
        others = [
            one
            for one in outcomes
            if one["family"] != JOINT
            and "refused" not in one
            and (one["budget"], one["effort"]) == (outcome["budget"], outcome["effort"])
        ]
        if not others:
            continue
        best = max(others, key=lambda one: float(one["relative"]))
        leads[f"{outcome['budget']} {outcome['effort']}"] = {
            "best": best["family"],
            "points": 100 * (outcome["relative"] - best["relative"]),
            "error": best.get("joint_lead", {}).get("error"),
            "nats": min(one["nats"] for one in others) / max(outcome["nats"], 1e-9),
        }
    return {
        "leads": leads,
        "ahead": bool(leads) and all(one["points"] > 0 for one in leads.values()),
        "behind": [
            at for at, one in leads.items() if one["points"] < -2 * (0.0 if one["error"] is None else one["error"])
        ],
        "ahead_in_nats": bool(leads) and all(one["nats"] > 1 for one in leads.values()),
    }


def run(
    out: Path,
    *,
    model: str,
    budgets: Sequence[str] = BUDGETS,
    families: Sequence[str] = tuple(FAMILIES),
    effort: str = "none",
    method: str = "fisher",
    seed: int = 0,
    validation: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Measure the points that ``out`` does not have yet.

    Raises
    ------
    BadInput
        If the data is not on this machine, or a family is unknown.
    """
    if unknown := [name for name in families if name not in FAMILIES]:
        raise BadInput(f"families: unknown {unknown[0]!r}; give some of {', '.join(FAMILIES)}")
    folder, missing = data_folder(), why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"families: skipped, {missing}")
    bench = Bench(model, encoder_task(folder, validation=validation), method=method, seed=seed, say=say)
    head = {"benchmark": "families", "record": bench.record(), "reference": bench.reference.value}
    ledger = Ledger(out, head, conclude)
    done = {point_of(outcome) for outcome in ledger.outcomes}
    for budget in budgets:
        for family in families:
            point = Point(family, budget, effort)
            if point in done:
                continue
            outcome = bench.measure(point)
            ledger.add(outcome)
            shown = {key: outcome[key] for key in ("refused", "bytes", "nats", "relative", "seconds") if key in outcome}
            say(f"{family} at {budget}, {effort}: {json.dumps(shown)}")
    ledger.write()
    return conclude(ledger.outcomes)


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the part of docs/benchmarks.md."""
    rows, names = [], list(FAMILIES)
    for one in sorted(result["points"], key=lambda one: (-_size(one["budget"]), names.index(one["family"]))):
        if "refused" in one:
            rows.append([one["budget"], one["effort"], one["family"], "not reached", "", "", ""])
            continue
        rows.append(
            [
                one["budget"],
                one["effort"],
                one["family"],
                f"{one['bytes'] / 1e6:.2f}",
                f"{one['params'] / 1e6:.1f}",
                f"{one['nats']:.3f}",
                f"{one['relative']:.1%}",
            ]
        )
    heads = ["budget", "effort", "family", "MB", "M parameters", "nats", "quality"]
    described = ", ".join(f"{name}: {' and '.join(parts)}" for name, parts in result["record"]["families"].items())
    return [
        "## The joint plan beside each family alone",
        "",
        markdown_table(heads, rows),
        "",
        f"What each may use: {described}. Quality on STS-B dev relative to the original; nats of divergence from it on "
        "the probe's texts. Effort `none` trains nothing.",
        "",
        markdown_table(
            ["budget", "best family alone", "the joint plan's lead, points", "nats, times fewer than the fewest"],
            [_lead_row(at, result["leads"][at]) for at in sorted(result["leads"], key=_size, reverse=True)],
        ),
        "",
        f"Ahead in score everywhere: {_word(result['ahead'])}; in nats: {_word(result['ahead_in_nats'])}; behind in "
        "score by more than two standard errors (over pairs, bootstrapped): "
        f"{', '.join(result['behind']) or 'nowhere'}.",
        "",
    ]


def _size(at: str) -> float:
    """Return the bytes of a budget, with or without an effort behind it."""
    return parse_budget(f"bytes={at.split()[0]}").limits[0].value


def _lead_row(at: str, lead: Mapping[str, Any]) -> list[str]:
    error = "" if lead["error"] is None else f" ± {lead['error']:.2f}"
    return [at, str(lead["best"]), f"{lead['points']:+.2f}{error}", f"{lead['nats']:.2f}"]


def _word(met: bool) -> str:
    return "yes" if met else "no"
