"""The doctor: proves on any network that its anatomy is right, site by site, and that what is narrowed can be kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from isthmus.network import Network
    from isthmus.sites import Site

#: Largest difference allowed, as a share of the largest value of the outputs.
MASK_LIMIT = 1e-5
EXPORT_LIMIT = 1e-4
DRAWS = 2

_OUTPUTS = ("logits", "last_hidden_state", "pooler_output")
_TEXTS = (
    "An isthmus is a narrow strip of land between two wide ones.",
    "The committee met on 14 March 2023, in Geneva; nothing was decided.",
    "def narrow(network): return network",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "No.",
)

Kept = Mapping[str, Sequence[int]]
Outputs = dict[str, "Tensor"]


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
    """What the doctor found for a network."""

    network: str
    rows: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(row.ok for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain data."""
        return {"network": self.network, "ok": self.ok, "rows": [asdict(row) for row in self.rows]}


def diagnose(network: Network, *, seed: int = 0, export: bool = True, progress: Progress = silent) -> Diagnosis:
    """Check the anatomy of a network on random inputs, with random units removed.

    Parameters
    ----------
    network : Network
    seed : int
        Of the units that are removed and the tokens that go in.
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
        If the network has no anatomy that accounts for all of its parameters.
    """
    import numpy as np

    from isthmus.sites import VOCABULARY, discover

    generator = np.random.default_rng(seed)
    sites = discover(network)
    gated = [site for site in sites if site.name != VOCABULARY and site.units > site.minimum]
    rows: list[Check] = []
    steps = len(gated) + 4
    for done, site in enumerate(gated):
        progress("doctor", done, steps, site.name)
        error = max(
            _mask_error(network, sites, {site.name: _some_units(site, generator)}, generator) for _ in range(DRAWS)
        )
        rows.append(_check("mask", site.name, error, MASK_LIMIT))
    progress("doctor", steps - 4, steps, "all sites")
    everywhere = {site.name: _some_units(site, generator) for site in gated}
    rows.append(_check("mask", "all sites", _mask_error(network, sites, everywhere, generator), MASK_LIMIT))
    progress("doctor", steps - 3, steps, "vocabulary")
    vocabulary = next((site for site in sites if site.name == VOCABULARY and site.units > site.minimum), None)
    if vocabulary is not None:
        everywhere[VOCABULARY] = _some_tokens(network, vocabulary, generator)
        error = _vocabulary_error(network, sites, everywhere[VOCABULARY])
        rows.append(_check("vocabulary", VOCABULARY, error, MASK_LIMIT))
    narrowed = _narrowed(network, sites, everywhere)
    progress("doctor", steps - 2, steps, "saved equals loaded")
    rows.append(_check("saved", "all sites", _saved_error(narrowed, generator), 0.0))
    if export:
        progress("doctor", steps - 1, steps, "exported equals eager")
        rows.append(_check("exported", "all sites", _export_error(narrowed, generator), EXPORT_LIMIT))
    progress("doctor", steps, steps)
    return Diagnosis(network.name, tuple(rows))


def _check(check: str, site: str, error: float, limit: float) -> Check:
    return Check(check, site, error <= limit, error, limit)


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


def _narrowed(network: Network, sites: Sequence[Site], kept: Kept) -> Network:
    from isthmus.sites import VOCABULARY, narrow_model
    from isthmus.sites.vocabulary import narrow_tokenizer

    tokenizer = narrow_tokenizer(network.tokenizer, kept[VOCABULARY]) if VOCABULARY in kept else None
    return network.with_model(narrow_model(network.model, sites, kept), tokenizer)


