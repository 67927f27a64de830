"""BitNet b1.58 Reloaded (Nielsen and Schneider-Kamp 2024): ternary weights scaled by the median of their magnitudes.

7 points of 150 steps, each about five minutes on one core: half an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from claims import coding
from claims.coding import SEEDS, Arm, Claim, Point, Workbench
from claims.common import STEPS, Outcome, Say
from claims.equal_bytes import ahead, compare, in_words, of_arm, part_of, share_passed
from claims.trained import QUICK, Anew, Trainer
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.bitnet import TERNARY, BitNet
from isthmus.bottlenecks.coder import Setting
from isthmus.storage.artifact import save_artifact
from isthmus.storage.coded import Coded, decode
from isthmus.storage.holders import with_codes
from isthmus.storage.opening import open as open_network

MEDIAN, MEAN = "median", "mean"
TRAINED = ", trained"
ALIKE, ROUGHLY = 0.99, 0.95
SAME_BYTES = 0.02
MOST_BITS = 2.0


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return how many matrices come back from a folder on the disk as they were trained, to the last bit."""
    with TemporaryDirectory(prefix="isthmus-claim-") as place:
        folder = Path(place) / "saved"
        save_artifact(with_codes(bench.network, codes), folder, {})
        model = open_network(folder).model
        exact = sum(
            np.array_equal(model.get_parameter(name).detach().numpy(), decode(code)) for name, code in codes.items()
        )
    return {"exact": exact, "matrices": len(codes)}


def likeness(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): ternary weights do as well as floating point of equal size."""
    rule = (
        f"with as many weights, ternary ones by the median reach at least {ALIKE:.0%} of the score of the original in "
        f"float32, in the mean over seeds; mixed: at least {ROUGHLY:.0%}"
    )
    texts = []
    for label in (MEDIAN, MEDIAN + TRAINED):
        for runs in of_arm(outcomes, label).values():
            score, nats = (float(np.mean([run[key] for run in runs])) for key in ("relative", "nats"))
            texts.append(f"`{label}` {score:.2%}, {nats:.3g} nats")
    own = [run["relative"] for runs in of_arm(outcomes, MEDIAN).values() for run in runs]
    reached = float(np.mean(own)) if own else 0.0
    verdict = (HOLDS if reached >= ALIKE else MIXED if reached >= ROUGHLY else FAILS) if own else UNTESTED
    return part_of("against floating point of equal size", rule, verdict, "; ".join(texts))


def median_or_mean(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): the median against the mean, at equal bytes."""
    rule = (
        "scaled by the median, weights are ahead of those scaled by the mean in score or in nats, by more than twice "
        f"the spread, and behind in neither, in no more than {SAME_BYTES:.0%} more bytes; does not hold: behind "
        "likewise; mixed: otherwise"
    )
    name = "the median against the mean"
    ours, theirs = ([one for one in outcomes if one["arm"] == label] for label in (MEDIAN, MEAN))
    if not ours or not theirs:
        return part_of(name, rule, UNTESTED)
    size, other = (float(np.mean([one["bytes"] for one in runs])) for runs in (ours, theirs))
    # Points, not curves: they are held against each other as they are, and their bytes by the rule.
    found = compare([{**one, "bytes": 0.0} for one in (*ours, *theirs)], MEDIAN, MEAN)
    assert found is not None
    verdict = ahead(found)
    larger = {HOLDS: size / other, FAILS: other / size}.get(verdict, 1.0)
    verdict = verdict if larger <= 1 + SAME_BYTES else MIXED
    text = f"{in_words(found)}, {size / other - 1:+.1%} bytes"
    return part_of(name, rule, verdict, text, following={**found, "bytes": [size, other]})


def packed(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): two bits a weight on the disk, and back exactly."""
    rule = (
        f"the codes, scales included, take at most {MOST_BITS:g} bits a weight, and every matrix comes back from the "
        "disk as it was trained, to the last bit; mixed: at some points"
    )
    passed = [one["bits"] <= MOST_BITS and one["exact"] == one["matrices"] for one in outcomes]
    text = ""
    if outcomes:
        bits = [one["bits"] for one in outcomes]
        exact, count = (sum(one[key] for one in outcomes) for key in ("exact", "matrices"))
        text = f"{min(bits):.3f} to {max(bits):.3f} bits; {exact} of {count} matrices exact"
    return part_of("two bits a weight, and back", rule, share_passed(passed), text)


def _arm(label: str, coder: BitNet | Anew, *, seeds: bool = True) -> Arm:
    return Arm(label, (TERNARY,), lambda bits: (coder, Setting(bits)), draws=seeds)


CLAIM = Claim(
    slug="bitnet-b158-reloaded",
    claim=(
        "Weights of -1, 0 and 1 scaled by the median of their magnitudes, trained as such, do about as well as "
        "floating point of equal size; the median serves in the place of the mean; packed they take no more than two "
        "bits each."
    ),
    experiment=(
        "One scale a matrix: the median or the mean of the magnitudes of the weights as they are at each step, as in "
        "the paper; shown beside for one seed, the median trained from there on (`trained`). What the paper trains "
        "from nothing starts from the original here, and activations stay in floating point; networks of twice the "
        "width are not tested."
    ),
    arms=(
        _arm(MEDIAN, Anew(BitNet())),
        _arm(MEAN, Anew(BitNet(mean=True))),
        _arm(MEDIAN + TRAINED, BitNet(), seeds=False),
    ),
    parts=lambda outcomes: [likeness(outcomes), median_or_mean(outcomes), packed(outcomes)],
    observe=observe,
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Train and measure the points that ``out`` lacks, and return the verdict; nothing is kept in ``cache``."""
    return coding.run(CLAIM, Trainer(bench, steps=QUICK if quick else STEPS), out, seeds=seeds, quick=quick, say=say)
