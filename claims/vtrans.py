"""VTrans (Dutta et al. 2024): pruning a transformer by variational information bottleneck gates."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from claims.attention import attention_masses, closed_against_kept, closed_shares
from claims.common import TOLERANCE, Ledger, Outcome, Point, Say, Workbench, point_of, points_for, run_points
from claims.data import VALIDATION_PAIRS, encoder_task, why_not
from claims.tables import scores
from isthmus.errors import BadInput
from isthmus.examples import texts_of
from isthmus.storage.opening import open as open_network
from isthmus.tasks.data import data_folder

SLUG = "vtrans"
METHOD = "vib"
METHODS = ("vib", "random", "magnitude", "activation", "taylor", "fisher")
NEEDS = ("stsb/train.csv", "stsb/dev.csv", "sst2/train.tsv")
CLAIM = (
    "Gates trained by the variational information bottleneck meet a budget of parameters that counts the embeddings, "
    "and lose less than other structural pruning at equal size, the more so the smaller the network; training the "
    "gates alone takes a fraction of the time at little loss; the heads they close attend more to special and current "
    "tokens than the heads they keep."
)
HALF, AHEAD_AT = 0.5, 0.25
BUDGET_TOLERANCE, TIME_SHARE, POINTS_LOST, P_VALUE = 0.02, 0.2, 2.0, 0.05
ATTENTION_TEXTS = 256
HOLDS, MIXED, FAILS, UNTESTED = "holds", "mixed", "does not hold", "not tested"

Part = dict[str, Any]


def experiment(steps: int, effort: str, *, validation: bool = False) -> str:
    """Return what is done, in words."""
    scored = f"{VALIDATION_PAIRS} pairs held out of STS-B train" if validation else "STS-B dev"
    return (
        "all-MiniLM-L6-v2, its vocabulary, width, heads, neurons and layers cut to a share of all its parameters. "
        f"Gates (effort `{effort}`) and the other estimators of relevance get the same texts, the same relevance of "
        f"the vocabulary, the same solver, the same measured parameters (within {TOLERANCE:.1%}) and the same {steps} "
        "steps of distillation from the original on unlabelled sentences (the training sentences of STS-B and "
        f"SST-2). The score is Spearman's correlation on {scored}, relative to the original's. Nothing is trained "
        "on it. What all methods share (losses, learning rates, how much a loss at each kind of site counts) was first "
        "chosen with its scores in view and then again, like the gates' schedule, on pairs held out of STS-B train."
    )


def _part(name: str, rule: str, verdict: str, summary: str, figures: Mapping[str, Any]) -> Part:
    return {"name": name, "rule": rule, "verdict": verdict, "summary": summary, "figures": dict(figures)}


def _all_or_some(passed: Sequence[bool]) -> str:
    if not passed:
        return UNTESTED
    return HOLDS if all(passed) else (MIXED if any(passed) else FAILS)


def check_equal(outcomes: Sequence[Outcome]) -> None:
    """Refuse to compare networks of different size.

    Raises
    ------
    BadInput
        If measured parameters at one share differ by more than half a percent.
    """
    for share in {float(outcome["share"]) for outcome in outcomes}:
        params = [int(outcome["params"]) for outcome in outcomes if outcome["share"] == share]
        if max(params) > min(params) * (1 + TOLERANCE):
            raise BadInput(f"points at {share:.0%} have {min(params)} to {max(params)} parameters; they must be equal")


def ordering(outcomes: Sequence[Outcome], effort: str) -> Part:
    """Decide (a): at equal parameters, gates are not behind the best other method, and ahead where little is left."""
    rule = (
        "at every share the mean is no further below the best baseline's than that baseline's standard deviation over "
        f"seeds, and above it at {AHEAD_AT:.0%} and less; holds: at all shares, mixed: at some"
    )
    found = scores(outcomes)
    ours, figures, passed, texts = f"{METHOD} {effort}".strip(), {}, [], []
    for share in sorted({share for _, share in found}, reverse=True):
        others = {label: cell for (label, at), cell in found.items() if at == share and label.split()[0] != METHOD}
        mine = found.get((ours, share))
        if mine is None or not others:
            continue
        best = max(others, key=lambda label: others[label].mean)
        lead = mine.mean - others[best].mean
        fine = lead > 0 if share <= AHEAD_AT else lead >= -others[best].spread
        passed.append(fine)
        figures[f"{share:g}"] = {
            "vib": mine.mean,
            "best": best,
            "best_mean": others[best].mean,
            "best_spread": others[best].spread,
            "lead": lead,
            "seeds": min(mine.seeds, others[best].seeds),
            "met": fine,
        }
        texts.append(
            f"{share:.0%}: {100 * lead:+.1f} points against `{best}` (its spread {100 * others[best].spread:.1f})"
        )
    return _part("ordering at equal parameters", rule, _all_or_some(passed), "; ".join(texts), figures)


def budget(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): measured parameters, embeddings included, are within 2 % of the budget and not above it."""
    rule = (
        f"measured parameters, embeddings included, are at most the budget and within {BUDGET_TOLERANCE:.0%} of it; "
        "holds: every plan of gates, mixed: some"
    )
    mine = [outcome for outcome in outcomes if outcome["method"] == METHOD]
    off = [outcome["params"] / (outcome["share"] * outcome["original_params"]) - 1 for outcome in mine]
    passed = [-BUDGET_TOLERANCE - 1e-9 <= value <= 0 for value in off]
    figures: dict[str, Any] = {"plans": len(off)}
    summary = ""
    if off:
        figures |= {"least": min(off), "most": max(off)}
        by_share = {
            f"{share:g}": statistics.fmean(o["embedding_params"] / o["params"] for o in mine if o["share"] == share)
            for share in sorted({float(outcome["share"]) for outcome in mine}, reverse=True)
        }
        figures["embeddings_share"] = by_share
        shares = ", ".join(f"{value:.0%} at {float(share):.0%}" for share, value in by_share.items())
        summary = (
            f"{len(off)} plans, {min(off):+.2%} to {max(off):+.2%} of the budget; word embeddings are {shares} of what "
            "is left"
        )
    return _part("the budget is met, embeddings included", rule, _all_or_some(passed), summary, figures)


