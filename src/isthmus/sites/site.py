"""Sites: the places of a network that can be made narrower, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SiteKind = Literal["width", "heads", "neurons", "layers", "vocabulary", "feature"]


@dataclass(frozen=True)
class Slice:
    """The entries of one parameter that belong to a site's units.

    Unit ``u`` owns, along ``dim``, the entries ``r * units * block + u * block + (0 ... block - 1)`` for every
    ``r`` below ``repeat``. A fused projection such as query-key-value repeats its units three times.
    """

    parameter: str
    dim: int
    block: int = 1
    repeat: int = 1


@dataclass(frozen=True)
class Gate:
    """Where a unit can be closed without removing it.

    ``where`` is ``input`` (the module's input is multiplied along its last dimension, ``block`` entries a unit),
    ``output`` (likewise its output), ``norm`` (a layer norm that computes its statistics over open units only),
    or ``skip`` (module ``unit`` of the list ``module`` is passed by).
    """

    module: str
    where: Literal["input", "output", "norm", "skip"]
    block: int = 1


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module that must follow the number of kept units (times ``factor``)."""

    module: str
    name: str
    factor: int = 1


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
        For ``layers``, the path of the module list.
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
