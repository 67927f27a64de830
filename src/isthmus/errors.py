"""The few kinds of error a user can cause. Each message says what, where and how to mend it, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IsthmusError(Exception):
    """A mistake in what was asked or given; the command prints it as one line and exits with code 2."""


class BadInput(IsthmusError):
    """A file, column, tensor or option that cannot be used."""


class BadBudget(IsthmusError):
    """A budget that cannot be read."""


class UnreachableBudget(IsthmusError):
    """A budget that no plan meets; the message names the nearest one that can be met."""


class UnsupportedNetwork(IsthmusError):
    """A network whose anatomy is not known."""


class BadArtifact(IsthmusError):
    """An artifact that is truncated, tampered with or from another version."""


def unknown(what: str, name: str, known: Iterable[str]) -> BadInput:
    """Return the error for a name that is not known, with the near one where there is one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the {what}s are " + ", ".join(names)
    return BadInput(f"unknown {what} {name!r}; {hint}")


def misfit(reason: str) -> BadArtifact:
    """Return the error of a narrowing that was saved and does not fit the model that it stands beside."""
    return BadArtifact(f"config.json: quantization_config does not fit the model ({reason}); restore the file")
