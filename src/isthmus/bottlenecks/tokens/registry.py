"""The scores, actions and schedules of tokens by name, and policies as data and as a line of text.

Adding a score or an action: a file in its folder, and a line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from isthmus.bottlenecks.named import made, named
from isthmus.bottlenecks.tokens.actions.drop import Drop
from isthmus.bottlenecks.tokens.actions.merge import Merge
from isthmus.bottlenecks.tokens.actions.pause import Finalize, Pause
from isthmus.bottlenecks.tokens.look import Score
from isthmus.bottlenecks.tokens.policy import Action, TokenNarrowing
from isthmus.bottlenecks.tokens.schedule import WHOLE, Counts, Mass, Schedule, Shares
from isthmus.bottlenecks.tokens.scores.chance import Chance
from isthmus.bottlenecks.tokens.scores.class_attention import ClassAttention
from isthmus.bottlenecks.tokens.scores.information_degree import InformationDegree
from isthmus.bottlenecks.tokens.scores.received_attention import ReceivedAttention
from isthmus.bottlenecks.tokens.scores.similarity import Similarity
from isthmus.errors import BadInput, unknown

SCORES: dict[str, Callable[..., Score]] = {
    one.name: one for one in (ClassAttention, ReceivedAttention, Similarity, InformationDegree, Chance)
}
ACTIONS: dict[str, Callable[..., Action]] = {one.name: one for one in (Drop, Merge, Pause, Finalize)}
SCHEDULES = (Counts.name, Shares.name, Mass.name)
BUDGET = "macs"
_FORM = "SCORE:ACTION:share=70%@3,6,9 (or count=100@3,60@6, mass=95%@3,6, macs=60%)"


def score(name: str, **options: Any) -> Score:
    """Return a score by name, with its options; `BadInput` if there is none of that name."""
    found: Score = made("score of tokens", name, SCORES, options)
    return found


def action(name: str, **options: Any) -> Action:
    """Return an action by name, with its options; `BadInput` if there is none of that name."""
    found: Action = made("action on tokens", name, ACTIONS, options)
    return found


def to_data(policy: TokenNarrowing) -> dict[str, Any]:
    """Return a policy as JSON."""
    return {
        "score": {"name": policy.score.name, **asdict(policy.score)},  # type: ignore[call-overload]
        "action": {"name": policy.action.name, **asdict(policy.action)},  # type: ignore[call-overload]
        "schedule": _schedule_data(policy.schedule),
    }


def from_data(data: Any) -> TokenNarrowing:
    """Return a policy from what `to_data` gave; nothing in it is believed before it is checked.

    Raises
    ------
    BadInput
        If it is none.
    """
    if not isinstance(data, Mapping) or set(data) != {"score", "action", "schedule"}:
        raise BadInput("tokens: not a policy; write it with to_data")
    parts = [named(data[part], "tokens") for part in ("score", "action")]
    return TokenNarrowing(
        score(parts[0].pop("name"), **_plain(parts[0])),
        action(parts[1].pop("name"), **_plain(parts[1])),
        _schedule(named(data["schedule"], "tokens")),
    )


def parsed(spec: str) -> tuple[Score, Action, str, str]:
    """Read a policy from a line of text: ``SCORE:ACTION:KIND=VALUE``.

    Options of a score or an action stand in brackets: ``received-attention(every=4)``.

    Returns
    -------
    tuple
        The score, the action, and the kind and value of the schedule; see `scheduled`.

    Raises
    ------
    BadInput
        If it cannot be read.
    """
    parts = spec.strip().split(":")
    if len(parts) != 3 or "=" not in parts[2]:
        raise BadInput(f"tokens {spec!r}: cannot be read; write {_FORM}")
    kind, _, value = parts[2].partition("=")
    if kind not in (*SCHEDULES, BUDGET):
        raise unknown("schedule of tokens", kind, (*SCHEDULES, BUDGET))
    (first, own), (second, others) = _name(parts[0]), _name(parts[1])
    return score(first, **own), action(second, **others), kind, value


def scheduled(kind: str, value: str) -> Schedule:
    """Return a schedule from text: ``share`` ``70%@3,6,9``, ``count`` ``100@3,60@6`` or ``mass`` ``95%@3,6``.

    Raises
    ------
    BadInput
        If it cannot be read.
    """
    pairs: list[tuple[int, str]] = []
    waiting: list[str] = []
    for piece in value.split(","):
        amount, _, layer = piece.rpartition("@")
        if not layer.strip().isdigit():
            raise BadInput(f"tokens {kind}={value}: {piece!r} names no layer; write {_FORM}")
        if amount:
            waiting = [amount.strip()]
        if not waiting:
            raise BadInput(f"tokens {kind}={value}: no number before the first @; write {_FORM}")
        pairs.append((int(layer), waiting[0]))
    if kind == Counts.name:
        if not all(amount.isdigit() for _, amount in pairs):
            raise BadInput(f"tokens {kind}={value}: counts are whole numbers; write {_FORM}")
        return Counts(tuple((layer, int(amount)) for layer, amount in pairs))
    shares = tuple((layer, thousandths(amount, f"tokens {kind}={value}")) for layer, amount in pairs)
    if kind == Shares.name:
        return Shares(shares)
    if len({share for _, share in shares}) > 1:
        raise BadInput(f"tokens {kind}={value}: give one mass for all layers")
    return Mass(shares[0][1], tuple(layer for layer, _ in shares))


def thousandths(text: str, where: str) -> int:
    """Read a share such as ``70%`` or ``0.7`` and return it in thousandths.

    Raises
    ------
    BadInput
        If it is no number.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    if match is None:
        raise BadInput(f"{where}: {text!r} is not a share; write 70% or 0.7")
    return round(float(match[1]) * (WHOLE / 100 if match[2] else WHOLE))


