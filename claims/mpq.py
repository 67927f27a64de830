"""Machine perceptual quality (Jacobellis et al. 2024): which distance between images tells what a network loses.

Nine trials of 16 settings on 1,000 images: some minutes each on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.flow.inputs import QUALITIES, measure_sent
from isthmus.network import Network
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.task import Task

IMAGES = 1000.0
FILE = "cifar10/train-20k.npz"
KINDS = ("cifar10-resnet20", "cifar10-resnet56")
OWN, OTHER, LARGER = "resnet20, its own features", "resnet20, features of resnet56", "resnet56, its own features"
NETWORKS = {OWN: (0, 0), OTHER: (0, 1), LARGER: (1, 1)}
"""By arm, which network reads the images and which one's features are compared."""
STRONG = 0.9


@cache
def _network(place: int) -> Network:
    folder = data_folder()
    if folder is None:
        raise BadInput("mpq: skipped, no folder of data")
    return open_network(f"{KINDS[place]}={folder.parent / 'models' / KINDS[place]}.safetensors")


@cache
def _task() -> Task:
    folder = data_folder()
    if folder is None:
        raise BadInput("mpq: skipped, no folder of data")
    return load_task(f"images:{folder / FILE}")


def measure(point: Point) -> Mapping[str, Any]:
    """Compress images drawn by seed at all settings and return how well both distances tell what is lost."""
    reader, judge = NETWORKS[point.arm]
    found = measure_sent(
        [_network(reader)], _task(), images=int(point.level), judge=_network(judge), seed=point.seed
    ).curves[0]
    deep, squared, _ = found.told
    least = {codec: found.least_bytes(codec, 0.99) for codec in ("jpeg", "webp")}
    return {
        "accuracy": found.accuracy.value, "worst": min(row.accuracy.value for row in found.rows),
        "deep": deep.settings.value, "squared": squared.settings.value,
        "deep by image": deep.images.value, "squared by image": squared.images.value,
        **{codec: None if row is None else row.bytes for codec, row in least.items()},
    }  # fmt: skip


def strong(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether what is lost follows the deep distance."""
    rule = f"over settings, deep distance and drop of accuracy correlate by ranks with {STRONG} or more in every run"
    values = [value for arm in NETWORKS for value in of_arm(outcomes, arm, None, "deep")]
    if not values:
        return part_of("accuracy follows deep distance", rule, UNTESTED)
    text = f"{min(values):.3f} to {max(values):.3f}"
    return part_of("accuracy follows deep distance", rule, share_passed([one >= STRONG for one in values]), text)


def more(outcomes: Sequence[Outcome], suffix: str, name: str) -> Part:
    """Decide whether the deep distance tells more than the squared error of pixels."""
    rule = (
        "for each network and features, the rank correlation of deep distance is above that of squared error by more "
        "than twice the standard error of paired differences; mixed: for some"
    )
    passed, texts = [], []
    for arm in NETWORKS:
        ours, theirs = (of_arm(outcomes, arm, None, f"{key}{suffix}") for key in ("deep", "squared"))
        if len(ours) < 2 or len(ours) != len(theirs):
            return part_of(name, rule, UNTESTED)
        gap, error = paired(ours, theirs)
        passed.append(gap > 2 * error and gap > 0)
        texts.append(f"{arm}: {np.mean(ours):.3f} against {np.mean(theirs):.3f} ({gap:+.3f} ± {error:.3f})")
    return part_of(name, rule, share_passed(passed), "; ".join(texts))


TRIALS = Trials(
    slug="mpq",
    claim=(
        "What severe lossy compression of images costs a classifier goes with a distance of deep features, more than "
        "with the squared error of pixels (PSNR)."
    ),
    experiment=(
        f"{IMAGES:.0f} images of CIFAR-10 by seed (of those that were decoded from lossy JPEGs, so that accuracies are "
        f"low to begin with), written as JPEG and WebP at qualities {', '.join(map(str, QUALITIES))} and read again; "
        "pretrained ResNets of 20 and 56 layers. The deep distance is one less the cosine of what four blocks give, "
        "from the network itself or from the other one. Of an image of 32 by 32 pixels a file is mostly head. Neither "
        "generative codecs nor training on compressed images are tested."
    ),
    arms=dict.fromkeys(NETWORKS, (IMAGES,)),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        strong(outcomes),
        more(outcomes, "", "deep distance against squared error, over settings"),
        more(outcomes, " by image", "deep distance against squared error, over images"),
    ],
    columns=(
        Column("accuracy", "accuracy", "{:.3f}"),
        Column("worst", "at the worst setting", "{:.3f}"),
        Column("deep", "correlation, deep", "{:.3f}"),
        Column("squared", "correlation, squared error", "{:.3f}"),
        Column("deep by image", "by image, deep", "{:.3f}"),
        Column("squared by image", "by image, squared error", "{:.3f}"),
        Column("jpeg", "bytes of JPEG for 99%", "{:.0f}"),
        Column("webp", "bytes of WebP for 99%", "{:.0f}"),
    ),
    level="images",
    recipe={"qualities": list(QUALITIES), "kinds": list(KINDS)},
    data=lambda: _task().fingerprint,
    needs=(FILE,),
)
