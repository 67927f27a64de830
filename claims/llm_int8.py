"""LLM.int8() (Dettmers et al. 2022): 8 bits for all but the few columns that carry large activations.

15 points of about half a minute on one core: eight minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from claims.coding import ROW, Arm, Claim, Point, Workbench
from claims.common import Outcome
from claims.equal_bytes import against, of_arm, part_of, share_passed
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.bits.grid import covering, rounded, top_of
from isthmus.bottlenecks.bits.llm_int8 import OutlierSplit, outlier_columns
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Coder, Floats, MatrixStatistics, Setting
from isthmus.network import Network
from isthmus.storage.coded import Coded, Uniform

BITS = (8.0, 6.0, 5.0, 4.0)
EIGHT = (8.0,)
TOP = 127
CLOSE, SHARE, HALF = 0.995, 0.99, 0.55
SPLIT, ROWS, TENSOR = "split", "row", "tensor"
INPUTS = ", 8-bit inputs"
"""What the label of an arm ends in where activations are rounded as well."""
_SPLITTER = OutlierSplit(most=1.0)  # as many columns as the threshold finds, so that their share is a finding


@dataclass(frozen=True)
class OneScale:
    """Rounding to nearest with one scale for the whole matrix: the baseline of the paper."""

    name: ClassVar[str] = "one-scale"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 8 to 4 bits."""
        return tuple(Setting(bits) for bits in BITS)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number.
        """
        check_matrix(weight)
        exponents = covering(np.abs(weight).max(keepdims=True), top_of(setting))
        return Uniform(rounded(weight, exponents, top_of(setting)), (exponents,))


def by_row(inputs: Tensor, apart: Tensor) -> Tensor:
    """Return what enters a linear map with each vector rounded to 8 bits of its own scale."""
    scale = inputs.abs().amax(-1, keepdim=True).clamp(min=1e-12) / TOP
    return (inputs / scale).round() * scale


def by_tensor(inputs: Tensor, apart: Tensor) -> Tensor:
    """Return what enters a linear map rounded to 8 bits of one scale."""
    scale = inputs.abs().amax().clamp(min=1e-12) / TOP
    return (inputs / scale).round() * scale


def by_split(inputs: Tensor, apart: Tensor) -> Tensor:
    """Return what enters a linear map with each vector rounded, but for the columns that are kept apart."""
    inside = inputs.clone()
    inside[..., apart] = 0
    rounded = by_row(inside, apart)
    rounded[..., apart] = inputs[..., apart]
    return rounded


@contextmanager
def _rounding(
    network: Network, statistics: Mapping[str, MatrixStatistics], how: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Round what enters the linear maps, in float32: what products of integers give, without their speed."""
    handles = []
    for name, own in statistics.items():
        module = network.model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear) and own.moments is not None:
            size = np.sqrt(np.maximum(np.diag(own.moments), 0)).astype(np.float64)
            apart = torch.from_numpy(outlier_columns(size, _SPLITTER.threshold, _SPLITTER.most))
            handles.append(module.register_forward_pre_hook(lambda _, args, own=apart: (how(args[0], own), *args[1:])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def split_inputs(network: Network, statistics: Mapping[str, MatrixStatistics]) -> Any:
    """Run a network with its linear maps' inputs rounded by vectors, outlier columns kept."""
    return _rounding(network, statistics, by_split)


def row_inputs(network: Network, statistics: Mapping[str, MatrixStatistics]) -> Any:
    """Run a network with its linear maps' inputs rounded by vectors."""
    return _rounding(network, statistics, by_row)


def tensor_inputs(network: Network, statistics: Mapping[str, MatrixStatistics]) -> Any:
    """Run a network with its linear maps' inputs rounded by batches."""
    return _rounding(network, statistics, by_tensor)


def _coded(coder: Coder, bits: float) -> tuple[Coder, Setting]:
    return coder, Setting(bits, ROW if isinstance(coder, FineQuant) else 0)


def _arms() -> Iterator[Arm]:
    kinds = ((SPLIT, _SPLITTER, split_inputs), (ROWS, FineQuant(), row_inputs), (TENSOR, OneScale(), tensor_inputs))
    for label, coder, running in kinds:
        yield Arm(label, BITS, partial(_coded, coder))
        yield Arm(label + INPUTS, EIGHT, partial(_coded, coder), running=running)


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return how many weights are kept apart, of how many in linear maps."""
    apart = {name: len(code.outliers.places) for name, code in codes.items() if code.outliers is not None}
    linear = sum(
        code.shape[0] * code.shape[1] for name, code in codes.items() if bench.statistics[name].moments is not None
    )
    return {"apart": apart, "linear": linear, "half_bytes": bench.original["half_bytes"]}


def kept(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): with weights and inputs in 8 bits the split loses almost nothing, one scale a tensor more."""
    rule = (
        f"with weights and inputs in 8 bits the split keeps at least {CLOSE:.1%} of the score, and one scale a tensor "
        "keeps less than the split by more than twice the spread of the difference; mixed: one of the two"
    )
    name, split, tensor = (
        "8 bits for weights and inputs",
        of_arm(outcomes, SPLIT + INPUTS),
        of_arm(outcomes, TENSOR + INPUTS),
    )
    if 8.0 not in split or 8.0 not in tensor:
        return part_of(name, rule, UNTESTED)
    ours, theirs, rows = (of_arm(outcomes, kind + INPUTS).get(8.0) for kind in (SPLIT, TENSOR, ROWS))
    assert ours is not None
    assert theirs is not None
    gap = ours[0]["relative"] - theirs[0]["relative"]
    spread = float(np.std(np.subtract(ours[0]["resamples"], theirs[0]["resamples"]), ddof=1))
    text = (
        f"split {ours[0]['relative']:.2%} ({ours[0]['nats']:.2g} nats), one scale {theirs[0]['relative']:.2%} "
        f"({theirs[0]['nats']:.2g} nats), {100 * gap:+.2f} ± {100 * spread:.2f} points"
    )
    if rows:
        text += f"; a scale a row without split {rows[0]['relative']:.2%} ({rows[0]['nats']:.2g} nats)"
    return part_of(
        name, rule, share_passed([ours[0]["relative"] >= CLOSE, gap > 2 * spread]), text, gap=gap, spread=spread
    )


def in_eight(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): almost all weights stay in 8 bits."""
    rule = f"more than {SHARE:.0%} of the linear maps' weights are in 8 bits, by a threshold alone"
    runs = of_arm(outcomes, SPLIT).get(8.0, [])
    shares = [1 - sum(run["apart"].values()) / run["linear"] for run in runs]
    text = f"{shares[0]:.3%}; {len(runs[0]['apart'])} matrices have columns apart" if runs else ""
    return part_of("share in 8 bits", rule, share_passed([share > SHARE for share in shares]), text)


def halved(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): about half the bytes of float16."""
    rule = f"the file at 8 bits takes at most {HALF:.0%} of the bytes that it takes in float16"
    runs = of_arm(outcomes, SPLIT).get(8.0, [])
    shares = [run["bytes"] / run["half_bytes"] for run in runs]
    return part_of("bytes", rule, share_passed([share <= HALF for share in shares]), f"{shares[0]:.1%}" if runs else "")


def weights_only(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): the split against rounding without it, inputs left as they are."""
    return against("weights alone, 8 to 4 bits", outcomes, SPLIT, [ROWS, TENSOR])


CLAIM = Claim(
    slug="llm-int8",
    claim=(
        "With separate scales for rows and the few columns of large activations kept in 16 bits, products in 8 bits "
        "lose nothing where one scale a tensor does; over 99% of the weights are in 8 bits, and the bytes are half of "
        "those in float16."
    ),
    experiment=(
        "Columns are kept apart where the root mean square of what enters exceeds 6 times the median column's (the "
        "paper: an activation above 6), however many these are. At 8 bits what enters the linear maps is rounded too: "
        "simulated in float32, with one scale a vector (less its outliers), or one a batch where weights have one a "
        "tensor. At 8 to 4 bits weights alone are rounded. Outliers are the network's own, none are induced."
    ),
    arms=tuple(_arms()),
    parts=lambda outcomes: [kept(outcomes), in_eight(outcomes), halved(outcomes), weights_only(outcomes)],
    observe=observe,
)