def _inputs(network: Network, generator: np.random.Generator, batch: int = 3, length: int = 12) -> dict[str, Tensor]:
    """Draw token ids of shape ``(batch, length)``, none of them special, the last text padded by half."""
    import numpy as np
    import torch

    config: Any = network.model.config
    special = set(network.tokenizer.all_special_ids) if network.tokenizer is not None else set(range(5))
    special.add(config.pad_token_id)
    words = np.array([token for token in range(config.vocab_size) if token not in special])
    ids = torch.as_tensor(generator.choice(words, size=(batch, length)))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    if config.pad_token_id is not None:
        ids[-1, length // 2 :] = config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Outputs:
    """Return the outputs that a network is used for; of states, only those of tokens that are not padding."""
    import torch

    with torch.no_grad():
        output = model(**inputs)
    found = {name: output[name] for name in _OUTPUTS if output.get(name) is not None}
    if "last_hidden_state" in found:
        found["last_hidden_state"] = found["last_hidden_state"][inputs["attention_mask"].bool()]
    return found


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite where shapes or values are wrong."""
    if found.shape != wanted.shape:
        return float("inf")
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    return error if error == error else float("inf")  # not-a-number is the worst error, not the least


def _largest(found: Outputs, wanted: Outputs) -> float:
    return max(_relative(found[name], wanted[name]) for name in wanted)


def _mask_error(network: Network, sites: Sequence[Site], kept: Kept, generator: np.random.Generator) -> float:
    """Compare closing units with removing them. Closed entries of an output must be zero, the others equal."""
    import torch

    from isthmus.sites import closed_values, gated, narrow_model

    inputs = _inputs(network, generator)
    with torch.no_grad(), gated(network.model, sites, closed_values(sites, kept)):
        masked = _run(network.model, inputs)
    removed = _run(narrow_model(network.model, sites, kept), inputs)
    return max(_relative(*_aligned(masked[name], removed[name], name, sites, kept)) for name in removed)


def _aligned(masked: Tensor, removed: Tensor, name: str, sites: Sequence[Site], kept: Kept) -> tuple[Tensor, Tensor]:
    """Give the removed network's output its old width, zeros where units went."""
    if masked.shape[-1] == removed.shape[-1]:
        return removed, masked
    kinds = ("feature",) if name == "pooler_output" else ("width",)
    for site in sites:
        keep = kept.get(site.name)
        if keep is not None and site.kind in kinds and (site.units, len(keep)) == (masked.shape[-1], removed.shape[-1]):
            wide = masked.new_zeros(masked.shape)
            wide[..., list(keep)] = removed
            return wide, masked
    return removed, masked


def _vocabulary_error(network: Network, sites: Sequence[Site], keep: Sequence[int]) -> float:
    """Compare the original with the one of fewer tokens, on the pieces that the narrowed tokenizer finds."""
    import torch

    from isthmus.network import tokenize
    from isthmus.sites import VOCABULARY

    narrowed = _narrowed(network, sites, {VOCABULARY: keep})
    inputs = tokenize(narrowed, _TEXTS)
    old = torch.as_tensor(list(keep))[inputs["input_ids"]]
    return _largest(_run(narrowed.model, inputs), _run(network.model, {**inputs, "input_ids": old}))


def _saved_error(narrowed: Network, generator: np.random.Generator) -> float:
    """Compare a narrowed network with itself after saving and opening it; zero means equal to the last bit."""
    from isthmus.storage.artifact import save_artifact
    from isthmus.storage.opening import open as open_network

    inputs = _inputs(narrowed, generator)
    with tempfile.TemporaryDirectory(prefix="isthmus-doctor-") as folder:
        place = Path(folder) / "narrowed"
        save_artifact(narrowed, place, {})
        if narrowed.tokenizer is None:
            kind: Any = type(narrowed.model)
            model = kind.from_pretrained(place, dtype="float32").eval()
        else:
            model = open_network(place).model
        return _largest(_run(model, inputs), _run(narrowed.model, inputs))


def _export_error(narrowed: Network, generator: np.random.Generator) -> float:
    """Compare what OpenVINO makes of a narrowed network with what PyTorch makes of it."""
    import torch

    from isthmus.export.engines import export_network, load_runner
    from isthmus.export.wrapper import input_names

    inputs = _inputs(narrowed, generator)
    if "token_type_ids" in input_names(narrowed):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    wanted = _run(narrowed.model, inputs)
    with tempfile.TemporaryDirectory(prefix="isthmus-doctor-") as folder:
        runner = load_runner("openvino", export_network(narrowed, "openvino", folder), 1)
        found = torch.from_numpy(runner({name: tensor.numpy() for name, tensor in inputs.items()}).copy())
    if "logits" in wanted:
        return _relative(found, wanted["logits"])
    return _relative(found[inputs["attention_mask"].bool()], wanted["last_hidden_state"])
