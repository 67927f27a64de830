"""The estimators by name. Adding one: a file beside this one, and a line here (or an entry point elsewhere)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import ClassVar, Protocol

import numpy as np

from isthmus.errors import unknown
from isthmus.information.auto import Auto
from isthmus.information.binning import AdaptiveBins
from isthmus.information.cauchy_schwarz import CauchySchwarz
from isthmus.information.compression import Compressed
from isthmus.information.discrete import PlugIn
from isthmus.information.gaussian import Gaussian
from isthmus.information.infonce import InfoNce
from isthmus.information.ksg import Ksg
from isthmus.information.matrix_entropy import MatrixEntropy
from isthmus.information.mine import Mine
from isthmus.information.noisy import Noisy
from isthmus.information.nwj import Nwj
from isthmus.information.result import Estimate, Kinds, Side
from isthmus.information.ross import Ross
from isthmus.information.smile import Smile


class Estimator(Protocol):
    """What an estimator is: a frozen dataclass of its parameters, what it is and takes, and one function.

    ``kinds`` are pairs of kinds of sides; where one side is discrete it is handed over as the second.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    paper: ClassVar[str]
    slug: ClassVar[str | None]
    kinds: ClassVar[tuple[Kinds, ...]]

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        ...


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "auto": Auto,
    "gaussian": Gaussian,
    "ksg": Ksg,
    "ross": Ross,
    "plug-in": PlugIn,
    "adaptive-bins": AdaptiveBins,
    "compressed": Compressed,
    "noisy": Noisy,
    "infonce": InfoNce,
    "mine": Mine,
    "nwj": Nwj,
    "smile": Smile,
    "cauchy-schwarz": CauchySchwarz,
    "matrix-entropy": MatrixEntropy,
}
ESTIMATORS.update({point.name: point.load() for point in entry_points(group="isthmus.information")})


def get(name: str) -> Estimator:
    """Return an estimator by name, with its usual parameters.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]()
