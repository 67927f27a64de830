"""History: entries in a code, as many for each row and head as there are; what is evicted is freed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Code, Form, Span, Tensors


class History:
    """Entries of all rows and heads, one after another in flat tensors.

    Groups of entries that share scales keep these until their last entry is evicted; nothing is ever coded again.

    Parameters
    ----------
    code : Code
    form : Form
    rows, heads : int
    device : torch.device
    """

    def __init__(self, code: Code, form: Form, rows: int, heads: int, device: torch.device) -> None:
        self.code, self.form, self.heads = code, form, heads
        self.counts = torch.zeros((rows, heads), dtype=torch.int32, device=device)
        self.entries: Tensors = {}
        self.groups: Tensors = {}
        # Of each group how many entries are left, and of each head how many groups there are.
        self.sizes = torch.zeros(0, dtype=torch.int32, device=device)
        self.grouped = torch.zeros((rows, heads) if code.group else (0, heads), dtype=torch.int32, device=device)

    @property
    def longest(self) -> int:
        """Return the most entries that a head has."""
        return int(self.counts.max()) if self.counts.numel() else 0

    def tensors(self) -> Iterable[Tensor]:
        """Return all tensors that are held."""
        return (self.counts, self.sizes, self.grouped, *self.entries.values(), *self.groups.values())

    def append(self, keys: Tensor, values: Tensor, counts: Tensor, extras: Tensors) -> None:
        """Code entries and append them to their heads.

        Parameters
        ----------
        keys, values : Tensor, shape ``(n, D)``
            Head by head.
        counts : Tensor of int, shape ``(B, H)``
            How many are for each; they sum to n.
        extras : dict of str to Tensor, shape ``(n, ...)``
            What is held beside them.
        """
        if not len(keys):
            return
        added = counts.flatten().long()
        group = self.code.group
        if group:
            blocks = -(-added // group)
            sizes = _block_sizes(added, blocks, group)
            span = self._span(sizes, added)
        else:
            blocks, sizes = added, self.sizes[:0]
            span = self._each(added)
        entries, groups = self.code.encode(keys, values, span)
        entries |= extras
        held = self.counts.flatten().long()
        self.entries = {name: _joined(self.entries.get(name), part, held, added) for name, part in entries.items()}
        if group:
            held = self.grouped.flatten().long()
            self.groups = {name: _joined(self.groups.get(name), part, held, blocks) for name, part in groups.items()}
            self.sizes = _joined(self.sizes, sizes, held, blocks)
            self.grouped = (held + blocks).int().view_as(self.grouped)
        self.counts = (self.counts.flatten() + added).int().view_as(self.counts)

    def keep(self, which: Tensor) -> None:
        """Free all entries but those of ``which``, bool of shape ``(n,)``."""
        if bool(which.all()):
            return
        counts = self.counts.flatten().long()
        owner = torch.repeat_interleave(torch.arange(len(counts), device=which.device), counts)
        kept = torch.zeros_like(counts).index_add_(0, owner, which.long())
        if self.code.group:
            ids = torch.repeat_interleave(torch.arange(len(self.sizes), device=which.device), self.sizes.long())
            sizes = torch.zeros(len(self.sizes), dtype=torch.int32, device=which.device).index_add_(0, ids, which.int())
            alive = sizes > 0
            of_head = torch.repeat_interleave(
                torch.arange(self.grouped.numel(), device=which.device), self.grouped.flatten().long()
            )
            self.grouped = (
                torch.zeros_like(self.grouped).flatten().index_add_(0, of_head, alive.int()).view_as(self.grouped)
            )
            self.groups = {name: part[alive] for name, part in self.groups.items()}
            self.sizes = sizes[alive]
        self.entries = {name: part[which] for name, part in self.entries.items()}
        self.counts = kept.int().view_as(self.counts)

    def take_rows(self, index: Tensor) -> None:
        """Keep the rows of ``index``, in its order and as often as they are in it."""
        entries = _ranges(self.counts, index)
        self.entries = {name: part[entries] for name, part in self.entries.items()}
        if self.code.group:
            groups = _ranges(self.grouped, index)
            self.groups = {name: part[groups] for name, part in self.groups.items()}
            self.sizes = self.sizes[groups]
            self.grouped = self.grouped[index]
        self.counts = self.counts[index]

    def real(self) -> Tensor:
        """Return which places of `dense` are entries, bool of shape ``(B, H, longest)``."""
        return torch.arange(self.longest, device=self.counts.device) < self.counts[..., None]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``(B, H, longest, D)``; where a head has fewer, zeros at its end."""
        if not self.entries:
            shape = (*self.counts.shape, 0)
            empty = torch.zeros(0, dtype=self.form.dtype, device=self.counts.device)
            return empty.view(*shape, self.form.key_dim), empty.view(*shape, self.form.value_dim)
        counts = self.counts.flatten().long()
        span = self._span(self.sizes, counts) if self.code.group else self._each(counts)
        keys, values = self.code.decode(self.entries, self.groups, span, self.form)
        return self.spread(keys), self.spread(values)

    def spread(self, flat: Tensor) -> Tensor:
        """Return flat entries, ``(n, ...)``, as ``(B, H, longest, ...)``."""
        longest = self.longest
        if flat.shape[0] == self.counts.numel() * longest:
            return flat.view(*self.counts.shape, longest, *flat.shape[1:])
        out = flat.new_zeros((*self.counts.shape, longest, *flat.shape[1:]))
        out[self.real()] = flat
        return out

    def look_up(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at places of `dense`, decoding no others.

        Parameters
        ----------
        index : Tensor of int64, shape ``(B, H, K)``
            At or above a head's count, any entry comes back.

        Returns
        -------
        tuple of Tensor, shape ``(B, H, K, D)``
        """
        counts = self.counts.flatten().long()
        starts = (counts.cumsum(0) - counts).view_as(self.counts)
        flat = (starts[..., None] + index).flatten().clamp_max(int(counts.sum()) - 1)
        entries = {name: part[flat] for name, part in self.entries.items()}
        heads = torch.arange(self.heads, device=flat.device)[:, None].expand(index.shape).flatten()
        if self.code.group:
            ids = torch.repeat_interleave(torch.arange(len(self.sizes), device=flat.device), self.sizes.long())[flat]
            groups = {name: part[ids] for name, part in self.groups.items()}
            span = Span(torch.arange(len(flat), device=flat.device), len(flat), heads)
            keys, values = self.code.decode(entries, groups, span, self.form)
        else:
            keys, values = self.code.decode(
                entries, {}, Span(torch.arange(len(flat), device=flat.device), len(flat), heads), self.form
            )
        return keys.view(*index.shape, -1), values.view(*index.shape, -1)

    def _heads(self, counts: Tensor) -> Tensor:
        rows = counts.numel() // self.heads
        return torch.repeat_interleave(torch.arange(self.heads, device=counts.device).repeat(rows), counts)

    def _span(self, sizes: Tensor, counts: Tensor) -> Span:
        """Return the groups of so many entries each."""
        places = torch.arange(len(sizes), device=sizes.device)
        return Span(lambda: torch.repeat_interleave(places, sizes.long()), len(sizes), lambda: self._heads(counts))

    def _each(self, counts: Tensor) -> Span:
        """Return every entry as a group of its own."""
        total = int(counts.sum())
        return Span(lambda: torch.arange(total, device=counts.device), total, lambda: self._heads(counts))


def _block_sizes(counts: Tensor, blocks: Tensor, group: int) -> Tensor:
    """Return the sizes of groups: whole ones, and the rest of each head in its last."""
    sizes = torch.full((int(blocks.sum()),), group, dtype=torch.int32, device=counts.device)
    filled = blocks > 0
    last = blocks.cumsum(0)[filled] - 1
    sizes[last] = (counts - (blocks - 1) * group)[filled].int()
    return sizes


def _joined(held: Tensor | None, added: Tensor, before: Tensor, more: Tensor) -> Tensor:
    """Return flat entries with others appended to each segment, of ``before`` and ``more`` entries."""
    if held is None or not len(held):
        return added.clone()
    segments = len(before)
    if len(held) == segments * int(before[0]) and len(added) == segments * int(more[0]):
        same = [part.view(segments, -1, *part.shape[1:]) for part in (held, added)]
        if bool((before == before[0]).all()) and bool((more == more[0]).all()):
            return torch.cat(same, 1).flatten(0, 1)
    out = held.new_empty((len(held) + len(added), *held.shape[1:]))
    shift_held = more.cumsum(0) - more
    shift_added = before.cumsum(0)
    out[torch.arange(len(held), device=held.device) + torch.repeat_interleave(shift_held, before)] = held
    out[torch.arange(len(added), device=held.device) + torch.repeat_interleave(shift_added, more)] = added
    return out


def _ranges(counts: Tensor, index: Tensor) -> Tensor:
    """Return the flat places of the entries of the rows of ``index``, in its order."""
    each = counts.sum(1).long()
    starts = each.cumsum(0) - each
    own = each[index]
    offset = torch.repeat_interleave(starts[index] - (own.cumsum(0) - own), own)
    return torch.arange(int(own.sum()), device=counts.device) + offset
