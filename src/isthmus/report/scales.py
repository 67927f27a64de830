"""Scales: where a value lies on an axis, which ticks the axis has, which step of the colour scale a value takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Steps of the colour scale; the style sheet has one pair of colours (ground and ink) for each.
STEPS = 9


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def portion(value: float | None, whole: float) -> float:
    """Return a value in percent of a whole, from 0 to 100; 0 for what is no number."""
    if value is None or not math.isfinite(value) or whole <= 0:
        return 0.0
    return min(100.0, max(0.0, 100 * value / whole))


def nice_step(span: float, count: int) -> float:
    """Return a tick distance of 1, 2 or 5 times a power of ten that gives about ``count`` ticks over ``span``."""
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


@dataclass(frozen=True)
class Scale:
    """Maps ``low ... high`` onto 0 ... 1, linearly or by logarithm; what lies outside is drawn at the edge."""

    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        """Return the place of a value, 0 to 1; what is no number is placed at the low end."""
        if not math.isfinite(value):
            return 0.0
        if self.log:
            place = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, place))


def spans_decades(values: Sequence[float], ratio: float) -> bool:
    """Return whether the values above zero differ so much that only a logarithmic scale shows them all."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > ratio


def linear(values: Sequence[float], *, count: int = 4, zero: bool = False) -> Scale:
    """Return a linear scale with round ends that holds all values (and zero where asked)."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(high) * 0.1 or 1.0
        low, high = (low if zero and low == 0 else low - pad), high + pad
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks=ticks)


def logarithmic(values: Sequence[float], *, count: int = 5) -> Scale:
    """Return a logarithmic scale that ends at powers of ten and holds all values above zero."""
    positive = [value for value in values if value > 0]
    first = math.floor(math.log10(min(positive)) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(max(positive)) - 1e-9))
    stride = math.ceil((last - first) / count)
    return Scale(
        10.0**first, 10.0**last, log=True, ticks=tuple(10.0**power for power in range(first, last + 1, stride))
    )


def close(values: Sequence[float]) -> Scale:
    """Return a logarithmic scale that ends a little beyond the values above zero.

    Its ticks are 1, 2 and 5 times powers of ten; powers of ten alone where those would be more than eight; and evenly
    spaced where the values lie so close together that fewer than two of those are among them.
    """
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    margin = max(1.02, (high / low) ** 0.04) if high > low else 1.5
    low, high = low / margin, high * margin
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = math.ceil(len(powers) / 8)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    ticks = [tick for tick in fine if low <= tick <= high]
    if len(ticks) > 8:
        ticks = [10.0**power for power in powers if power % stride == 0 and low <= 10.0**power <= high]
    if len(ticks) < 2:
        ticks = [tick for tick in linear([low, high]).ticks if low <= tick <= high]
    return Scale(low, high, log=True, ticks=tuple(ticks))


@dataclass(frozen=True)
class Heat:
    """The colour scale: values in nats to one of `STEPS` steps."""

    scale: Scale

    def step(self, value: float | None) -> int | None:
        """Return the colour step of a value, 0 (least) to `STEPS` - 1, or None where nothing was measured."""
        if value is None or not math.isfinite(value):
            return None
        return min(STEPS - 1, int(self.scale.at(value) * STEPS))

    @property
    def middle(self) -> float:
        """The value in the middle of the colour scale."""
        low, high = self.scale.low, self.scale.high
        return math.sqrt(low * high) if self.scale.log else (low + high) / 2


def heat(values: Iterable[float | None]) -> Heat | None:
    """Return the colour scale for these values, logarithmic where they span more than a factor of thirty."""
    known = finite(values)
    if not known:
        return None
    positive = [value for value in known if value > 0]
    if spans_decades(known, 30):
        return Heat(Scale(min(positive), max(positive), log=True))
    high = max(known)
    low = min(0.0, min(known))
    return Heat(Scale(low, high if high > low else low + 1.0))
