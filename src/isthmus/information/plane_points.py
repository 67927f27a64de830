"""Points of the information plane as data, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.errors import BadInput
from isthmus.information.result import Information, Null

FORMAT = "isthmus information plane"
VERSION = 1


@dataclass(frozen=True)
class PlanePoint:
    """One layer at one step of training.

    Parameters
    ----------
    step : int
    path : str
        Of the module.
    noise : float
        Standard deviation of the noise added to the layer, in its units; 0 for none.
    input, label : Information
        What the layer shares with the input, and with the label; each "not estimable" with its reason where it is.
    """

    step: int
    path: str
    noise: float
    input: Information
    label: Information


def points_to_json(points: Iterable[PlanePoint]) -> str:
    """Return points as JSON, one a line."""
    rows = ",\n".join(json.dumps(asdict(point), allow_nan=False) for point in points)
    return f'{{"format": "{FORMAT}", "version": {VERSION}, "points": [\n{rows}\n]}}\n'


def points_from_json(text: str, name: str = "information plane") -> tuple[PlanePoint, ...]:
    """Return the points that `points_to_json` wrote.

    Raises
    ------
    BadInput
        If the text is something else.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        return tuple(_point(**row) for row in data["points"])
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"{name}: not a recorded plane ({reason}); give what InformationPlane.save wrote") from None


def _point(step: int, path: str, noise: float, input: dict[str, Any], label: dict[str, Any]) -> PlanePoint:
    return PlanePoint(int(step), str(path), float(noise), _information(**input), _information(**label))


def _information(
    interval: list[float] | None, null: dict[str, Any] | None, dimensions: list[int], warnings: list[str], **rest: Any
) -> Information:
    return Information(
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        null=None if null is None else Null(**null),
        dimensions=(int(dimensions[0]), int(dimensions[1])),
        warnings=tuple(warnings),
        **rest,
    )
