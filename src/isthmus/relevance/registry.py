"""The estimators by name. Adding one: a file beside this one, and a line here (or an entry point elsewhere)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from isthmus.errors import unknown
from isthmus.relevance.activation import Activation
from isthmus.relevance.estimator import Estimator
from isthmus.relevance.fisher import Fisher
from isthmus.relevance.magnitude import Magnitude
from isthmus.relevance.nvit import HessianLatency
from isthmus.relevance.random import Random
from isthmus.relevance.surgeon import Surgeon
from isthmus.relevance.taylor import Taylor
from isthmus.relevance.vib import VariationalBottleneck

ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "vib": VariationalBottleneck,
    "surgeon": Surgeon,
    "fisher": Fisher,
    "taylor": Taylor,
    "nvit": HessianLatency,
    "activation": Activation,
    "magnitude": Magnitude,
    "random": Random,
}
ESTIMATORS.update({point.name: point.load() for point in entry_points(group="isthmus.relevance")})


def get(name: str) -> Estimator:
    """Return an estimator by name.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in ESTIMATORS:
        raise unknown("method", name, ESTIMATORS)
    return ESTIMATORS[name]()