def efforts(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): training the gates alone takes a fifth of the time or less and loses two points or less."""
    rule = (
        f"at {HALF:.0%} the gates of `faster` take at most {TIME_SHARE:.0%} of the wall time of those of `full` and "
        f"the result is at most {POINTS_LOST:g} points lower (seeds that both have); mixed: one of the two"
    )
    figures: dict[str, Any] = {}
    every = [o for o in outcomes if o["method"] == METHOD and o["share"] == HALF]
    both = {o["seed"] for o in every if o["effort"] == "faster"} & {o["seed"] for o in every if o["effort"] == "full"}
    for effort in ("faster", "fast", "full"):
        runs = [o for o in every if o["effort"] == effort and o["seed"] in both]
        if runs:
            figures[effort] = {
                "gate_seconds": statistics.median(run["seconds"]["relevance"] for run in runs),
                "relative": statistics.fmean(run["relative"] for run in runs),
                "seeds": len(runs),
            }
    if "faster" not in figures or "full" not in figures:
        return _part("the cost of faster gates", rule, UNTESTED, "", figures)
    share = figures["faster"]["gate_seconds"] / figures["full"]["gate_seconds"]
    lost = 100 * (figures["full"]["relative"] - figures["faster"]["relative"])
    figures |= {"time_share": share, "points_lost": lost}
    verdict = _all_or_some([share <= TIME_SHARE, lost <= POINTS_LOST])
    summary = "; ".join(
        f"`{effort}` {figures[effort]['gate_seconds']:.0f} s, {figures[effort]['relative']:.1%}"
        for effort in ("faster", "fast", "full")
        if effort in figures
    )
    return _part(
        "the cost of faster gates",
        rule,
        verdict,
        f"{summary}: {share:.0%} of the time, {lost:+.1f} points lost",
        figures,
    )


def attention(outcomes: Sequence[Outcome], masses: Mapping[str, Any] | None) -> Part:
    """Decide (d): closed heads attend more to special and current tokens than kept ones."""
    rule = (
        "over all plans of gates, heads weighted by how often they are closed give more of their attention in the "
        f"original to special and current tokens than those kept, p < {P_VALUE:g} (permutations of heads); mixed: "
        "more, but by chance"
    )
    name = "closed heads attend to special and current tokens"
    plans = [outcome for outcome in outcomes if outcome["method"] == METHOD]
    if masses is None or not plans:
        return _part(name, rule, UNTESTED, "", {})
    special, current = np.asarray(masses["special"]), np.asarray(masses["current"])
    layers, heads = special.shape
    closed = closed_shares([outcome["heads"] for outcome in plans], layers, heads)
    figures: dict[str, Any] = {
        "both": closed_against_kept(special + current, closed),
        "special": closed_against_kept(special, closed),
        "current": closed_against_kept(current, closed),
        "by_share": {},
    }
    for share in sorted({float(outcome["share"]) for outcome in plans}, reverse=True):
        at = closed_shares([outcome["heads"] for outcome in plans if outcome["share"] == share], layers, heads)
        figures["by_share"][f"{share:g}"] = closed_against_kept(special + current, at)
    both = figures["both"]
    if "difference" not in both:
        return _part(name, rule, UNTESTED, "no head was closed", figures)
    ahead = both["difference"] > 0
    verdict = (HOLDS if both["p"] < P_VALUE else MIXED) if ahead else FAILS
    summary = (
        f"closed {both['closed']:.1%}, kept {both['kept']:.1%} (p = {both['p']:.3f}); special tokens "
        f"{figures['special'].get('difference', 0):+.1%}, current {figures['current'].get('difference', 0):+.1%}"
    )
    return _part(name, rule, verdict, summary, figures)


def judge(
    outcomes: Sequence[Outcome], masses: Mapping[str, Any] | None, *, effort: str, complete: bool
) -> dict[str, Any]:
    """Return the parts and the verdict.

    ``holds`` if every part holds, ``does not hold`` if the ordering does not, otherwise ``mixed``; ``unfinished`` while
    points are missing or a part is not tested.
    """
    check_equal(outcomes)
    parts = [ordering(outcomes, effort), budget(outcomes), efforts(outcomes), attention(outcomes, masses)]
    verdicts = [part["verdict"] for part in parts]
    if not complete or UNTESTED in verdicts:
        verdict = "unfinished"
    elif verdicts[0] == FAILS:
        verdict = FAILS
    else:
        verdict = HOLDS if all(found == HOLDS for found in verdicts) else MIXED
    return {"verdict": verdict, "parts": parts}


def wanted_points(methods: Sequence[str], shares: Sequence[float], seeds: Sequence[int], effort: str) -> list[Point]:
    """Return the points of the experiment: the ordering, then the efforts at half, each pair side by side in time."""
    points = points_for(methods, shares, seeds, effort)
    if METHOD in methods and HALF in shares:
        # Gates trained in full take as long as all other points of a seed together: one seed tells the cost.
        points += [Point(METHOD, HALF, seeds[0], other) for other in ("faster", "full")]
    return list(dict.fromkeys(points))


def run(
    out: Path,
    *,
    model: str,
    methods: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    effort: str,
    with_efforts: bool,
    validation: bool = False,
    say: Say = print,
) -> str:
    """Run the experiment, going on from what ``out`` holds, and return the verdict.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    folder = data_folder()
    missing = why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"{SLUG}: skipped, {missing}")
    bench = Workbench(open_network(model), encoder_task(folder, validation=validation), steps=steps, say=say)
    held = bench.study.task.held_out.passages[:ATTENTION_TEXTS]
    masses = attention_masses(bench.study.network, texts_of(held, SLUG))
    points = points_for(methods, shares, seeds, effort)
    if with_efforts:
        points = wanted_points(methods, shares, seeds, effort)
    head = {
        "slug": SLUG,
        "claim": CLAIM,
        "experiment": experiment(steps, effort, validation=validation),
        "record": bench.record(),
        "attention": masses,
    }
    ledger = Ledger(out, head, _concluding(points, masses, effort))
    run_points(points, ledger, bench.measure, say)
    ledger.write()
    concluded = ledger.conclude(ledger.outcomes)
    for part in concluded["parts"]:
        say(f"{part['name']}: {part['verdict']} ({part['summary']})")
    say(f"{SLUG}: {concluded['verdict']}")
    return str(concluded["verdict"])


