"""The guard: a narrowed cache is tried on calibration texts, mended where it loses too much, or refused; never silent.

A quantizer of caches can take a network from right answers to none without a word: where a few channels of the keys are
far larger than the others, levels that all channels of a token share leave nothing for those. The guard measures what
is lost with all layers narrowed; if that is too much it measures each layer alone and gives the worst of them a finer
code, one step at a time, until the loss is within the limit. What it did, and what it saw, is in what it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.codes.coupled import Coupled
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.measuring import CacheLoss, check_batches, lost, only, targets
from isthmus.bottlenecks.cache.roles import Code
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

OUTLYING = 8.0
"""A channel is called outlying where its root mean square is so many times the median channel's."""
_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Guarded:
    """What the guard let through.

    Parameters
    ----------
    settings : tuple of CacheSetting
        One a layer.
    before, after : CacheLoss
        With the settings that were asked for, and with these.
    messages : tuple of str
        What was changed and why; empty where nothing was.
    """

    settings: tuple[CacheSetting, ...]
    before: CacheLoss
    after: CacheLoss
    messages: tuple[str, ...]


def guarded(
    model: Any,
    settings: Sequence[CacheSetting],
    batches: Sequence[Tensor],
    *,
    prompt: int,
    most_nats: float,
    adapt: bool = True,
) -> Guarded:
    """Try settings on calibration texts, and mend or refuse them where they lose too much.

    Parameters
    ----------
    settings : sequence of CacheSetting
        One a layer.
    batches : sequence of Tensor, shape ``(rows, tokens)``
    prompt : int
        Tokens read before the cache is narrowed.
    most_nats : float
        The most that may be lost, in nats a token.
    adapt : bool
        Whether layers may get a finer code; otherwise what loses too much is refused.

    Returns
    -------
    Guarded

    Raises
    ------
    BadInput
        If too much is lost, and no finer code is left that would mend it.
    """
    check_batches(batches, prompt)
    if not most_nats > 0:
        raise BadInput(f"cache guard: a limit of {most_nats} nats; give one above 0")
    held = targets(model, batches, prompt=prompt)
    chosen = list(settings)
    before = now = lost(model, chosen, batches, held, prompt=prompt)
    if now.nats <= most_nats:
        return Guarded(tuple(chosen), before, now, ())
    outlying = outlying_channels(model, batches[0][:, :prompt])
    own = [lost(model, only(model, at, one), batches, held, prompt=prompt).nats for at, one in enumerate(chosen)]
    messages = []
    while not now.nats <= most_nats:
        open_layers = [at for at, one in enumerate(chosen) if finer(one) is not None]
        if not adapt or not open_layers:
            raise BadInput(_refusal(now, most_nats, own, outlying, adapt))
        worst = max(open_layers, key=lambda at: (own[at], -at))
        better = finer(chosen[worst])
        assert better is not None
        was, chosen[worst] = chosen[worst], better
        again = lost(model, only(model, worst, better), batches, held, prompt=prompt).nats
        messages.append(
            f"layer {worst}: {_codes(was)} loses {own[worst]:.3g} nats alone{_seen(outlying[worst])};"
            f" now {_codes(better)}, {again:.3g} nats"
        )
        own[worst] = again
        now = lost(model, chosen, batches, held, prompt=prompt)
    return Guarded(tuple(chosen), before, now, tuple(messages))


def finer(setting: CacheSetting) -> CacheSetting | None:
    """Return the setting with its coarsest code one step finer; None where all are plain."""
    coded = [at for at, one in enumerate(setting.codes) if not isinstance(one, Plain)]
    if not coded:
        return None
    codes = list(setting.codes)
    codes[coded[-1]] = _finer_code(codes[coded[-1]], setting.block)
    return replace(setting, codes=tuple(codes))


def _finer_code(code: Code, block: int) -> Code:
    if isinstance(code, Coupled):
        return Uniform(4, 4, tokens=block)
    if not isinstance(code, Uniform):
        return Plain()
    if code.key_axis == "token":
        # Channels that outlie get levels of their own, at the same bits.
        return replace(code, key_axis="channel", tokens=code.tokens if block % code.tokens == 0 else block)
    low = min(code.key_bits, code.value_bits)
    more = next((bits for bits in _BITS if bits > low), None)
    if more is None:
        return Plain()
    return replace(code, key_bits=max(code.key_bits, more), value_bits=max(code.value_bits, more))


@torch.no_grad()
def outlying_channels(model: Any, ids: Tensor) -> list[int]:
    """Return how many channels of the keys of each layer are outlying, see `OUTLYING`; -1 for layers that hold none.

    Parameters
    ----------
    ids : Tensor of int64, shape ``(rows, tokens)``
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    found = []
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            found.append(-1)
            continue
        size = keys.float().square().mean((0, 2)).sqrt()
        found.append(int((size > OUTLYING * size.median(-1, keepdim=True).values).sum()))
    return found


def _refusal(now: CacheLoss, most: float, own: list[float], outlying: list[int], adapt: bool) -> str:
    worst = max(range(len(own)), key=lambda at: own[at])
    mend = "let the guard take finer codes" if not adapt else "give it more entries or a larger budget"
    return (
        f"cache: refused, it loses {now.nats:.3g} nats a token where {most:.3g} are allowed, most in layer {worst}"
        f" ({own[worst]:.3g} nats alone{_seen(outlying[worst])}); {mend}"
    )


def _seen(outlying: int) -> str:
    return f", {outlying} outlying channels in its keys" if outlying > 0 else ""


def _codes(setting: CacheSetting) -> str:
    return " and ".join(
        f"{one.key_bits}/{one.value_bits} bits by {one.key_axis}" if isinstance(one, Uniform) else one.name
        for one in setting.codes
    )
