"""What a network costs, measured: parameters, multiply-accumulates, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadInput

if TYPE_CHECKING:
    import torch


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_macs(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Return the multiply-accumulates of one run of the network, counted as it runs.

    Matrix products, convolutions and attention are counted; element-wise work is not.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : mapping of str to torch.Tensor
        Keyword arguments of the network. A batch counts as a whole.
    """
    return macs_by_module(model, inputs)[""]


def macs_by_module(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the multiply-accumulates of one run by module path; ``""`` is the whole network.

    A module's figure includes those of the modules within it. Modules that multiply nothing are left out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from isthmus.sites.experts import EAGER, run_by

    # torch's counter does not know the fused attention of the CPU and would count it as nothing.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), run_by(model, EAGER), FlopCounterMode(display=False, custom_mapping=fused) as counter:
            model(**inputs)
    finally:
        model.train(training)
    root = type(model).__name__
    macs = {"": counter.get_total_flops() // 2}
    for path, operations in counter.get_flop_counts().items():
        if path.startswith(f"{root}."):
            macs[path[len(root) + 1 :]] = sum(operations.values()) // 2
    return macs


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Return the operations of attention: the scores and the weighted sum. Arguments are shapes."""
    batch, heads, rows, width = query
    return int(2 * batch * heads * rows * key[-2] * (width + value[-1]))


def high_water() -> int:
    """Return the most memory (bytes, resident) that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose figure starts from that of the parent process.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes(module: str, arguments: Sequence[str], *, timeout: float = 300.0) -> int:
    """Return the peak memory of a fresh process that loads an exported network and runs one batch.

    Parameters
    ----------
    module : str
        What the process runs, as ``python -m``. It reads `high_water` once its imports are done and again at its end,
        and prints ``{"before": bytes, "peak": bytes}`` as the last line.
    arguments : sequence of str
        What the module is called with.
    timeout : float
        Seconds after which the process is given up.

    Returns
    -------
    int
        Bytes above those that the engine itself needs once imported: weights, the engine's own copies of them,
        activations, and what loading took for a moment.

    Raises
    ------
    BadInput
        If the process fails; the message carries its last line.
    """
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines() or ["no output"]
    if result.returncode != 0:
        raise BadInput(f"peak memory: a process that ran the exported network failed: {lines[-1]}")
    figures = json.loads(lines[-1])
    return int(figures["peak"]) - int(figures["before"])
