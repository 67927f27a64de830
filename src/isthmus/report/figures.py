"""Pages of figures alone: sections of a few lines, charts and a table, for measures that have no views of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from isthmus.report.auditcharts import Chart
from isthmus.report.page import environment
from isthmus.report.siteviews import SiteTable


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, what is said of it, a line a paragraph, its charts and its table."""

    title: str
    lead: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    table: SiteTable | None = None


def render_figures(title: str, kind: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Render sections as one HTML page that asks nothing of the network.

    Parameters
    ----------
    title, kind : str
        What the page is of, and what sort of page it is.
    facts : sequence of (str, str)
        Names and values that stand under the title.
    sections : sequence of Section
    """
    template = environment().get_template("figures.html.j2")
    return template.render(title=title, kind=kind, facts=facts, sections=sections, version=version("isthmus"))
