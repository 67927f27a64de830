"""The cache of one layer, on transformers' interface: what it holds, and how rows are moved and taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from isthmus.bottlenecks.attention import stock
from isthmus.bottlenecks.cache import seeing, settling
from isthmus.bottlenecks.cache.attention import MARK, grouped
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.reading.reader import Reads
from isthmus.bottlenecks.cache.roles import Form
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.bottlenecks.cache.young import Young
from isthmus.errors import BadInput


class NarrowLayer(CacheLayerMixin):  # type: ignore[misc]
    """Sinks and recent tokens as they are, and between them history: fewer entries, fewer bits.

    Parameters
    ----------
    setting : CacheSetting
    index : int
        Of the layer, for messages.
    """

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, setting: CacheSetting, index: int) -> None:
        super().__init__()
        self.setting, self.index = setting, index
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.is_initialized = False
        self.young = Young(self.setting.selector.channels)
        self.first: History | None = None
        self.tiers: tuple[History, ...] = ()
        self.reads = Reads()
        self.seen = 0
        self.pending = 0
        self.real_seen = self.prompt = torch.zeros(0, dtype=torch.int64)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the shapes from the first keys and values."""
        rows, heads = key_states.shape[:2]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.form = Form(key_states.shape[3], value_states.shape[3], key_states.dtype)
        self.first = History(Plain(), self.form, rows, heads, self.device)
        self.tiers = tuple(History(code, self.form, rows, heads, self.device) for code in self.setting.codes)
        self.real_seen = self.prompt = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.is_initialized = True

    @property
    def sinks(self) -> History:
        """Return the history of the first tokens."""
        assert self.first is not None
        return self.first

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take new keys and values, and hand them to the attention function.

        Returns
        -------
        tuple of Tensor, shape ``(B, H, Q, D)``
            The new ones alone, marked: `isthmus.bottlenecks.cache.attention.cached_attention` reads what is held.

        Raises
        ------
        BadInput
            If shapes are not those of this cache, or the network does not attend through that function.
        """
        if self.pending:
            raise not_ours(self.index)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = (len(self.real_seen), self.sinks.heads, self.form.key_dim)
        given = (key_states.shape[0], key_states.shape[1], key_states.shape[3])
        if held != given:
            raise BadInput(
                f"cache: layer {self.index} holds {held[0]} rows of {held[1]} heads of {held[2]} channels, and was"
                f" given {given[0]}, {given[1]} and {given[2]}; use a new cache for another batch or network"
            )
        self.young.append(key_states, value_states)
        self.pending = key_states.shape[2]
        key = key_states.view_as(key_states)
        setattr(key, MARK, self)
        return key, value_states

    @torch.no_grad()
    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        rest: dict[str, Any],
    ) -> Tensor:
        """Return what attention puts out, ``(B, Q, heads, D)``, and let what is old enough join history."""
        real = self._real(mask)
        count, self.pending = self.pending, 0
        start, before = self.seen, self.real_seen
        self.seen, self.real_seen = start + count, before + real.sum(1)
        if not start:
            self.prompt = self.real_seen.clone()
        self.young.mark(real)
        step = seeing.Step(
            queries=grouped(query, self.sinks.heads),
            real=real,
            late=seeing.late(real, self.setting.selector.window),
            ordinals=before[:, None] + real.cumsum(1) - 1,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
        if start or count == 1:
            out = seeing.attend_to_held(self, step)
        else:
            out = stock(module, query, key, value, mask, scaling=scaling, **rest)[0]
            seeing.observe_prompt(self, step)
        settling.settle(self)
        return out

    def _real(self, mask: Tensor | None) -> Tensor:
        """Return which new tokens are real, bool of shape ``(B, Q)``, after a look at the mask of the others."""
        rows, count = len(self.real_seen), self.pending
        if mask is None:
            if bool((self.real_seen < self.seen).any()):
                raise BadInput("cache: it began with a padded batch; pass the attention mask of all tokens on")
            return torch.ones((rows, count), dtype=torch.bool, device=self.device)
        if mask.dtype != torch.bool or mask.shape[1] != 1 or mask.shape[-1] != self.seen + count:
            raise BadInput(
                f"cache: a mask of {mask.dtype} and shape {list(mask.shape)} where bool of"
                f" {[rows, 1, count, self.seen + count]} is expected; pass a mask of 0 and 1 for each token"
            )
        last = mask[:, 0, -1].expand(rows, -1)
        if bool((last[:, : self.seen].sum(1) != self.real_seen).any()):
            raise BadInput("cache: the attention mask hides tokens that the cache holds; begin with a new cache")
        return last[:, self.seen :]

    def get_seq_length(self) -> int:
        """Return the slots seen, padding and evicted ones included: where the next position is."""
        return self.seen + self.pending

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the mask: all slots seen, for padding is found there."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is none."""
        return -1

    def tensors(self) -> Iterable[Tensor]:
        """Return all tensors that are held."""
        for history in (self.first, *self.tiers):
            yield from () if history is None else history.tensors()
        yield from (*self.young.tensors(), *self.reads.held.values(), self.real_seen, self.prompt)

    def allocated_bytes(self) -> int:
        """Return the bytes of the storages of all tensors that are held, each once."""
        return sum(
            {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in self.tensors()}.values()
        )

    def entries(self) -> Tensor:
        """Return how many entries each head holds, int64 of shape ``(B, H)``."""
        held = torch.stack([history.counts.long() for history in (self.sinks, *self.tiers)]).sum(0)
        return held + self.young.here().sum(1)[:, None]

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back.

        Parameters
        ----------
        tokens_to_remove : int
            How many, as a negative number.

        Raises
        ------
        BadInput
            If it is positive, or some of these are in history already.
        """
        if tokens_to_remove > 0:
            raise BadInput(f"cache: crop({tokens_to_remove}); give the tokens to take back as a negative number")
        if tokens_to_remove and self.is_initialized:
            self.real_seen = self.real_seen - self.young.crop(-tokens_to_remove)
            self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows in the order of ``beam_idx``."""
        if not self.is_initialized:
            return
        index = beam_idx.to(self.device)
        for history in (self.sinks, *self.tiers):
            history.take_rows(index)
        self.young.take_rows(index)
        self.reads.held = {name: part[index] for name, part in self.reads.held.items()}
        self.real_seen, self.prompt = self.real_seen[index], self.prompt[index]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.reorder_cache(torch.arange(len(self.real_seen)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        kept = torch.arange(len(self.real_seen))[indices.cpu()]
        self.reorder_cache(kept)

    def offload(self) -> None:
        """Refuse: what is held is not moved between devices."""
        raise BadInput("cache: a narrowed cache is not offloaded; make it without offloading")


def not_ours(index: int) -> BadInput:
    """Return the error for a network that does not read what the cache holds."""
    return BadInput(
        f"cache: layer {index} of the network does not attend through isthmus; use a cache made for this network"
    )
