"""Coupling: from what a trace tied together to units, slices and gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.sites.labels import support
from isthmus.sites.seen import Call, Trace
from isthmus.sites.site import Gate, Slice, regular_owners

Integers = NDArray[np.int64]

#: Outputs of a network that may become narrower; all others (logits, scores) keep their size.
FREE_OUTPUTS = frozenset(("last_hidden_state", "pooler_output"))


@dataclass(frozen=True)
class Group:
    """Units that leave the same entries of the same tensors: what becomes a site.

    ``slices`` say which; ``heads`` whether the units are batches of a product of activations; ``gates`` where they
    close, and ``trouble`` says what stands in the way of closing them, where something does.
    """

    units: int
    slices: tuple[Slice, ...]
    gates: tuple[Gate, ...]
    heads: bool
    trouble: str = ""
    pads: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Modules that pad units with zeros, and which units they put before and after others."""


def groups_of(found: Trace) -> list[Group]:
    """Return the groups of units of a traced network, in the order in which their first tensor is registered."""
    _fix_ends(found)
    unit_of = _rectangular(found)
    owned = _owned(found, unit_of)
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for unit, parts in owned.items():
        alike[tuple((name, dim, len(entries)) for (name, dim), entries in parts.items())].append(unit)
    in_heads = {int(unit) for labels in found.heads for unit in unit_of[labels.numpy()]}
    groups = []
    for signature, units in alike.items():
        if len(units) < 2:
            continue
        number = {unit: index for index, unit in enumerate(units)}
        slices = tuple(
            _slice(name, dim, len(units), [owned[unit][name, dim] for unit in units], found.tensors[name].shape[dim])
            for name, dim, _ in signature
        )
        gates, trouble = _gates(found, unit_of, number)
        idle = next((part.parameter for part in slices if not found.calls.get(part.parameter.rpartition(".")[0])), "")
        if idle:
            trouble = f"{idle} is used outside the module that holds it"
        pads = tuple(
            (pad.module, tuple(number[unit] for unit in before), tuple(number[unit] for unit in after))
            for pad in found.pads
            for before, after in [(unit_of[pad.before.numpy()].tolist(), unit_of[pad.after.numpy()].tolist())]
            if all(unit in number for unit in (*before, *after))
        )
        groups.append(Group(len(units), slices, gates, units[0] in in_heads, trouble, pads))
    return groups


def _fix_ends(found: Trace) -> None:
    """Fix what leaves the network for good, and what took no part in it."""
    for name, (value, _) in found.results.items():
        if name not in FREE_OUTPUTS:
            found.ties.fix_all(value)
    for name, value in found.tensors.items():
        if name not in found.used:
            found.ties.fix_all(value)


def _rectangular(found: Trace) -> Integers:
    """Return the unit of every label, tied further where a tensor would otherwise not stay a box.

    Channels that are split over two dimensions (a shuffle, the two halves of a gated layer) and not forced together
    there leave from every row at once: each row loses equally.
    """
    unit_of = found.ties.units()
    before = -1
    while found.ties.ties != before:
        before = found.ties.ties
        for factor in found.joint:  # in the order in which they arose: a split before what is made of it
            labels = torch.from_numpy(unit_of)[factor]
            depends = [dim for dim in support(labels) if bool((labels != labels.narrow(dim, 0, 1)).any())]
            if len(depends) > 1:
                found.ties.tie(factor, factor.narrow(depends[0], 0, 1))
                unit_of = found.ties.units()
    return unit_of


def _owned(found: Trace, unit_of: Integers) -> dict[int, dict[tuple[str, int], list[int]]]:
    """Return the entries of each unit by tensor and dimension, units in the order of their first entry."""
    owned: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
    for name, value in found.tensors.items():
        for factor in value.factors:
            (dim,) = support(factor)
            for entry, unit in enumerate(unit_of[factor.reshape(-1).numpy()].tolist()):
                if unit:
                    owned[unit].setdefault((name, dim), []).append(entry)
    return owned


