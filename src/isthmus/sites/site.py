"""Sites: the places of a network that can be made narrower, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SiteKind = Literal["width", "heads", "neurons", "channels", "layers", "experts", "vocabulary", "feature", "tokens"]


def common_module(tensors: Iterable[str]) -> str:
    """Return the path of the innermost module that holds all of these parameters; empty for the network itself."""
    owners = [name.split(".")[:-1] for name in tensors]
    place = []
    for steps in zip(*owners, strict=False):
        if len(set(steps)) > 1:
            break
        place.append(steps[0])
    return ".".join(place)


def regular_owners(units: int, block: int, repeat: int = 1) -> NDArray[np.int64]:
    """Return the unit of every entry where each owns ``block`` neighbours, ``repeat`` times over, ``(entries,)``."""
    return np.tile(np.repeat(np.arange(units), block), repeat)


@dataclass(frozen=True)
class Slice:
    """The entries of one parameter (or buffer) that belong to a site's units.

    Unit ``u`` owns, along ``dim``, the entries ``r * units * block + u * block + (0 ... block - 1)`` for every
    ``r`` below ``repeat``. A fused projection such as query-key-value repeats its units three times. Where entries lie
    otherwise (behind a concatenation, a shuffle, an unrolled image), ``owners`` has the unit of each entry along
    ``dim``, -1 for those of other sites or of none; ``block`` is then how many a unit owns.
    """

    parameter: str
    dim: int
    block: int = 1
    repeat: int = 1
    owners: tuple[int, ...] = ()

    @property
    def each(self) -> int:
        """How many entries along ``dim`` leave with one unit."""
        return self.block * self.repeat

    def owner_of(self, units: int) -> NDArray[np.int64]:
        """Return the unit of every entry along ``dim``, -1 for none, shape ``(entries,)``."""
        return np.asarray(self.owners) if self.owners else regular_owners(units, self.block, self.repeat)

    def entries(self, units: int) -> NDArray[np.int64]:
        """Return the entries along ``dim`` of each unit, rising, shape ``(units, each)``."""
        owner = self.owner_of(units)
        order = np.argsort(owner, kind="stable")
        return order[np.count_nonzero(owner < 0) :].reshape(units, self.each)


@dataclass(frozen=True)
class Gate:
    """Where a unit can be closed without removing it.

    ``where`` is ``input`` (the module's input is multiplied along ``dim``, ``block`` entries a unit), ``output``
    (likewise its output), ``norm`` (a layer norm, or a group norm of one group, that computes its statistics over open
    units only), ``within`` (as ``input``, of a convolution that standardizes its weight, which it then does over open
    units only), ``router`` (a router rates open experts only) or ``skip`` (module ``unit`` of the list ``module`` is
    passed by). ``owners`` is as in `Slice`.
    """

    module: str
    where: Literal["input", "output", "norm", "within", "router", "skip"]
    block: int = 1
    dim: int = -1
    owners: tuple[int, ...] = ()


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module that must follow the number of kept units (times ``factor``).

    Where ``among`` is given, only those units count: channels of zeros are padded before and after others.
    """

    module: str
    name: str
    factor: int = 1
    among: tuple[int, ...] = ()


@dataclass(frozen=True)
class Site:
    """A place that can be made narrower.

    Parameters
    ----------
    name : str
        Unique within the network, such as ``layers.3.heads``.
    kind : SiteKind
    units : int
        How many units there are now.
    slices : tuple of Slice
        What leaves the network with a unit. Empty for ``layers``: a layer leaves with all it owns.
    gates : tuple of Gate
        Where a unit is closed without removing it. Empty for ``vocabulary``: a token is closed in the tokenizer.
    layer : int or None
        The layer it belongs to; it goes when that layer goes.
    minimum : int
        How many units must stay.
    module : str
        For ``layers``, the path of the module list (or sequence).
    fixed : tuple of int
        Units that may not go (special tokens, single characters).
    """

    name: str
    kind: SiteKind
    units: int
    slices: tuple[Slice, ...] = ()
    gates: tuple[Gate, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    layer: int | None = None
    minimum: int = 1
    module: str = ""
    fixed: tuple[int, ...] = ()
