"""Make deltas: a fine-tuned network kept as its base and a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isthmus.bottlenecks.rank.residual import residual_code
from isthmus.budget import parse_budget
from isthmus.errors import BadBudget, UnreachableBudget
from isthmus.flow.verifying import bytes_on_disk
from isthmus.network import Network
from isthmus.storage.coded import Product
from isthmus.storage.delta import check_delta_output, delta_bytes, load_delta, matrices_of, save_delta, tensors_of
from isthmus.storage.delta_file import entry_bytes
from isthmus.storage.weights import check_weights


def make_delta(base: Network, tuned: Network, out: Path, budget: int) -> dict[str, Any]:
    """Write what turns ``base`` into ``tuned``, as near as a file of ``budget`` bytes can say it.

    Parameters
    ----------
    out : Path
        A file that does not exist yet.
    budget : int
        Bytes of the whole file.

    Returns
    -------
    dict
        ``file``; ``bytes`` on disk; ``share`` of the bytes of the fine-tuned network's own weight files; ``ranks`` of
        all matrices by name; ``error``, the root of the squared error left in the weights over that of the base.

    Raises
    ------
    BadInput
        If the networks' tensors differ in more than their values, or the file cannot be written.
    UnreachableBudget
        If what is no matrix takes more than the budget.
    IsthmusError
        If the disk is full.
    """
    check_delta_output(out)
    for network in (base, tuned):
        check_weights(network.model.state_dict(), network.name)
    fixed = len(delta_bytes(base, tuned, {}))
    if fixed > budget:
        raise UnreachableBudget(f"bytes={budget}: biases and the like take {fixed} bytes; give at least bytes={fixed}")
    old, new = matrices_of(base), matrices_of(tuned)
    overhead = {name: entry_bytes(name, matrix.shape) for name, matrix in old.items()}
    codes = residual_code(old, new, budget - fixed, overhead=overhead)
    size = save_delta(base, tuned, out, codes)
    ranks = {name: code.left.shape[1] for name, code in codes.items() if isinstance(code, Product)}
    return {
        "file": str(out),
        "bytes": size,
        "share": size / bytes_on_disk(tuned),
        "ranks": {name: ranks.get(name, 0) for name in old},
        "error": relative_error(base, tuned, load_delta(base, out)),
    }


def relative_error(base: Network, tuned: Network, restored: Network) -> float:
    """Return the distance of the restored weights from the fine-tuned ones, over that of the base; 0 if all agree."""
    old, new, found = (tensors_of(network) for network in (base, tuned, restored))
    left, whole = 0.0, 0.0
    for name, target in new.items():
        if target.dtype.kind == "f":
            left += float(np.square(target.astype(np.float64) - found[name]).sum())
            whole += float(np.square(target.astype(np.float64) - old[name]).sum())
    return (left / whole) ** 0.5 if whole else 0.0


def delta_limit(to: str, tuned: Network) -> int:
    """Return the bytes that a delta may take.

    Parameters
    ----------
    to : str
        A budget of bytes, an amount or a share of the fine-tuned network's weight files.

    Raises
    ------
    BadBudget
        If it is not a budget of bytes alone, or more than the network itself takes.
    """
    budget = parse_budget(to)
    if budget.currencies != ("bytes",):
        raise BadBudget(f"{to}: a delta has bytes only; give for example bytes=2MB or bytes=5%")
    return int(budget.amounts({"bytes": float(bytes_on_disk(tuned))})["bytes"])
