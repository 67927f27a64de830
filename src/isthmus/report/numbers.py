"""Numbers as text: one way for every figure on the page."""

from __future__ import annotations

import math

SPACE = "\u00a0"
MINUS = "\u2212"
TIMES = "\u00d7"
NONE = "\u2013"

_PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _fixed(value: float, digits: int) -> str:
    """Write a value with so many significant digits, without an exponent and with a true minus sign."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):.{decimals}f}"
    # Rounding may have added a digit: 9.996 becomes 10.00, which is one digit too many.
    if decimals and len(text.replace(".", "").lstrip("0")) > digits:
        text = f"{abs(value):.{decimals - 1}f}"
    return (MINUS if value < 0 else "") + text


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Write an amount with an SI prefix, such as ``22.7 M``, ``90.9 MB`` or ``3.42 ms``.

    Parameters
    ----------
    value : float or None
        The amount in ``unit``; None and not-a-number give a dash.
    unit : str
        ``""``, ``"B"``, or a unit of time, which is brought to the nearest prefix.
    digits : int
        Significant digits.
    """
    if value is None or not math.isfinite(value):
        return NONE
    timed = unit in _SECONDS
    symbol, lowest = ("s", -3) if timed else (unit, 0)
    value = value * _SECONDS[unit] if timed else value
    power = min(4, max(lowest, math.floor(math.log10(abs(value)) / 3))) if value else 0
    if power < 4 and abs(float(f"{value / 1000**power:.{digits - 1}e}")) >= 1000:
        power += 1
    scaled = value / 1000**power
    whole = power == 0 and not timed and float(value).is_integer()
    number = (MINUS if value < 0 else "") + f"{abs(value):.0f}" if whole else _fixed(scaled, digits)
    suffix = _PREFIXES[power] + symbol
    return f"{number}{SPACE}{suffix}" if suffix else number


def tick(value: float, unit: str = "") -> str:
    """Write a round value beside an axis: an amount with its prefix and no trailing zeros."""
    number, space, prefix = si(value, unit).partition(SPACE)
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + prefix


def nats(value: float | None, *, unit: bool = True) -> str:
    """Write an amount of information: ``0.0123 nats``, or a power of ten where it is tiny."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        number = _fixed(value, 3)
    else:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = str(int(exponent)).translate(_SUPERSCRIPTS)
        number = f"{mantissa.replace('-', MINUS)}{SPACE}{TIMES}{SPACE}10{power}"
    return f"{number} nats" if unit else number


def percent(share: float | None, digits: int = 3) -> str:
    """Write a share as a percentage, ``98.9 %``, with one decimal at most."""
    if share is None or not math.isfinite(share):
        return NONE
    number = share * 100
    decimals = 0 if number == 0 else max(0, min(1, digits - 1 - math.floor(math.log10(abs(number)) + 1e-9)))
    decimals = 1 if 99 < abs(number) < 100.05 else decimals
    text = "100" if number == 100 else f"{abs(number):.{decimals}f}"
    return f"{MINUS if number < 0 else ''}{text}{SPACE}%"


def bits(value: float | None) -> str:
    """Write bits a weight to one decimal."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1f}"


def metric(value: float | None) -> str:
    """Write a metric's value to four decimals, as papers do."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{MINUS if value < 0 else ''}{abs(value):.4f}"


def plain(value: float | None) -> str:
    """Write any other number in at most four significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{MINUS if value < 0 else ''}{abs(value):.0f}"
    if value and not 1e-3 <= abs(value) < 1e6:
        return nats(value, unit=False)
    return _fixed(value, 4).rstrip("0").rstrip(".")


def times(ratio: float) -> str:
    """Write a multiple: twice is 2.0 with the multiplication sign."""
    decimals = 0 if ratio >= 100 else 2 if ratio < 1.15 else 1
    return f"{ratio:.{decimals}f}{TIMES}"
