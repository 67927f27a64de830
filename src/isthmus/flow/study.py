"""What all steps of the flow start from: a network, its task, its sites and what they cost."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus.budget import Budget, Currency
from isthmus.cost.examples import macs_of, one_described
from isthmus.cost.latency import Batch, Latency
from isthmus.cost.latency_table import latency_table
from isthmus.cost.predict import bytes_rate, kept_counts, parameter_rate
from isthmus.cost.rates import Rate, Term
from isthmus.errors import BadInput, unknown
from isthmus.examples import Example
from isthmus.export.bench import IMAGE_BATCHES
from isthmus.export.engines import engine_batches, export_network
from isthmus.export.timing import time_exported
from isthmus.flow.suiting import check_suits, mean_tokens
from isthmus.flow.verifying import bytes_on_disk
from isthmus.network import Network
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import Probe, make_probe, most_examples
from isthmus.sites import VOCABULARY, Site, discover, narrow_model
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.parts import described_parts
from isthmus.storage.weights import header_bytes, saved_shapes
from isthmus.tasks import Task

PROBE_EXAMPLES = 256
LATENCY_BATCH = 32


@dataclass(frozen=True)
class Study:
    """A network with its task, ready to be measured.

    Parameters
    ----------
    examples : tuple of str or of Image
        Training examples less those of the probe.
    length : int
        Mean tokens of a held-out text: the length at which MACs are counted; 1 of images.
    notes : tuple of str
        What was done to the task's data to suit the network.
    """

    network: Network
    task: Task
    sites: tuple[Site, ...]
    examples: tuple[Example, ...]
    probe: Probe
    length: int
    seed: int
    engine: str
    notes: tuple[str, ...] = ()

    @property
    def one(self) -> str:
        """What multiply-accumulates are counted on, in words."""
        return one_described(self.network, self.length)


def start_study(
    network: Network, task: Task, *, kinds: Sequence[str] | None = None, seed: int = 0, engine: str = "openvino"
) -> Study:
    """Find the sites of a network and put examples aside to measure divergence on.

    Parameters
    ----------
    kinds : sequence of str, optional
        The kinds of sites that may become narrower; all when None.

    Raises
    ------
    BadInput
        If the task has nothing to calibrate on or of another sort than the network reads, or the network has no site of
        a kind.
    UnsupportedNetwork
        If the network's anatomy is not known.
    """
    notes = check_suits(network, task)
    if parts := described_parts(network.model):
        said = {"tokens": "tokens are narrowed", "cache": "cache is planned", "attention": "attention is rounded"}
        what = said[next(iter(parts))]
        raise BadInput(f"network {network.name}: its {what}, which comes last; give it as it was before")
    sites = _of_kinds(discover(network), kinds, network.name)
    examples = list(task.require_train())
    random.Random(seed).shuffle(examples)
    count = min(PROBE_EXAMPLES, most_examples(network), max(len(examples) // 4, 2))
    length = mean_tokens(network, task.held_out.passages[:512])
    probe = make_probe(network, examples[:count])
    return Study(network, task, sites, tuple(examples[count:]), probe, length, seed, engine, notes)


def _of_kinds(sites: tuple[Site, ...], kinds: Sequence[str] | None, name: str) -> tuple[Site, ...]:
    if kinds is None:
        return sites
    known = list(dict.fromkeys(site.kind for site in sites))
    for kind in kinds:
        if kind not in known:
            raise unknown("kind of site", kind, known)
    return tuple(site for site in sites if site.kind in kinds)


def cache_folder() -> Path:
    """Return where measurements of this machine are kept (``ISTHMUS_CACHE``, by default under the user's cache)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "isthmus"
    return Path(os.environ.get("ISTHMUS_CACHE", default))


def held_out_batches(study: Study, network: Network) -> list[Mapping[str, np.ndarray]]:
    """Return real examples in batches, as the latency of a network is measured on them."""
    examples = study.task.held_out.passages
    if network.images is not None:  # one batch is like another
        examples = examples[: IMAGE_BATCHES * LATENCY_BATCH]
    return engine_batches(network, examples, LATENCY_BATCH)


def rates_for(study: Study, currencies: Sequence[Currency], progress: Progress = silent) -> dict[str, Rate]:
    """Return what the network costs in each currency as a function of kept units."""
    model, sites = study.network.model, study.sites
    rates: dict[str, Rate] = {}
    for currency in dict.fromkeys(currencies):
        if currency == "params":
            rates[currency] = parameter_rate(model, sites)
        elif currency == "bytes":
            # The header shrinks with the shapes it names; the original's is the most it can be.
            header = Term(float(header_bytes(saved_shapes(model))))
            rates[currency] = Rate("bytes", (*bytes_rate(model, sites).terms, header))
        elif currency == "macs":
            rates[currency] = macs_of(study.network, sites, study.length)
        else:
            rates[currency] = _latency_rate(study, progress)
    return rates


def _latency_rate(study: Study, progress: Progress) -> Rate:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="isthmus-latency-") as folder:
        count = 0

        def build(kept: Mapping[str, Sequence[int]]) -> Path:
            nonlocal count
            count += 1
            narrowed = study.network.with_model(narrow_model(study.network.model, study.sites, kept))
            return export_network(narrowed, study.engine, Path(folder) / str(count))

        def measure(
            paths: Mapping[str, Path], batches: Sequence[Batch], rounds: int, progress: Callable[[int, int], None]
        ) -> Mapping[str, Latency]:
            return time_exported(paths, batches, engine=study.engine, rounds=rounds, progress=progress)

        table = latency_table(
            study.sites,
            build,
            measure,
            held_out_batches(study, study.network),
            fingerprint=fingerprint(study.network),
            engine=study.engine,
            batch=LATENCY_BATCH,
            folder=cache_folder(),
            seed=study.seed,
            progress=lambda done, total: progress("latency table", done, total),
        )
    return table.rate(study.sites)


def original_rates(study: Study, rates: Mapping[str, Rate]) -> dict[str, float]:
    """Return what the whole network costs in each currency."""
    counts = kept_counts(study.sites)
    original = {currency: float(rate(counts)) for currency, rate in rates.items()}
    if "bytes" in original:
        # A budget is held against the files that are there, which may be of half precision or hold more than the rate.
        original["bytes"] = float(bytes_on_disk(study.network))
    return original


def limits_of(budget: Budget, original: Mapping[str, float]) -> dict[str, float]:
    """Return the budget's limits as amounts."""
    return {str(currency): amount for currency, amount in budget.amounts(original).items()}


def cut(study: Study, kept: Mapping[str, Sequence[int]]) -> Network:
    """Return the physically narrower network, its tokenizer narrowed along with its vocabulary."""
    from isthmus.sites.vocabulary import narrow_tokenizer

    tokenizer = study.network.tokenizer
    if VOCABULARY in kept and len(kept[VOCABULARY]) < next(s.units for s in study.sites if s.name == VOCABULARY):
        tokenizer = narrow_tokenizer(tokenizer, kept[VOCABULARY])
    return study.network.with_model(narrow_model(study.network.model, study.sites, kept), tokenizer)
