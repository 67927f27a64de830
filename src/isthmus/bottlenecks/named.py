"""Methods by name with their options, as settings and policies write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from isthmus.errors import BadInput, unknown


def made(what: str, name: str, known: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> Any:
    """Return the method of a name, with its options; ``what`` says in an error what it is.

    Raises
    ------
    BadInput
        If there is none of that name, or it does not take the options.
    """
    if name not in known:
        raise unknown(what, name, known)
    try:
        return known[name](**options)
    except TypeError as error:
        raise BadInput(f"{what}: {name} does not take these options ({error}); see its docstring") from None


def named(data: Any, what: str) -> dict[str, Any]:
    """Return options and the name among them, as they were read.

    Raises
    ------
    BadInput
        If there is no name.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise BadInput(f"{what}: a part without a name; write it with to_data")
    return dict(data)
