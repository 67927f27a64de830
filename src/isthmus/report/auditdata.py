"""What an audit found, as plain data: printed, kept as JSON, rendered as a page."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

from isthmus.audit.amplification import Amplification
from isthmus.audit.calibration import Calibration
from isthmus.audit.damage import Damage
from isthmus.audit.discovery import Discovered
from isthmus.audit.exemplars import Exemplars
from isthmus.audit.neighbours import Neighbours
from isthmus.audit.position import PositionBias
from isthmus.audit.resampling import Estimate
from isthmus.audit.robustness import Robustness
from isthmus.audit.selective import Selective
from isthmus.audit.transfer import Transfer


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class AuditedNetwork(_Record):
    """One network: whether it is an original, what it costs, and its mean loss on the audited examples."""

    name: str
    original: bool
    params: int
    bytes: int
    loss: Estimate


class AuditData(_Record):
    """Everything an audit found; what was not asked for or does not apply is None or empty.

    Parameters
    ----------
    loss_name : str
        The loss that damage is measured in; less is better.
    disagreement : Damage or None
        That of a loss that is 1 on an exemplar and 0 elsewhere: which slices the exemplars come from.
    calibration, selective : list
        One entry a network, the originals first.
    neighbours, position : list
        One entry a narrowed network, held against the first original.
    pictures : dict of str to str
        Where examples are images: those that are listed, small, as data URIs of PNG, by what they are called.
    """

    title: str
    task: str
    loss_name: str
    examples: int
    classes: int
    created: str
    version: str
    networks: list[AuditedNetwork]
    exemplars: Exemplars | None = None
    damage: Damage | None = None
    disagreement: Damage | None = None
    discovered: Discovered | None = None
    amplification: Amplification | None = None
    robustness: Robustness | None = None
    calibration: list[Calibration] = []
    selective: list[Selective] = []
    neighbours: list[Neighbours] = []
    position: list[PositionBias] = []
    transfer: Transfer | None = None
    pictures: dict[str, str] = {}
    record: dict[str, JsonValue] = {}
    warnings: list[str] = []
