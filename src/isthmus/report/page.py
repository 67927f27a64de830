"""Rendering the page and writing it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from isthmus.errors import BadInput
from isthmus.report import numbers
from isthmus.report.auditdata import AuditData
from isthmus.report.auditviews import audit_page
from isthmus.report.data import ReportData
from isthmus.report.views import page
from isthmus.storage.files import write_atomic


@cache
def environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("isthmus.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        si=numbers.si,
        nats=numbers.nats,
        percent=numbers.percent,
        metric=numbers.metric,
        plain=numbers.plain,
        spoken=lambda text: text.replace("\n", ", "),
    )
    return environment


def render(data: ReportData) -> str:
    """Render a report as one HTML page that asks nothing of the network.

    Parameters
    ----------
    data : ReportData
        What to show; what is None or empty is left out.

    Returns
    -------
    str
        The page, with its style and script inside.
    """
    return environment().get_template("page.html.j2").render(page=page(data), data=data)


def write(data: ReportData, path: str | Path) -> None:
    """Render a report and write it whole or not at all.

    Raises
    ------
    BadInput
        If the page cannot be written there.
    """
    write_page(render(data), Path(path))


def render_audit(data: AuditData) -> str:
    """Render an audit as one HTML page that asks nothing of the network."""
    return environment().get_template("audit.html.j2").render(page=audit_page(data), data=data)


def write_audit(data: AuditData, path: str | Path) -> None:
    """Render an audit and write it whole or not at all.

    Raises
    ------
    BadInput
        If the page cannot be written there.
    """
    write_page(render_audit(data), Path(path))


def write_page(text: str, target: Path) -> None:
    try:
        write_atomic(target, text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"report {target}: {reason}; give a path in a folder that exists and can be written") from None
