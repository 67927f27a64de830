"""The diagnosis: every site of a network checked on random inputs with random units removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from isthmus.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

    from isthmus.network import Network
    from isthmus.sites import Site

#: Largest difference allowed, as a share of the largest value of the outputs.
MASK_LIMIT = 1e-5
EXPORT_LIMIT = 1e-4
DRAWS = 2
#: From how many parameters on sites of a kind are checked together, and one by one only where that fails.
LARGE = 20_000_000

Kept = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Check:
    """One check: what was checked, of which site, whether it held, and how large the error was.

    ``error`` and ``limit`` are shares of the largest value of the outputs.
    """

    check: str
    site: str
    ok: bool
    error: float
    limit: float


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found for a network; ``left`` names what is left alone and why, a line each."""

    network: str
    rows: tuple[Check, ...]
    left: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(row.ok for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"network": self.network, "ok": self.ok, "rows": rows, "left": list(self.left)}


def diagnose(network: Network, *, seed: int = 0, export: bool = True, progress: Progress = silent) -> Diagnosis:
    """Check the anatomy of a network on random inputs, with random units removed.

    Parameters
    ----------
    network : Network
        Of texts or of images; a module outside transformers says in ``images`` what it takes.
    seed : int
        Of the units that are removed and the tokens or pixels that go in.
    export : bool
        Whether the narrowed network is also exported to OpenVINO and run there.
    progress : Progress

    Returns
    -------
    Diagnosis
        ``mask`` (closing units gives what removing them gives, for every site and for all at once), ``vocabulary``
        (a narrowed tokenizer and embedding agree with the original), ``saved`` (opened again, the same outputs to
        the last bit) and ``exported`` (the engine gives what PyTorch gives).

    Raises
    ------
    UnsupportedNetwork
        If the network has a declared anatomy that does not account for all of its parameters, or nothing to narrow.
    """
    import numpy as np

    from isthmus.doctor import checks
    from isthmus.sites import VOCABULARY, survey

    generator = np.random.default_rng(seed)
    found = survey(network)
    sites = found.sites
    gated = [site for site in sites if site.name != VOCABULARY and site.units > site.minimum]
    rows: list[Check] = []
    together = _together(network, gated)
    steps = len(together) + 4
    for done, (name, members) in enumerate(together.items()):
        progress("doctor", done, steps, name)
        draws = DRAWS if len(members) == 1 and len(together) == len(gated) else 1
        error = max(_mask_error(network, sites, members, generator) for _ in range(draws))
        rows.append(_check("mask", name, error, MASK_LIMIT))
        if error > MASK_LIMIT and len(members) > 1:
            rows += [
                _check("mask", site.name, _mask_error(network, sites, [site], generator), MASK_LIMIT)
                for site in members
            ]
    progress("doctor", steps - 4, steps, "all sites")
    everywhere: dict[str, list[int]] = {site.name: _some_units(site, generator) for site in gated}
    rows.append(_check("mask", "all sites", checks.mask_error(network, sites, everywhere, generator), MASK_LIMIT))
    progress("doctor", steps - 3, steps, "vocabulary")
    vocabulary = next((site for site in sites if site.name == VOCABULARY and site.units > site.minimum), None)
    if vocabulary is not None:
        everywhere[VOCABULARY] = _some_tokens(network, vocabulary, generator)
        error = checks.vocabulary_error(network, sites, everywhere[VOCABULARY])
        rows.append(_check("vocabulary", VOCABULARY, error, MASK_LIMIT))
    narrowed = checks.narrowed(network, sites, everywhere)
    progress("doctor", steps - 2, steps, "saved equals loaded")
    rows.append(_check("saved", "all sites", checks.saved_error(network, narrowed, everywhere, generator), 0.0))
    if export:
        progress("doctor", steps - 1, steps, "exported equals eager")
        rows.append(_check("exported", "all sites", checks.export_error(narrowed, generator), EXPORT_LIMIT))
    progress("doctor", steps, steps)
    return Diagnosis(network.name, tuple(rows), found.left)


def _check(check: str, site: str, error: float, limit: float) -> Check:
    return Check(check, site, error <= limit, error, limit)


def _together(network: Network, sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Return which sites are checked together, by what that is called: one by one but for large networks."""
    from isthmus.cost.measure import count_parameters

    if count_parameters(network.model) < LARGE:
        return {site.name: [site] for site in sites}
    of_kind: dict[str, list[Site]] = {}
    for site in sites:
        of_kind.setdefault(site.kind, []).append(site)
    return {
        members[0].name if len(members) == 1 else f"{len(members)} sites of kind {kind}": members
        for kind, members in of_kind.items()
    }


def _mask_error(
    network: Network, sites: Sequence[Site], members: Sequence[Site], generator: np.random.Generator
) -> float:
    from isthmus.doctor import checks

    kept = {site.name: _some_units(site, generator) for site in members}
    return checks.mask_error(network, sites, kept, generator)


def _some_units(site: Site, generator: np.random.Generator) -> list[int]:
    """Draw units that stay: those that must, and at least one unit fewer than there are."""
    count = int(generator.integers(max(site.minimum, 1), site.units))
    free = [unit for unit in range(site.units) if unit not in set(site.fixed)]
    drawn = generator.permutation(free)[: max(0, count - len(site.fixed))]
    return sorted({*site.fixed, *(int(unit) for unit in drawn)})


def _some_tokens(network: Network, site: Site, generator: np.random.Generator) -> list[int]:
    """Draw tokens that stay, such that every token that is built from others finds them."""
    import numpy as np

    from isthmus.sites.vocabulary import token_relevance

    relevance = token_relevance(network.tokenizer, generator.random(site.units))
    fixed = set(site.fixed)
    order = [int(unit) for unit in np.argsort(-relevance, kind="stable") if int(unit) not in fixed]
    return sorted(fixed | set(order[: len(order) // 2]))
