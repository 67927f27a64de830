"""Settings: how the cache of one layer is narrowed, and the plan of all layers as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.reading.reader import Reader
from isthmus.bottlenecks.cache.roles import Code, Selector
from isthmus.bottlenecks.cache.selection.none import Everything
from isthmus.errors import BadInput


@dataclass(frozen=True)
class CacheSetting:
    """How the cache of a layer is narrowed.

    The first ``sinks`` tokens of a row and its last ``recent`` ones are held as they are. What lies between is history:
    ``block`` tokens at a time join it, of which the selector keeps what the layer may hold, in a code.

    Parameters
    ----------
    selector : Selector
    codes : tuple of Code
        As many as the selector has tiers, the finest first.
    reader : Reader or None
        What a step reads; None: all that is held. A reader goes with entries that all stay.
    entries : int or None
        The most entries that a head holds (on average over the heads of a layer), sinks and recent ones among them;
        None: no bound.
    sinks, recent, block : int

    Raises
    ------
    BadInput
        If these do not go together.
    """

    selector: Selector = field(default_factory=Everything)
    codes: tuple[Code, ...] = (Plain(),)
    reader: Reader | None = None
    entries: int | None = None
    sinks: int = 4
    recent: int = 32
    block: int = 32

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.recent < 1 or self.block < 1:
            raise BadInput(
                f"cache: {self.sinks} sinks, {self.recent} recent tokens, blocks of {self.block};"
                " choose no fewer than 0, 1 and 1"
            )
        if len(self.codes) != self.selector.tiers:
            raise BadInput(
                f"cache: {self.selector.name} takes {self.selector.tiers} codes, {len(self.codes)} are given"
            )
        if self.entries is not None and self.entries < self.sinks + self.recent + self.block:
            raise BadInput(
                f"cache: {self.entries} entries are fewer than {self.sinks} sinks, {self.recent} recent tokens and a"
                f" block of {self.block}; give {self.sinks + self.recent + self.block} or more, or make these smaller"
            )
        if self.entries is not None and isinstance(self.selector, Everything):
            raise BadInput(f"cache: {self.entries} entries, and no selector to choose them; name one, such as window")
        if self.reader is not None and not isinstance(self.selector, Everything):
            raise BadInput(f"cache: {self.reader.name} reads of entries that all stay; leave out {self.selector.name}")
        for code in self.codes:
            if code.group and self.block % code.group:
                raise BadInput(
                    f"cache: blocks of {self.block} tokens do not fill groups of {code.group}; choose a multiple of it"
                )

    @property
    def allowed(self) -> int | None:
        """Return how many entries of history a head may have; a block more is held until it is full."""
        return None if self.entries is None else self.entries - self.sinks - self.recent - self.block
