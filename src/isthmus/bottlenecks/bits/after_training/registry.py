"""Ways to round after training, by name. Adding one: a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from isthmus.bottlenecks.bits.after_training.is_vit import IsVit
from isthmus.bottlenecks.bits.after_training.method import Method
from isthmus.bottlenecks.bits.after_training.plain import PlainRounding
from isthmus.bottlenecks.bits.after_training.repq_vit import RepqVit
from isthmus.bottlenecks.bits.after_training.repquant import RepQuant
from isthmus.errors import unknown

METHODS: dict[str, Callable[[], Method]] = {
    "repquant": RepQuant,
    "repq-vit": RepqVit,
    "is-vit": IsVit,
    "plain": PlainRounding,
}


def method(name: str) -> Method:
    """Return a method by name; `BadInput` if there is none of that name."""
    if name not in METHODS:
        raise unknown("way to round", name, METHODS)
    return METHODS[name]()
