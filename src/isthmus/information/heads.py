"""What attention heads look at: how wide, how far, at which kinds of token, and which pairs of tokens they find.

Clark et al. 2019 (arXiv 1906.04341). Attention is read through transformers' own interface, with its attention function
that gives weights; the network's function is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.information.activations import samples_of, still

Pair = tuple[int, int, int]
"""A text, the place of a token in it, and the place of the one that it should find."""


@dataclass(frozen=True)
class Head:
    """What one head looks at, in the mean over tokens.

    Parameters
    ----------
    layer, head : int
    entropy : float
        Of a token's attention, nats.
    distance : float
        Tokens between a token and what it looks at, weighted by attention.
    special, previous, own : float
        Share of attention on special tokens, on the token before (among tokens that have one), and on the token itself.
    found : float or None
        Share of the given pairs whose first token looks most at the second; None without pairs.
    """

    layer: int
    head: int
    entropy: float
    distance: float
    special: float
    previous: float
    own: float
    found: float | None = None


@dataclass(frozen=True)
class Heads:
    """Every head, and what finding the pairs is to be held against.

    Parameters
    ----------
    heads : tuple of Head
        Layer by layer.
    pairs : int
        That were looked for.
    offset : int or None
        Of the rule that always looks so many tokens further (back: below 0), the best of all offsets.
    by_offset : float or None
        Share of pairs that this rule finds: a head below it has found nothing.
    """

    heads: tuple[Head, ...]
    pairs: int = 0
    offset: int | None = None
    by_offset: float | None = None

    @property
    def best(self) -> Head | None:
        """The head that finds most pairs."""
        return max(self.heads, key=lambda head: head.found or 0.0) if self.pairs else None


def attention_maps(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the attention of each layer, shape ``(batch, heads, tokens, tokens)``: rows are those that look.

    Parameters
    ----------
    model : PreTrainedModel
        Of transformers; in evaluation mode while it runs, and afterwards as it was.
    inputs : mapping of str to Tensor
        A batch, as the model takes it.

    Raises
    ------
    BadInput
        If the model gives no attention, or not one row and column for each token.
    """
    with still(model), _giving_weights(model):
        found = getattr(model(**inputs, output_attentions=True), "attentions", None)
    maps = tuple(one for one in found or () if one is not None)
    if not maps:
        raise BadInput("heads: the model gives no attention; give a transformer of the transformers library")
    if any(one.ndim != 4 or one.shape[-1] != one.shape[-2] for one in maps):
        raise BadInput(f"heads: attention of shape {tuple(maps[0].shape)}; only attention of tokens to tokens is read")
    return tuple(one.float() for one in maps)


def measure_heads(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    special: Tensor | None = None,
    pairs: Iterable[Pair] | None = None,
    batch_size: int = 32,
) -> Heads:
    """Return what each head looks at, over all tokens that are no padding.

    Parameters
    ----------
    model : PreTrainedModel
    inputs : mapping of str to Tensor
        Texts along the first axis; ``attention_mask`` of shape ``(texts, tokens)`` says which tokens are padding.
    special : Tensor of bool, shape ``(texts, tokens)``, optional
        Which tokens are special; see `special_tokens`. Pairs are looked for among the others.
    pairs : iterable of (text, place, place), optional
        A token and the one that it should find, such as the word that a pronoun stands for; see `same_token_pairs`.
    batch_size : int
        Texts at a time.

    Raises
    ------
    BadInput
        If a pair or mask does not fit the texts, all tokens are padding, or as `attention_maps` does.
    """
    texts = samples_of(inputs)
    shape = _shape(inputs)
    mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(shape, dtype=torch.bool)
    marks = torch.zeros(shape, dtype=torch.bool) if special is None else special.bool()
    for name, one in (("attention_mask", mask), ("special", marks)):
        if one.shape != shape:
            raise BadInput(
                f"{name} of shape {tuple(one.shape)} for texts of shape {tuple(shape)}; give one for each token"
            )
    if not bool(mask.any()):
        raise BadInput("heads: all tokens are padding; give texts")
    wanted = _checked(pairs or (), mask & ~marks)
    sums: list[_Sums] = []
    for start in range(0, texts, batch_size):
        rows = slice(start, start + batch_size)
        maps = attention_maps(model, {name: one[rows] for name, one in inputs.items()})
        if not sums:
            sums = [_Sums(one.shape[1]) for one in maps]
        own = [(text - start, place, other) for text, place, other in wanted if start <= text < start + batch_size]
        for one, layer in zip(maps, sums, strict=True):
            layer.add(one.cpu(), mask[rows].cpu(), marks[rows].cpu(), own)
    heads = tuple(head for number, layer in enumerate(sums) for head in layer.heads(number, len(wanted)))
    if not wanted:
        return Heads(heads)
    offsets, counts = np.unique([other - place for _, place, other in wanted], return_counts=True)
    return Heads(heads, len(wanted), int(offsets[counts.argmax()]), float(counts.max() / len(wanted)))


