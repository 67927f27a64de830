"""Devices: what a machine can do at best, as measured on it or as its maker says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isthmus.cost.roofline.efficiency import Curve
from isthmus.errors import BadInput, unknown


@dataclass(frozen=True)
class Device:
    """A machine that networks run on.

    Parameters
    ----------
    name : str
    peaks : mapping of str to float
        Operations a second by element type: two for every multiply-accumulate, dense.
    bandwidth : float
        Bytes a second between its memory and its processor.
    source : str
        Where these figures come from.
    curves : mapping of str to Curve
        How long kernels really take, by kind; empty where only the peaks are known, and times are then those of the
        roofline itself, a lower bound.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float
    source: str
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def peak(self, dtype: str) -> float:
        """Return the operations a second in an element type.

        Raises
        ------
        BadInput
            If the device does not compute in it.
        """
        if dtype not in self.peaks:
            raise BadInput(
                f"device {self.name}: no peak for {dtype}; ask for an element type that computes in one of "
                f"{', '.join(self.peaks)}"
            )
        return self.peaks[dtype]

    @property
    def activation(self) -> str:
        """What activations are in where only weights are in few bits: bfloat16 where the device computes in it."""
        return "bfloat16" if "bfloat16" in self.peaks else "float32"


def _gpu(name: str, single: float, half: float, integer: float, bandwidth: float, source: str) -> Device:
    peaks = {"float32": single * 1e12, "bfloat16": half * 1e12, "int8": integer * 1e12}
    return Device(name, peaks, bandwidth * 1e9, source)


def _cpu(name: str, cores: int, hertz: float, cycle: Mapping[str, int], bandwidth: float, source: str) -> Device:
    peaks = {dtype: cores * hertz * each for dtype, each in cycle.items()}
    return Device(name, peaks, bandwidth * 1e9, source)


# GPUs: dense rates without sparsity; float32 outside tensor cores. CPUs: cores x base clock x operations a cycle and
# core that the instruction set and the units of the core give; memory: channels x rate x 8 bytes.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("a100", 19.5, 312, 624, 2039, "NVIDIA A100 80GB SXM datasheet"),
        _gpu("h100", 67, 989, 1979, 3350, "NVIDIA H100 SXM datasheet, half of the rates with sparsity"),
        _gpu("h200", 67, 989, 1979, 4800, "NVIDIA H200 SXM datasheet, half of the rates with sparsity"),
        _gpu("l4", 30.3, 121, 242.5, 300, "NVIDIA L4 datasheet, half of the rates with sparsity"),
        _gpu("rtx-4090", 82.6, 165.2, 660.6, 1008, "NVIDIA Ada GPU architecture whitepaper, Appendix A"),
        _cpu(
            "xeon-8480",
            56,
            2.0e9,
            {"float32": 64, "bfloat16": 2048, "int8": 4096},
            307.2,
            "Intel Xeon Platinum 8480+: 56 cores, 2.0 GHz, two AVX-512 units and AMX, 8 channels of DDR5-4800",
        ),
        _cpu(
            "epyc-9654",
            96,
            2.4e9,
            {"float32": 32, "bfloat16": 64, "int8": 128},
            460.8,
            "AMD EPYC 9654: 96 cores, 2.4 GHz, two 256-bit units, VNNI and BF16, 12 channels of DDR5-4800",
        ),
        _cpu(
            "raspberry-pi-5",
            4,
            2.4e9,
            {"float32": 16, "int8": 64},
            17.1,
            "Raspberry Pi 5: 4 Cortex-A76, 2.4 GHz, two 128-bit units with dot products, 32-bit LPDDR4X-4267",
        ),
    )
}


def find_device(name: str) -> Device:
    """Return a device by name.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in DEVICES:
        raise unknown("device", name, ["here", *DEVICES])
    return DEVICES[name]
