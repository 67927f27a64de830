"""What claims about caches share besides `claims.caches`: arms at equal bytes, measured once a process, and judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from claims import caches
from claims.caches import BLOCK, LENGTH, READ, RECENT, SINKS, Bed, Settings, through, widest
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.roles import Code, Selector
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.zoo.lm_docs_text import default_files

SEEDS = (0, 1, 2)
WINDOW, H2O = "window", "accumulated attention"
COLUMNS = (
    Column("share", "share of the full cache's bytes", "{:.3f}"),
    Column("perplexity", "perplexity", "{:.3f}"),
    Column("recall", "recall", "{:.3f}"),
)
Fit = Callable[[Bed, float], Any]
"""From what it is tried on and a budget of bytes to settings; None where none keep it."""


def setting(selector: Selector | None, code: Code, entries: int | None) -> CacheSetting:
    """Return a setting with the sinks, recent tokens and blocks that all arms share."""
    if selector is None:
        return CacheSetting(codes=(code,), sinks=SINKS, recent=RECENT, block=BLOCK)
    return CacheSetting(selector, (code,), entries=entries, sinks=SINKS, recent=RECENT, block=BLOCK)


def uniform(bits: int) -> Uniform:
    """Return the code of so many bits whose groups a block fills."""
    return Uniform(bits, bits, tokens=BLOCK)


def selecting(name: str, code: Code | None = None, **options: Any) -> Fit:
    """Return an arm: a selector (and a code) with as many entries as a budget allows."""

    def fit(bed: Bed, budget: float) -> Any:
        def make(entries: int) -> Settings | None:
            if entries < SINKS + RECENT + BLOCK:
                return None
            return setting(registry.selector(name, **options), code or Plain(), entries)

        return widest(bed, make, LENGTH, budget)

    return fit


BASELINES: Mapping[str, Fit] = {WINDOW: selecting("window"), H2O: selecting("h2o")}


@cache
def _measured(arm: str, fit: Fit, share: float, seed: int) -> tuple[tuple[str, float], ...]:
    bed = caches.bed(seed)
    settings = fit(bed, share * bed.full_bytes)
    return () if settings is None else tuple(caches.measured(bed, through(bed.model, settings)).items())


def measuring(arms: Mapping[str, Fit]) -> Callable[[Point], Mapping[str, Any]]:
    """Return what measures a point of these arms; levels are shares of the full cache's bytes."""
    return lambda point: dict(_measured(point.arm, arms[point.arm], point.level, point.seed))


def ahead(outcomes: Sequence[Outcome], ours: str, other: str, key: str, levels: Sequence[float]) -> Part:
    """Decide whether an arm is ahead of another at equal bytes, in perplexity (lower) or recall (higher)."""
    better = "lower" if key == "perplexity" else "higher"
    rule = (
        f"{key} is {better} by more than twice the standard error of paired differences at every share; does not hold: "
        "it is not better at any; mixed: otherwise"
    )
    name = f"{key}: {ours} against {other}"
    verdicts, told, figures = [], [], {}
    for level in levels:
        first, second = of_arm(outcomes, ours, level, key), of_arm(outcomes, other, level, key)
        if len(first) < 2 or len(first) != len(second):
            return part_of(name, rule, UNTESTED)
        mean, error = paired(first, second)
        gain = -mean if key == "perplexity" else mean
        verdicts.append(HOLDS if gain > 2 * error else FAILS if gain <= 0 else MIXED)
        told.append(f"at {level:.1%} {mean:+.3f} (± {error:.3f})")
        figures[f"{level:g}"] = {"difference": mean, "error": error}
    verdict = verdicts[0] if len(set(verdicts)) == 1 else MIXED
    return part_of(name, rule, verdict, ", ".join(told), **figures)


def cache_trials(
    slug: str,
    claim: str,
    experiment: str,
    arms: Mapping[str, Fit],
    levels: Sequence[float] | Mapping[str, Sequence[float]],
    parts: Callable[[Sequence[Outcome]], list[Part]],
    *,
    measure: Callable[[Point], Mapping[str, Any]] | None = None,
    columns: tuple[Column, ...] = COLUMNS,
    level: str = "share of bytes",
) -> Trials:
    """Return the trials of a claim about caches."""
    return Trials(
        slug=slug,
        claim=claim,
        experiment=f"{experiment} lm_docs in bfloat16, documents held out, {caches.ROWS} sequences of {LENGTH} tokens, "
        f"the last {READ} read on; recall of {caches.ASKED} texts a kind.",
        arms=levels if isinstance(levels, Mapping) else dict.fromkeys(arms, tuple(levels)),
        seeds=SEEDS,
        measure=measure or measuring(arms),
        parts=parts,
        columns=columns,
        level=level,
        recipe={
            "length": LENGTH, "read": READ, "chunk": caches.CHUNK, "rows": caches.ROWS, "asked": caches.ASKED,
            "sinks": SINKS, "recent": RECENT, "block": BLOCK,
        },
        data=_data,
        needs=caches.NEEDS,
    )  # fmt: skip


def _data() -> str:
    digest = hashlib.sha256(fingerprint(open_network(caches.NAME)).encode())
    for path in default_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
