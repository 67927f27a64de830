"""Layer by layer (Skean et al. 2025): which layer of a language model says most of a text, and what tells so.

Two networks at seven places, three times; besides the training of the decoders a minute on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.transfer_sets import documents
from scipy.stats import rankdata, spearmanr

from claims import small_lm
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.flow.layers import layer_vectors, measure_probe
from isthmus.network import Network, encode
from isthmus.relevance.probe import make_probe
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.metrics import spearman
from isthmus.tasks.probe import fit_probe

PLAIN, TUNED = "decoder that predicts words", "minilm, tuned for similarity"
LAYERS = tuple(float(place) for place in range(7))
MIDDLE, LAST = LAYERS[1:-1], LAYERS[-1]
"""Of seven places, what enters the first layer and what leaves each of six."""
TASKS = ("similarity", "sentiment", "documents")
PAIRS, TRAINED, TESTED, PROBED, LONGEST = 250, 250, 300, 96, 32
"""Pairs of texts; texts that a linear probe is fitted to and tested on; texts without labels; tokens of a text."""
TOLD: dict[str, int] = {"prompt entropy": 1, "curvature": -1, "InfoNCE": 1, "DiME": 1}
"""Measures that need no labels, and whether more of one is to mean a better layer."""
RANKED = 0.5

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Texts of the three tasks by seed: pairs with scores, and texts with labels to fit a probe to and to test it."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: Vectors
    labelled: Mapping[str, tuple[tuple[str, ...], npt.NDArray[np.int64]]]
    probe: tuple[str, ...]

    @property
    def every(self) -> tuple[str, ...]:
        """All texts of the tasks."""
        return (*self.left, *self.right, *(text for texts, _ in self.labelled.values() for text in texts))


@cache
def texts(seed: int) -> Texts:
    """Return texts of STS-B dev, SST-2 and the documents, drawn by seed."""
    folder = data_folder()
    if folder is None:
        raise BadInput("layer-by-layer: skipped, no folder of data")
    rng = np.random.default_rng(seed)
    pairs, reviews = load_task(f"sts:{folder / 'stsb'}").held_out, load_task(f"classify:{folder / 'sst2'}")
    chosen = rng.permutation(len(pairs.left))[:PAIRS]
    seen = [reviews.labelled[place] for place in rng.permutation(len(reviews.labelled))[:TRAINED]]
    held = list(zip(reviews.held_out.examples, reviews.held_out.labels, strict=True))
    unseen = [held[place] for place in rng.permutation(len(held))[:TESTED]]
    peps, eips = ((folder / "text" / f"{name}.txt").read_text(encoding="utf-8") for name in ("peps", "eips"))
    parts = documents(peps, eips, seed=seed)
    rows = [[part[place] for place in rng.permutation(len(part))[:most]] for part, most in
            zip(parts, (TRAINED, TESTED), strict=True)]  # fmt: skip
    return Texts(
        tuple(pairs.left[place] for place in chosen),
        tuple(pairs.right[place] for place in chosen),
        np.array([pairs.scores[place] for place in chosen]),
        {
            "sentiment": _labelled([(str(text), int(label)) for text, label in (*seen, *unseen)]),
            "documents": _labelled([(text, int(label == "pep")) for text, label in (*rows[0], *rows[1])]),
        },
        tuple(dict.fromkeys(pairs.left))[-PROBED:],
    )


def _labelled(rows: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    return tuple(text for text, _ in rows), np.array([label for _, label in rows])


def states(network: Network, given: Sequence[str]) -> tuple[Vectors, ...]:
    """Return a vector of each text at each place, texts in the order given."""
    order = np.argsort([len(text) for text in given], kind="stable")
    batches = [encode(network, [given[place] for place in part]) for part in np.array_split(order, len(order) // 32)]
    back = np.argsort(order)
    return tuple(one[back].astype(np.float64) for one in layer_vectors(network, batches))


def scored(vectors: Vectors, own: Texts) -> dict[str, tuple[float, float]]:
    """Return what a layer is worth to each task, on the first half of what is tested and on the second.

    Of pairs the rank correlation of their cosine with the score, of labels the accuracy of a linear probe.

    Parameters
    ----------
    vectors : ndarray, shape ``(texts, width)``
        Of ``own.every``.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    count, start = len(own.left), 2 * len(own.left)
    cosines = (unit[:count] * unit[count:start]).sum(1)
    halves = slice(None, count // 2), slice(count // 2, None)
    first, second = (float(spearman(cosines[half], own.scores[half])) for half in halves)
    found = {"similarity": (first, second)}
    for task, (given, labels) in own.labelled.items():
        rows = vectors[start : start + len(given)]
        start += len(given)
        probe = fit_probe(rows[:TRAINED], labels[:TRAINED], 2)
        right = probe.predict(rows[TRAINED:]) == labels[TRAINED:]
        found[task] = (float(right[: len(right) // 2].mean()), float(right[len(right) // 2 :].mean()))
    return found


@cache
def _measured(arm: str, seed: int) -> tuple[dict[str, Any], ...]:
    network = small_lm.encoder(seed) if arm == PLAIN else open_network("minilm")
    network = Network(network.name, network.model, network.tokenizer, "mean", True, LONGEST)
    own = texts(seed)
    told = measure_probe(network, make_probe(network, own.probe), seed)
    rows = []
    for vectors, layer in zip(states(network, own.every), told, strict=True):
        worth = scored(vectors, own)
        rows.append({
            **{task: (first + second) / 2 for task, (first, second) in worth.items()},
            **{f"{task}, chosen by": first for task, (first, _) in worth.items()},
            **{f"{task}, tested": second for task, (_, second) in worth.items()},
            **{name: layer.values[name] for name in TOLD},
        })  # fmt: skip
    return tuple(rows)


def measure(point: Point) -> Mapping[str, Any]:
    """Measure one layer: three tasks, and what needs no labels."""
    return _measured(point.arm, point.seed)[int(point.level)]


def gaps(outcomes: Sequence[Outcome], arm: str, task: str) -> list[float]:
    """Return, by seed, how far the middle layer that half of the examples prefers is ahead of the last on the rest."""
    found = []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = {one["level"]: one for one in outcomes if one["arm"] == arm and one["seed"] == seed}
        if len(own) == len(LAYERS):
            best = max(MIDDLE, key=lambda level: float(own[level][f"{task}, chosen by"]))
            found.append(own[best][f"{task}, tested"] - own[LAST][f"{task}, tested"])
    return found


def middle(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): whether a middle layer of the plain language model beats its last."""
    rule = (
        "in the decoder, the middle layer that half of the examples prefer beats the last layer on the other half, by "
        "more than twice the standard error over seeds, on at least two of three tasks; mixed: on one; does not hold: "
        "on none"
    )
    name, passed, texts_ = "a middle layer beats the last", 0, []
    for task in TASKS:
        found = gaps(outcomes, PLAIN, task)
        if len(found) < 2:
            return part_of(name, rule, UNTESTED)
        gap, error = paired(found, [0.0] * len(found))
        passed += gap > 2 * error
        texts_.append(f"{task} {100 * gap:+.1f} ± {100 * error:.1f} points")
    return part_of(name, rule, HOLDS if passed > 1 else MIXED if passed else FAILS, "; ".join(texts_))


def tuned(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): whether the last layer is the best where it was tuned for the task."""
    rule = (
        "in the encoder, which was tuned for similarity at its last layer, the middle layer chosen likewise is behind "
        "the last on similarity by more than twice the standard error; does not hold: ahead likewise; mixed: otherwise"
    )
    found = gaps(outcomes, TUNED, "similarity")
    if len(found) < 2:
        return part_of("a tuned last layer is the best", rule, UNTESTED)
    gap, error = paired(found, [0.0] * len(found))
    verdict = HOLDS if gap < -2 * error else FAILS if gap > 2 * error else MIXED
    return part_of("a tuned last layer is the best", rule, verdict, f"{100 * gap:+.1f} ± {100 * error:.1f} points")


def correlations(outcomes: Sequence[Outcome], arm: str, told: str) -> list[float]:
    """Return, by seed, the rank correlation over layers of a measure with the mean of ranks in the three tasks."""
    found = []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = sorted(
            (one for one in outcomes if one["arm"] == arm and one["seed"] == seed), key=lambda one: float(one["level"])
        )
        if len(own) == len(LAYERS):
            worth = np.mean([rankdata([one[task] for one in own]) for task in TASKS], axis=0)
            found.append(TOLD[told] * float(spearmanr([one[told] for one in own], worth).statistic))
    return found


def ranks(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): whether measures without labels rank the layers."""
    rule = (
        "in the decoder, over the seven places, the rank correlation of each measure (curvature: of less of it) with "
        f"the mean rank in three tasks is above {RANKED:g} in the mean over seeds; mixed: of some measures; does not "
        "hold: of none"
    )
    name, passed, words = "measures without labels rank layers", [], []
    for told in TOLD:
        found, other = (correlations(outcomes, arm, told) for arm in (PLAIN, TUNED))
        if not found:
            return part_of(name, rule, UNTESTED)
        passed.append(float(np.mean(found)) > RANKED)
        beside = f" (encoder {np.mean(other):+.2f})" if other else ""
        words.append(f"{told} {np.mean(found):+.2f}{beside}")
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of(name, rule, verdict, "; ".join(words))


TRIALS = Trials(
    slug="layer-by-layer",
    claim=(
        "In a language model that was only trained to predict words, a middle layer represents texts better than the "
        "last, and measures that need no labels (entropy of tokens, curvature, invariance) rank the layers."
    ),
    experiment=(
        f"A GPT-2 of six layers and width {small_lm.RECIPE.width}, trained by seed for {small_lm.RECIPE.steps} short "
        "steps on SST-2 sentences, STS-B sentences, WikiText and PEPs: small and barely trained, for no pretrained "
        "one is to be had here. Beside it all-MiniLM-L6-v2. A text is the mean of its tokens at a place. Similarity: "
        f"{PAIRS} pairs of STS-B dev; sentiment (SST-2) and documents (PEP or EIP): a linear probe fitted to {TRAINED} "
        f"texts, tested on {TESTED}. Measures without labels are those of `isthmus inspect`, on {PROBED} other "
        "sentences. Texts are drawn by seed."
    ),
    arms={PLAIN: LAYERS, TUNED: LAYERS},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [middle(outcomes), ranks(outcomes), tuned(outcomes)],
    columns=(
        *(Column(task, task, "{:.3f}") for task in TASKS),
        *(Column(name, name, "{:.3f}") for name in TOLD),
    ),
    level="layer (0: embeddings)",
    recipe={
        "pairs": PAIRS, "trained": TRAINED, "tested": TESTED, "probed": PROBED, "longest": LONGEST,
        "decoder": vars(small_lm.RECIPE) | {"kept": list(small_lm.RECIPE.kept)},
    },
    data=small_lm.fingerprint,
    needs=(*small_lm.FILES, "sst2/dev.tsv", "stsb/dev.csv", "text/eips.txt"),
)  # fmt: skip