def same_token_pairs(ids: Tensor, mask: Tensor | None = None, special: Tensor | None = None) -> tuple[Pair, ...]:
    """Return, of each token that has been there before in its text, the pair of it and the last such place.

    Parameters
    ----------
    ids : Tensor of int, shape ``(texts, tokens)``
    mask, special : Tensor, same shape, optional
        Which tokens count (no padding), and which do not.
    """
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    counted = counted if special is None else counted & ~special.bool()
    found: list[Pair] = []
    for text, (row, known) in enumerate(zip(ids.tolist(), counted.tolist(), strict=True)):
        last: dict[int, int] = {}
        for place, (token, counts) in enumerate(zip(row, known, strict=True)):
            if counts:
                if token in last:
                    found.append((text, place, last[token]))
                last[token] = place
    return tuple(found)


def special_tokens(ids: Tensor, special_ids: Sequence[int]) -> Tensor:
    """Return which tokens are special, bool; ``special_ids`` are a tokenizer's ``all_special_ids``."""
    return torch.isin(ids, torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device))


@dataclass
class _Sums:
    """What is added up of one layer, each of shape ``(heads,)``."""

    count: int
    totals: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    followers: int = 0

    def add(self, maps: Tensor, mask: Tensor, special: Tensor, pairs: Sequence[Pair]) -> None:
        """Add the attention of a batch, shape ``(batch, heads, tokens, tokens)``."""
        looking = mask[:, None, :].to(maps.dtype)
        places = torch.arange(maps.shape[-1])
        apart = (places[:, None] - places).abs().to(maps.dtype)
        before = maps.diagonal(-1, -2, -1)
        has_before = (mask[:, 1:] & mask[:, :-1])[:, None]
        self._sum("entropy", torch.special.entr(maps).sum(-1) * looking)
        self._sum("distance", (maps * apart).sum(-1) * looking)
        self._sum("special", (maps * special[:, None, None]).sum(-1) * looking)
        self._sum("own", maps.diagonal(0, -2, -1) * looking)
        self._sum("previous", before * has_before)
        self.tokens += int(mask.sum())
        self.followers += int(has_before.sum())
        if pairs:
            text, place, other = (torch.tensor(side) for side in zip(*pairs, strict=True))
            rows = maps[text, :, place]
            # Special tokens and the token itself are where heads look that look for nothing.
            barred = (special | ~mask)[text] | (places == place[:, None])
            top = rows.masked_fill(barred[:, None], -1).argmax(-1)
            self._sum("found", (top == other[:, None]).to(maps.dtype)[..., None])

    def heads(self, layer: int, pairs: int) -> Iterator[Head]:
        """Yield the means."""
        means = {
            name: (total / max(self.followers if name == "previous" else self.tokens, 1)).tolist()
            for name, total in self.totals.items()
            if name != "found"
        }
        found = (self.totals["found"] / pairs).tolist() if pairs else [None] * self.count
        for head in range(self.count):
            yield Head(layer, head, **{name: values[head] for name, values in means.items()}, found=found[head])

    def _sum(self, name: str, values: Tensor) -> None:
        self.totals[name] = self.totals.get(name, torch.zeros(self.count)) + values.sum((0, 2))


@contextmanager
def _giving_weights(model: nn.Module) -> Iterator[None]:
    """Let attention be computed by the function that gives weights; fused ones never have them."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    choose: Any = getattr(model, "set_attn_implementation", None)
    if before is None or choose is None:
        raise BadInput("heads: the model says nothing of its attention; give a transformer of the transformers library")
    choose("eager")
    try:
        yield
    finally:
        choose(before)


def _shape(inputs: Mapping[str, Tensor]) -> torch.Size:
    for name in ("input_ids", "attention_mask", "inputs_embeds"):
        if name in inputs and inputs[name].ndim >= 2:
            return inputs[name].shape[:2]
    raise BadInput(
        f"inputs {sorted(inputs)}: none says which tokens there are; give input_ids of shape (texts, tokens)"
    )


def _checked(pairs: Iterable[Pair], allowed: Tensor) -> tuple[Pair, ...]:
    found = tuple((int(text), int(place), int(other)) for text, place, other in pairs)
    texts, tokens = allowed.shape
    for pair in found:
        text, *places = pair
        inside = 0 <= text < texts and all(0 <= place < tokens for place in places) and places[0] != places[1]
        if not inside or not all(bool(allowed[text, place]) for place in places):
            raise BadInput(
                f"pair {pair}: give a text and two places in it, of unlike tokens, neither padding nor special"
            )
    return found