def _schedule_data(schedule: Schedule) -> dict[str, Any]:
    if isinstance(schedule, Counts):
        return {"name": schedule.name, "counts": [list(pair) for pair in schedule.counts]}
    if isinstance(schedule, Shares):
        return {"name": schedule.name, "shares": [list(pair) for pair in schedule.shares]}
    assert isinstance(schedule, Mass)
    return {"name": schedule.name, "mass": schedule.mass, "at": list(schedule.at)}


def _schedule(data: Mapping[str, Any]) -> Schedule:
    name = data["name"]
    if name == Mass.name:
        mass, at = data.get("mass"), data.get("at")
        if type(mass) is not int or not isinstance(at, list) or not all(type(layer) is int for layer in at):
            raise BadInput("tokens: a schedule of mass without a mass and layers; write it with to_data")
        return Mass(mass, tuple(at))
    if name not in (Counts.name, Shares.name):
        raise unknown("schedule of tokens", str(name), SCHEDULES)
    pairs = data.get(f"{name}s")
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair) for pair in pairs
    ):
        raise BadInput(f"tokens: a schedule of {name}s without pairs of a layer and a number; write it with to_data")
    read = tuple((pair[0], pair[1]) for pair in pairs)
    return Counts(read) if name == Counts.name else Shares(read)


def _plain(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in options.items():
        if type(value) not in (int, float, bool):
            raise BadInput(f"tokens: option {name} is {value!r}; give a number")
    return options


def _name(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name(option=number,...)``."""
    match = re.fullmatch(r"\s*([a-z-]+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise BadInput(f"tokens: {text!r} is not a name with options in brackets; write {_FORM}")
    options: dict[str, Any] = {}
    for pair in filter(None, (match[2] or "").split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key.strip()] = int(value) if value.strip().lstrip("-").isdigit() else float(value)
        except ValueError:
            raise BadInput(f"tokens: option {pair!r} of {match[1]} is no number") from None
    return match[1], options
