"""The plan: which units of each site stay, and how each matrix is coded. Data: readable, editable, replayable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, model_validator
from pydantic.functional_validators import BeforeValidator

from isthmus.errors import BadInput

PLAN_VERSION = 2  # 2: matrices may be coded


def _to_ranges(units: tuple[int, ...]) -> str:
    """Write sorted indices as ``0-3,7,9-12``, which keeps a plan with thousands of tokens readable."""
    runs: list[str] = []
    start = previous = None
    for unit in (*units, None):
        if unit is not None and previous is not None and unit == previous + 1:
            previous = unit
            continue
        if start is not None:
            runs.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = unit
    return ",".join(runs)


def _from_ranges(value: object) -> object:
    if not isinstance(value, str):
        return value
    units: list[int] = []
    for run in filter(None, value.split(",")):
        first, _, last = run.partition("-")
        low, high = int(first), int(last or first)
        if high - low > 10_000_000:
            raise ValueError(f"the range {run} is too long")
        units.extend(range(low, high + 1))
    return tuple(units)


Units = Annotated[tuple[int, ...], BeforeValidator(_from_ranges), PlainSerializer(_to_ranges, return_type=str)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decision(_Record):
    """What happens to one site: the units that stay, of how many, and what that is predicted to lose (nats)."""

    site: str
    kind: str
    bottleneck: str
    units: int = Field(ge=1)
    keep: Units
    distortion: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Decision:
        keep = self.keep
        if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= self.units:
            raise ValueError(f"site {self.site}: keep must be rising indices from 0 to {self.units - 1}")
        return self


class Coding(_Record):
    """How one weight matrix is coded.

    Parameters
    ----------
    parameter : str
        Its name in the narrowed network.
    coder : str
        See ``isthmus methods``.
    bits, group, rank
        The setting: nominal bits a weight; columns that share a scale, or a vector's length; a product's inner
        dimension (0 where a coder has no such thing).
    bytes : int
        What it is predicted to take in the file.
    distortion : float
        What that is predicted to lose, in nats, before recovery.
    """

    parameter: str
    coder: str
    bits: float = Field(gt=0, le=16)
    group: int = Field(default=0, ge=0)
    rank: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    distortion: float = 0.0


class Plan(_Record):
    """The decisions for a whole network.

    ``predicted`` and ``original`` give the rates (params, bytes, macs, latency in ms) by currency; ``distortion``
    is the predicted loss in nats before recovery. ``precision`` is that of what the engine runs; ``activations`` are
    the bits that what enters linear maps is rounded to (None: not at all).
    """

    version: int = PLAN_VERSION
    network: str
    fingerprint: str
    method: str
    budget: str
    seed: int
    decisions: tuple[Decision, ...]
    codings: tuple[Coding, ...] = ()
    precision: str = "float32"
    activations: int | None = Field(default=None, ge=2, le=8)
    original: dict[str, float] = {}
    predicted: dict[str, float] = {}
    distortion: float = 0.0
    notes: tuple[str, ...] = ()

    def decision(self, site: str) -> Decision | None:
        """Return the decision for a site, or None where it is left as it is."""
        return next((decision for decision in self.decisions if decision.site == site), None)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n")


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises
    ------
    BadInput
        If the file is missing, is no plan, or is of a later version.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise BadInput(f"plan {path}: {error.strerror or error}; give the path of a plan that was saved") from None
    except ValueError as error:
        raise BadInput(f"plan {path}: not JSON ({error}); write it again with `isthmus plan`") from None
    if isinstance(data, dict) and isinstance(data.get("version"), int) and data["version"] > PLAN_VERSION:
        raise BadInput(f"plan {path}: version {data['version']} is newer than {PLAN_VERSION}; upgrade isthmus")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"plan {path}: {where}: {first['msg']}; mend that field or plan again") from None
