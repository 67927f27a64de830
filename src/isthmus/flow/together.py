"""Several processes, one of which decides: what it cannot do stops all of them, each with the same error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from isthmus.errors import IsthmusError

Result = TypeVar("Result")

PATIENCE = timedelta(days=1)
"""How long processes wait for the main one, which alone plans and measures."""


def join_processes() -> Any:
    """Return the state that ``accelerate launch`` started this process with; alone, that of a single process."""
    from accelerate import PartialState

    return PartialState(cpu=True, timeout=PATIENCE)


def from_main(step: Callable[[], Result]) -> Result:
    """Carry out a step in the main process alone, and return its result in every process.

    Raises
    ------
    IsthmusError
        In every process, if the main one could not do it.
    """
    from accelerate.utils import broadcast_object_list

    state = join_processes()
    if state.num_processes == 1:
        return step()
    told: list[Any] = [None, None]
    if state.is_main_process:
        try:
            told[0] = step()
        except IsthmusError as error:
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    result: Result = told[0]
    return result
