"""This machine as a device: peak, bandwidth and efficiency, from the times of micro-benchmarks; kept as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from isthmus.cost.latency_table import machine
from isthmus.cost.roofline.devices import Device
from isthmus.cost.roofline.efficiency import Curve, curves, is_product, probe_work
from isthmus.cost.roofline.elements import BYTES
from isthmus.cost.roofline.probes import PROBES, STREAM, Probe
from isthmus.storage.files import write_atomic

VERSION = 1
Measure = Callable[[Sequence[Probe]], Mapping[Probe, float]]
"""Takes probes and returns the seconds of each."""


def measured_device(
    measure: Measure, *, engine: str, version: str, dtype: str, threads: int | None, folder: str | Path | None
) -> Device:
    """Return this machine as a device, measured once and then read.

    Parameters
    ----------
    measure : callable
        Times probes in the engine.
    engine, version : str
        The engine and its release; part of the key under which the figures are kept.
    dtype : {"float32", "bfloat16"}
    threads : int or None
    folder : str or Path or None
        Where they are kept; None: nowhere.
    """
    here = f"{machine()}, {engine} {version}, {dtype}" + (f", {threads} threads" if threads else "")
    listed = [(probe.kind, probe.shape) for probe in (*PROBES, STREAM)]
    key = hashlib.sha256(json.dumps([VERSION, here, listed]).encode()).hexdigest()[:16]
    path = Path(folder) / f"roofline-{key}.json" if folder is not None else None
    known = _read(path, dtype) if path is not None else None
    if known is not None:
        return known
    device = device_from(measure((*PROBES, STREAM)), name="here", source=f"measured: {here}", dtype=dtype)
    if path is not None:
        _write(path, device)
    return device


def device_from(measured: Mapping[Probe, float], *, name: str, source: str, dtype: str) -> Device:
    """Return a device from the times of probes.

    The peak is the best rate of any product that was timed; the bandwidth that of a sum of arrays far larger than the
    caches.
    """
    size = BYTES[dtype]
    works = {probe: probe_work(probe, size) for probe in measured}
    peak = max(works[probe].operations / measured[probe] for probe in measured if is_product(probe.kind.split()[0]))
    bandwidth = works[STREAM].activation_bytes / measured[STREAM]
    fitted = curves({probe: seconds for probe, seconds in measured.items() if probe != STREAM}, size)
    return Device(name, {dtype: peak}, bandwidth, source, fitted)


def _write(path: Path, device: Device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "name": device.name,
        "peaks": dict(device.peaks),
        "bandwidth": device.bandwidth,
        "source": device.source,
        "curves": {kind: {"rates": curve.rates, "error": curve.error} for kind, curve in device.curves.items()},
    }
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def _read(path: Path, dtype: str) -> Device | None:
    """Return a device that was kept, or None where there is none that makes sense: it is then measured again."""
    try:
        data = json.loads(path.read_text())
        known = {
            str(kind): Curve(tuple(float(rate) for rate in one["rates"]), float(one["error"]))
            for kind, one in data["curves"].items()
        }
        peaks = {dtype: float(data["peaks"][dtype])}
        device = Device(str(data["name"]), peaks, float(data["bandwidth"]), str(data["source"]), known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return device if device.peaks[dtype] > 0 and device.bandwidth > 0 and known else None
