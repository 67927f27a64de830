"""Cramming (Kuratov et al. 2025): how many tokens a vector holds, and what limits it.

Searches of vectors for a small decoder: eight minutes on one core, besides the training of the decoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from claims import small_lm
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.cramming import Recipe, capacity
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder

NATURAL, RANDOM, SMALLER = "natural text", "random tokens", "natural text, smaller model"
VECTORS = (1.0, 2.0)
SMALL = replace(small_lm.RECIPE, width=64, layers=3, kept=(0, small_lm.RECIPE.steps))
SEARCH = Recipe(steps=1500, rate=0.2)
TEXTS, LONGEST = 1, 32
"""Texts of each kind a seed, and tokens of one at the most."""
CLOSE = 0.25


@cache
def texts(seed: int) -> tuple[Tensor, ...]:
    """Return token ids of sentences that the models were not trained on, put together, by seed."""
    folder = data_folder()
    if folder is None:
        raise BadInput("cramming-1568: skipped, no folder of data")
    held = load_task(f"sts:{folder / 'stsb'}").held_out.left
    rng, found = np.random.default_rng(seed), []
    for _ in range(TEXTS):
        words = " ".join(str(held[place]).lower() for place in rng.permutation(len(held))[:12])
        ids = small_lm.text().tokenizer(words, add_special_tokens=False)["input_ids"]
        found.append(torch.tensor(ids[:LONGEST]))
    return tuple(found)


def random_tokens(seed: int) -> tuple[Tensor, ...]:
    """Return texts of tokens drawn evenly from the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, small_lm.RECIPE.vocabulary, (LONGEST,), generator=generator) for _ in range(TEXTS))


def measure(point: Point) -> Mapping[str, Any]:
    """Seek the longest beginnings of texts that vectors hold."""
    model = small_lm.trained(point.seed, recipe=SMALL if point.arm == SMALLER else small_lm.RECIPE)
    given = random_tokens(point.seed) if point.arm == RANDOM else texts(point.seed)
    start = small_lm.text().tokenizer.bos_token_id
    lengths, bits = [], []
    for tokens in given:
        found = capacity(model, tokens, vectors=int(point.level), start=start, recipe=SEARCH, seed=point.seed).longest
        lengths.append(0 if found is None else found.tokens)
        bits.append(0.0 if found is None else found.bits)
    return {"tokens": float(np.mean(lengths)), "bits": float(np.mean(bits))}


def grows(outcomes: Sequence[Outcome], name: str, more: tuple[str, float], less: tuple[str, float]) -> Part:
    """Decide whether more tokens come out whole in one setting than in another."""
    rule = (
        f"of `{more[0]}` from {more[1]:g} vectors more tokens come out whole than of `{less[0]}` from {less[1]:g}, by "
        "more than twice the standard error of paired differences; does not hold: fewer likewise; mixed: otherwise"
    )
    own, other = (of_arm(outcomes, arm, level, "tokens") for arm, level in (more, less))
    if len(own) < 2 or len(own) != len(other):
        return part_of(name, rule, UNTESTED)
    gap, error = paired(own, other)
    verdict = HOLDS if gap > 0 and gap > 2 * error else FAILS if gap < -2 * error else MIXED
    return part_of(name, rule, verdict, f"{np.mean(own):.1f} against {np.mean(other):.1f} tokens")


def constant(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether a vector holds as many bits of one kind of text as of the other, and not as many tokens."""
    rule = (
        f"with one vector, the bits held of natural text and of random tokens differ by at most {CLOSE:.0%} of the "
        "larger in the mean over seeds, and by less than the tokens do; mixed: one of the two; does not hold: neither"
    )
    figures = {key: [of_arm(outcomes, arm, VECTORS[0], key) for arm in (NATURAL, RANDOM)] for key in ("bits", "tokens")}
    if not all(values for pair in figures.values() for values in pair):
        return part_of("bits, not tokens, are what is limited", rule, UNTESTED)
    means = {key: [float(np.mean(values)) for values in pair] for key, pair in figures.items()}
    apart = {key: abs(a - b) / max(a, b, 1e-12) for key, (a, b) in means.items()}
    passed = [apart["bits"] <= CLOSE, apart["bits"] < apart["tokens"]]
    text = "; ".join(f"{key} {pair[0]:.1f} and {pair[1]:.1f}" for key, pair in means.items())
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of("bits, not tokens, are what is limited", rule, verdict, text)


TRIALS = Trials(
    slug="cramming-1568",
    claim=(
        "How much text comes out of an input vector whole is limited by how uncertain the model is of it, not by its "
        "length; it grows with the number of vectors and the size of the model."
    ),
    experiment=(
        f"GPT-2s of width {small_lm.RECIPE.width} and six layers, and of width {SMALL.width} and three, trained by "
        f"seed for {small_lm.RECIPE.steps} short steps on plain text, frozen. Vectors are sought for beginnings of "
        f"texts of at most {LONGEST} tokens, {TEXTS} of each kind a seed: sentences of STS-B dev, and tokens drawn "
        f"evenly; at most {SEARCH.steps} steps a search, so lengths are what this search finds. The models of the "
        "paper are a thousand times larger."
    ),
    arms={NATURAL: VECTORS, RANDOM: VECTORS[:1], SMALLER: VECTORS[:1]},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        constant(outcomes),
        grows(outcomes, "more vectors", (NATURAL, VECTORS[1]), (NATURAL, VECTORS[0])),
        grows(outcomes, "a larger model", (NATURAL, VECTORS[0]), (SMALLER, VECTORS[0])),
    ],
    columns=(Column("tokens", "tokens that come out whole", "{:.1f}"), Column("bits", "bits held", "{:.1f}")),
    level="vectors",
    recipe={
        "steps": SEARCH.steps, "search_rate": SEARCH.rate, "texts": TEXTS, "longest": LONGEST,
        "decoder": vars(small_lm.RECIPE) | {"kept": list(small_lm.RECIPE.kept)}, "smaller": [SMALL.width, SMALL.layers],
    },
    data=small_lm.fingerprint,
    needs=(*small_lm.FILES, "stsb/dev.csv"),
)  # fmt: skip
