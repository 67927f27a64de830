"""The coders by name. Adding one: a file in the folder of its family, and a line here (or an entry point elsewhere)."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points

from isthmus.bottlenecks.bits.rate_distortion import DeepCabac
from isthmus.bottlenecks.coder import Coder
from isthmus.errors import BadInput

CODERS: dict[str, Callable[[], Coder]] = {
    "deepcabac": DeepCabac,
}
CODERS.update({point.name: point.load() for point in entry_points(group="isthmus.coders")})


def coder(name: str) -> Coder:
    """Return a coder by name.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in CODERS:
        near = difflib.get_close_matches(name, CODERS, n=1)
        hint = f"did you mean {near[0]}?" if near else "the coders are " + ", ".join(CODERS)
        raise BadInput(f"unknown coder {name!r}; {hint}")
    return CODERS[name]()
