"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; the command draws a bar with the time left from it."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are over; ``note`` is a short figure to show."""


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """Report to nobody."""
