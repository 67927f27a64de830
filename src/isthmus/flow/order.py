"""The order: what was asked of a narrowing."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.plan import Plan


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    to: str | None
    keep: float | None
    plan: Plan | None
    method: str
    effort: str
    codes: tuple[str, ...]
    sites: tuple[str, ...] | None
    precision: str
    activations: int | None
    time: float | None
    seed: int
    engine: str
