"""Micro-benchmarks in torch without a compiler: each probe is one call of a torch function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.cost.roofline.probes import JOINED, RMS, Probe, padding

_TABLE = 4096  # rows of an embedding that is probed


class TorchBench:
    """Probes made ready in torch: weights that other probes have pushed out of the caches, inputs just touched."""

    def __init__(self, probes: Sequence[Probe], dtype: str, threads: int | None) -> None:
        self.threads = threads
        self.dtype = getattr(torch, dtype)
        self.random = torch.Generator().manual_seed(0)
        self.made = [self._made(probe) for probe in probes]

    def rounds(self, count: int) -> list[list[float]]:
        """Run every probe ``count`` times and return the seconds of each, by run."""
        self.once()  # makes kernels
        return [self.once() for _ in range(count)]

    def once(self) -> list[float]:
        """Run every probe once and return the seconds of each."""
        before = torch.get_num_threads()
        times = []
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with torch.inference_mode():
                for inputs, run in self.made:
                    for tensor in inputs:
                        tensor.sum()
                    start = time.perf_counter()
                    run()
                    times.append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(before)
        return times

    def _tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def _made(self, probe: Probe) -> tuple[list[Tensor], Callable[[], Any]]:
        shape = probe.shape
        if probe.kind in ("linear", JOINED):
            rows, inner, columns = shape
            given, weight, bias = self._tensor(1, rows, inner), self._tensor(columns, inner), self._tensor(columns)
            # Nothing is joined here: an activation is a pass of its own.
            return [given], lambda: functional.linear(given, weight, bias)
        if probe.kind in ("convolution", "depthwise"):
            batch, inside, outside, size, kernel, stride = shape
            groups = inside if probe.kind == "depthwise" else 1
            given, pad = self._tensor(batch, inside, size, size), padding(kernel, stride)
            weight = self._tensor(outside, inside // groups, kernel, kernel)
            return [given], lambda: functional.conv2d(given, weight, None, stride, pad, 1, groups)
        if probe.kind == "attention":
            batch, heads, kv, rows, keys, size = shape
            query = self._tensor(batch, heads, rows, size)
            key, value = self._tensor(batch, kv, keys, size), self._tensor(batch, kv, keys, size)
            grouped = heads != kv
            return [query, key, value], lambda: functional.scaled_dot_product_attention(
                query, key, value, enable_gqa=grouped
            )
        if probe.kind == "embedding":
            table, ids = self._tensor(_TABLE, shape[1]), torch.randint(_TABLE, (1, shape[0]), generator=self.random)
            return [], lambda: functional.embedding(ids, table)
        if probe.kind == "pooling":
            channels, size, kernel, stride = shape
            given, pad = self._tensor(1, channels, size, size), padding(kernel, stride)
            return [given], lambda: functional.max_pool2d(given, kernel, stride, pad)
        given, other = self._tensor(*shape), self._tensor(*shape)
        weight, bias = self._tensor(shape[-1]), self._tensor(shape[-1])
        runs: dict[str, Callable[[], Any]] = {
            "norm": lambda: functional.layer_norm(given, (shape[-1],), weight, bias),
            RMS: lambda: functional.rms_norm(given, (shape[-1],), weight),
            "softmax": lambda: torch.softmax(given, -1),
            "activation": lambda: functional.gelu(given),
            "addition": lambda: given + other,
            "transposition": lambda: given.transpose(1, 2).contiguous(),
        }
        return [given, other] if probe.kind == "addition" else [given], runs[probe.kind]