def _slice(name: str, dim: int, units: int, entries: list[list[int]], size: int) -> Slice:
    owner = np.full(size, -1, dtype=np.int64)
    for unit, own in enumerate(entries):
        owner[own] = unit
    each = len(entries[0])
    block = regular_block(owner, units)
    if block is not None:
        return Slice(name, dim, block, each // block)
    return Slice(name, dim, each, 1, tuple(owner.tolist()))


def regular_block(owner: Integers, units: int) -> int | None:
    """Return how many neighbouring entries each unit owns, where all entries are owned in one regular pattern."""
    size = len(owner)
    if size % units or owner[0] != 0:
        return None
    block = int(np.argmax(owner != 0)) if (owner != 0).any() else size
    if size % (units * block) or not np.array_equal(owner, regular_owners(units, block, size // (units * block))):
        return None
    return block


def _gates(found: Trace, unit_of: Integers, number: Mapping[int, int]) -> tuple[tuple[Gate, ...], str]:
    """Return where units are closed: what is summed over, what is normalized over, and what leaves the network."""
    gates: dict[Gate, None] = {}
    lookup = np.full(int(unit_of.max()) + 1, -1, dtype=np.int64)
    for unit, index in number.items():
        lookup[unit] = index
    for part in found.sums:
        owner = lookup[unit_of[part.labels.numpy()]]
        if (owner >= 0).any():
            gate = None
            for weight in found.shared.get(part.weight, (part.weight,)):
                module = weight.rpartition(".")[0]
                where = "within" if module in found.standardized else "input"
                gate = gate or _gate(found, module, where, owner, part.labels, unit_of, len(number))
            if gate is None:
                return (), f"no module is given what {part.weight} multiplies"
            gates[gate] = None
    for norm in found.norms:
        owner = lookup[unit_of[norm.labels.numpy()]]
        if (owner >= 0).any():
            gate = _gate(found, norm.module, "norm", owner, norm.labels, unit_of, len(number))
            if gate is None or not (owner >= 0).all():
                return (), f"{norm.module} takes the mean over more than these units"
            gates[gate] = None
    gates = _not_behind_norms(found, gates)
    for value, makers in found.results.values():
        for gate in _closing_gates(found, value.factors, makers, lookup, unit_of, len(number)):
            gates[gate] = None
    return _without_doubles(gates), ""


def _not_behind_norms(found: Trace, gates: Iterable[Gate]) -> dict[Gate, None]:
    """Leave out the closing of what a module is given straight from a norm, which has closed it already."""
    normed = {left for gate in gates if gate.where == "norm" for _, left in found.chains.get(gate.module, [])}
    return {
        gate: None
        for gate in gates
        if gate.where != "input" or any(entered not in normed for entered, _ in found.chains.get(gate.module, [(0, 0)]))
    }


def _without_doubles(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """Leave out the closing of outputs that a norm has closed already."""
    normed = {gate.module for gate in gates if gate.where == "norm"}
    return tuple(gate for gate in gates if gate.where != "output" or gate.module not in normed)


def _closing_gates(
    found: Trace, factors: Iterable[Tensor], makers: tuple[str, ...], lookup: Integers, unit_of: Integers, units: int
) -> Iterable[Gate]:
    """Yield the gate that closes units in an output of the network, at the innermost module that returns it."""
    for factor in factors:
        depends = support(factor)
        owner = lookup[unit_of[factor.reshape(-1).numpy()]]
        if len(depends) == 1 and (owner >= 0).any():
            maker = next((path for path in makers if path and len(found.calls[path]) == 1), None)
            if maker is not None:
                yield _made(maker, "output", depends[0] - factor.dim(), owner, units)


def _gate(
    found: Trace, module: str, where: str, owner: Integers, labels: Tensor, unit_of: Integers, units: int
) -> Gate | None:
    """Return the gate at what enters a module; None where that is not what the labels stand for."""
    wanted = unit_of[labels.numpy()]
    dims = {_entering(call, wanted, unit_of) for call in found.calls.get(module, [])}
    if len(dims) != 1 or (dim := dims.pop()) is None:
        return None
    return _made(module, where, dim, owner, units)


def _entering(call: Call, wanted: Integers, unit_of: Integers) -> int | None:
    """Return the dimension of what entered a module along which it has the units ``wanted``, counted from the end
    where it is the last one."""
    if call.entered is None:
        return None
    for factor in call.entered.factors:
        depends = support(factor)
        if len(depends) == 1 and np.array_equal(unit_of[factor.reshape(-1).numpy()], wanted):
            return -1 if depends[0] == factor.dim() - 1 else depends[0]
    return None


def _made(module: str, where: str, dim: int, owner: Integers, units: int) -> Gate:
    block = regular_block(owner, units)
    if block is not None and len(owner) == units * block:
        return Gate(module, where, block, dim)  # type: ignore[arg-type]
    return Gate(module, where, 1, dim, tuple(owner.tolist()))  # type: ignore[arg-type]