def join(
    out: Path,
    parts: Sequence[Path],
    *,
    methods: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
    effort: str,
) -> str:
    """Put the points of runs that went side by side into ``out``, beside those it holds, and return the verdict.

    Raises
    ------
    BadInput
        If a part is missing, or was made with other versions, data, weights or steps.
    """
    missing = [str(part) for part in parts if not part.is_file()]
    if missing:
        raise BadInput(f"{missing[0]}: no such file; give the folders that were given as --out")
    found = json.loads(parts[0].read_text(encoding="utf-8"))
    head = {name: found[name] for name in ("slug", "claim", "experiment", "record", "attention")}
    conclude = _concluding(wanted_points(methods, shares, seeds, effort), head["attention"], effort)
    ledger = Ledger(out, head, conclude)
    for part in parts:
        ledger.outcomes += [one for one in Ledger(part, head, conclude).outcomes if not ledger.done(point_of(one))]
    ledger.write()
    return str(ledger.conclude(ledger.outcomes)["verdict"])


def _concluding(
    points: Sequence[Point], masses: Mapping[str, Any], effort: str
) -> Callable[[list[Outcome]], Mapping[str, Any]]:
    def conclude(outcomes: list[Outcome]) -> Mapping[str, Any]:
        there = {point_of(outcome) for outcome in outcomes}
        return judge(outcomes, masses, effort=effort, complete=there >= set(points))

    return conclude
