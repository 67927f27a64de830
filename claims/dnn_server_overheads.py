"""Overheads of a server (2024): where the time of an image goes outside the network, and what compressing can bring.

Three sizes of images through a pipeline of two networks, three times: half a minute on one core.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.ssl_transfer import FILES, KIND, version
from claims.trials import Column, Trials, of_arm
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.cost.pipeline import MODEL, PipelineProfile, image_stages, profile_pipeline, profile_queued
from isthmus.errors import BadInput
from isthmus.network import Network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder

WHOLE, SMALL, QUEUED = "resnet20", "resnet20, a third of its channels", "resnet20, stages at once"
SIDES = (64.0, 256.0, 1024.0)
"""Pixels of what is sent; the network reads 32 by 32 of them."""
KEPT, ITEMS, ROUNDS, QUALITY = 0.3, 12, 7, 90
ADDED, CLOSE = 0.05, 0.15
MEDIUM = 0.56
"""The share outside the network that the paper finds for a medium image."""


@cache
def sent(side: int, seed: int) -> tuple[bytes, ...]:
    """Return JPEG files: images of CIFAR-10 by seed, made larger, with fine noise as a camera's."""
    from PIL import Image

    folder = data_folder()
    if folder is None:
        raise BadInput("dnn-server-overheads: skipped, no folder of data")
    rng, files = np.random.default_rng(seed), []
    held = np.load(folder / FILES[0])
    pixels = next(held[key] for key in held.files if held[key].ndim == 4)
    for place in rng.permutation(len(pixels))[:ITEMS]:
        large = Image.fromarray(pixels[place]).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(large, dtype=np.float64) + rng.normal(0, 4, (side, side, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return tuple(files)


def stages(network: Network) -> dict[str, Callable[[Any], Any]]:
    """Return the stages of a server: from the bytes of a file to the number of a class."""
    from PIL import Image

    images = network.images
    assert images is not None
    mean, std = (np.array(one, dtype=np.float32) for one in (images.mean, images.std))

    def decode(file: bytes) -> Any:
        return Image.open(io.BytesIO(file)).convert("RGB")

    def resize(image: Any) -> Any:
        # By way of no draft size: what a decoder skips is no longer decoded, and was not to be compared.
        return image.resize((images.width, images.height), Image.Resampling.BILINEAR)

    def normalise(image: Any) -> torch.Tensor:
        pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / std
        return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())

    def model(pixels: torch.Tensor) -> int:
        with torch.inference_mode():
            return int(network.model(pixel_values=pixels).logits.argmax())

    return image_stages(decode, resize, normalise, model)


def measure(point: Point) -> Mapping[str, Any]:
    """Serve images of one size and say where the time went."""
    network = version(KEPT if point.arm == SMALL else 1.0)
    files = sent(int(point.level), point.seed)
    if point.arm == QUEUED:
        found: PipelineProfile = profile_queued(stages(network), files)
        added = [stage.share + (stage.starved + stage.blocked) / found.wall for stage in found.stages]
        apart = max(abs(one - 1) for one in added)
    else:
        found = profile_pipeline(stages(network), files, rounds=ROUNDS, warmup=2)
        apart = abs(found.accounted - 1)
    shares = {stage.name: stage.share for stage in found.stages}
    return {
        "ms": 1e3 * found.wall / found.items,
        "model ms": 1e3 * shares[MODEL] * found.wall / found.items,
        "outside": 1 - shares[MODEL] / sum(shares.values()),
        "apart": apart,
        "bound": found.bound,
        "warned": float(bool(found.warnings)),
        **{f"share of {name}": share for name, share in shares.items()},
    }


def outside(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): the share outside the network by the size of images."""
    rule = (
        "in every seed the share of time outside the network rises from each size of images to the next, and reaches "
        f"{MEDIUM:.0%} at the largest; mixed: one of the two in every seed; does not hold: otherwise"
    )
    rising, reached, shares = [], [], {}
    for seed in sorted({one["seed"] for one in outcomes}):
        own = sorted(
            (one for one in outcomes if one["arm"] == WHOLE and one["seed"] == seed),
            key=lambda one: float(one["level"]),
        )
        if len(own) == len(SIDES):
            rising.append(all(a["outside"] < b["outside"] for a, b in pairwise(own)))
            reached.append(own[-1]["outside"] >= MEDIUM)
    if not rising:
        return part_of("time outside the network", rule, UNTESTED)
    shares = {side: np.mean(of_arm(outcomes, WHOLE, side, "outside")) for side in SIDES}
    passed = [all(rising), all(reached)]
    text = ", ".join(f"{side:g} pixels: {share:.0%}" for side, share in shares.items())
    return part_of("time outside the network", rule, HOLDS if all(passed) else MIXED if any(passed) else FAILS, text)


def adds_up(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): whether shares add up to the wall time."""
    rule = (
        f"in every run the stages' shares add up to the wall time within {ADDED:.0%}, where stages run at once each "
        "one's work and waiting; mixed: in some"
    )
    own = [one["apart"] for one in outcomes]
    if not own:
        return part_of("shares add up", rule, UNTESTED)
    passed = [value <= ADDED for value in own]
    return part_of("shares add up", rule, share_passed(passed), f"off by {max(own):.1%} at the most")


def amdahl(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): what a smaller network brings, beside what was told from the profile of the larger one."""
    rule = (
        f"at every size, in the mean over seeds, the whole gets as many times faster with the narrowed network as "
        f"Amdahl's law tells from the shares with the original, within {CLOSE:.0%}, and no more than the bound by more "
        "than that; mixed: at some"
    )
    passed, texts = [], []
    for side in SIDES:
        whole, small = (
            [one for one in outcomes if one["arm"] == arm and one["level"] == side] for arm in (WHOLE, SMALL)
        )
        if not whole or len(whole) != len(small):
            return part_of("what compressing brings", rule, UNTESTED)
        pairs = list(zip(*(sorted(rows, key=lambda one: int(one["seed"])) for rows in (whole, small)), strict=True))
        found = float(np.mean([a["ms"] / b["ms"] for a, b in pairs]))
        told = float(np.mean([a["ms"] / (a["ms"] - a["model ms"] + b["model ms"]) for a, b in pairs]))
        bound = float(np.mean([a["bound"] for a, _ in pairs]))
        passed.append(abs(found / told - 1) <= CLOSE and found <= bound * (1 + CLOSE))
        texts.append(f"{side:g} pixels: {found:.2f} times, told {told:.2f}, bound {bound:.2f}")
    return part_of("what compressing brings", rule, share_passed(passed), "; ".join(texts))


TRIALS = Trials(
    slug="dnn-server-overheads",
    claim=(
        "In service, decoding and resizing take a share of an image's time that rises with its size and exceeds the "
        "network's; that share bounds what compressing the network can bring."
    ),
    experiment=(
        f"{ITEMS} images of CIFAR-10 by seed, made larger and sent as JPEG of quality {QUALITY}; decoded and resized "
        "by Pillow, normalised, read by the pretrained ResNet-20 in torch, one image at a time on one thread; of "
        f"{ROUNDS} rounds the fastest. Then with {KEPT:.0%} of the channels within each block, and with all stages at "
        "once in threads between queues. Networks of 32 by 32 pixels are small beside those of the paper."
    ),
    arms={WHOLE: SIDES, SMALL: SIDES, QUEUED: SIDES},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [outside(outcomes), adds_up(outcomes), amdahl(outcomes)],
    columns=(
        Column("ms", "ms an image", "{:.2f}"),
        Column("outside", "outside the network", "{:.0%}"),
        *(Column(f"share of {name}", name, "{:.0%}") for name in ("decode", "resize", "normalise", MODEL)),
        Column("bound", "bound of the speed-up", "{:.2f}"),
    ),
    level="pixels",
    recipe={"kept": KEPT, "items": ITEMS, "rounds": ROUNDS, "quality": QUALITY, "kind": KIND},
    data=lambda: load_task(f"images:{data_folder() / FILES[0]}").fingerprint,  # type: ignore[operator]
    needs=FILES[:1],
)  # fmt: skip
