"""Budgets: what the narrowed network may cost, in one or more currencies."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from isthmus.errors import BadBudget

Currency = Literal["params", "bytes", "macs", "latency", "cache"]
CURRENCIES: tuple[Currency, ...] = get_args(Currency)

_SUFFIXES: dict[str, dict[str, float]] = {
    "params": {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9},
    "macs": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "bytes": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "cache": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_EXAMPLES = {
    "params": "11M or 50%",
    "macs": "300M or 50%",
    "bytes": "45MB or 50%",
    "latency": "3.5ms or 50%",
    "cache": "2MB or 25%",
}


@dataclass(frozen=True)
class Limit:
    """One limit of a budget.

    Parameters
    ----------
    currency : {"params", "bytes", "macs", "latency", "cache"}
        What is counted. Bytes are those of the weight files on disk, latency is in ms, the cache in bytes of a sequence
        of as many tokens as the network reads.
    value : float
        The limit: an amount in the currency's unit, or a share of the original when ``relative``.
    relative : bool
        Whether ``value`` is a share (0 to 1) of what the original costs.
    """

    currency: Currency
    value: float
    relative: bool

    def amount(self, original: float) -> float:
        """Return the limit as an amount, given what the original network costs in the same currency."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        if self.relative:
            return f"{self.currency}={self.value * 100:g}%"
        unit = {"latency": "ms", "bytes": "B", "cache": "B"}.get(self.currency, "")
        return f"{self.currency}={self.value:.12g}{unit}"


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold on the finished artifact."""

    limits: tuple[Limit, ...]

    def __str__(self) -> str:
        return ",".join(str(limit) for limit in self.limits)

    @property
    def currencies(self) -> tuple[Currency, ...]:
        """The currencies in which something is limited, in the order given."""
        return tuple(limit.currency for limit in self.limits)

    def amounts(self, original: Mapping[str, float]) -> dict[Currency, float]:
        """Return every limit as an amount.

        Parameters
        ----------
        original : mapping of str to float
            What the original network costs, by currency.

        Raises
        ------
        BadBudget
            If a limit is not below what the original costs already.
        """
        amounts: dict[Currency, float] = {}
        for limit in self.limits:
            amount = limit.amount(original[limit.currency])
            if amount > original[limit.currency]:
                raise BadBudget(
                    f"budget {limit}: the original costs only {original[limit.currency]:.6g} {limit.currency}; "
                    f"give a smaller value, such as {limit.currency}=50%"
                )
            amounts[limit.currency] = amount
        return amounts


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``params=50%,latency=0.5x`` or ``bytes=45MB``.

    Parameters
    ----------
    text : str
        Comma-separated ``currency=value``; a value is an amount with its unit, a percentage or a multiple.

    Returns
    -------
    Budget

    Raises
    ------
    BadBudget
        If a currency is unknown or given twice, or a value is not a number above zero and at most 100 %.
    """
    limits: list[Limit] = []
    for part in text.split(","):
        name, separator, value = part.strip().partition("=")
        name = name.strip().lower()
        if not separator:
            raise BadBudget(f"budget {text!r}: {part.strip()!r} is not currency=value; write for example params=50%")
        if name not in CURRENCIES:
            near = difflib.get_close_matches(name, CURRENCIES, n=1)
            hint = f"did you mean {near[0]}?" if near else "the currencies are " + ", ".join(CURRENCIES)
            raise BadBudget(f"budget {text!r}: unknown currency {name!r}; {hint}")
        if name in (limit.currency for limit in limits):
            raise BadBudget(f"budget {text!r}: {name} is given twice; keep one of them")
        limits.append(_parse_limit(name, value.strip(), text))
    return Budget(tuple(limits))


def _parse_limit(currency: Currency, value: str, text: str) -> Limit:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", value.lower())
    example = f"write for example {currency}={_EXAMPLES[currency]}"
    if match is None:
        raise BadBudget(f"budget {text!r}: {value!r} is not an amount of {currency}; {example}")
    number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number <= 0:
        raise BadBudget(f"budget {text!r}: {currency} must be above zero; {example}")
    if unit in ("%", "x"):
        share = number / 100 if unit == "%" else number
        if share > 1:
            raise BadBudget(f"budget {text!r}: {value} of the original is above 100 %; {example}")
        return Limit(currency, share, relative=True)
    factor = _SUFFIXES[currency].get(unit)
    if factor is None:
        raise BadBudget(f"budget {text!r}: {value!r} has no unit of {currency}; {example}")
    return Limit(currency, number * factor, relative=False)


def parse_floor(text: str) -> float:
    """Read a floor such as ``98%`` or ``0.98`` and return it as a share of the original's metric.

    Raises
    ------
    BadBudget
        If it is not a number in (0, 1].
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%|x?)", text.strip())
    share = float(match[1]) / (100 if match[2] == "%" else 1) if match else math.nan
    if not 0 < share <= 1:
        raise BadBudget(f"floor {text!r} is not a share of the original's quality; write for example --keep 98%")
    return share
