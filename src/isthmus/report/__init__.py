"""The report: one self-contained HTML page from plain data."""

from isthmus.report.bins import binned, kept_shares
from isthmus.report.data import (
    BINS,
    CodeRow,
    Curve,
    Distortion,
    EngineRow,
    Example,
    FrontierPoint,
    Quality,
    ReportData,
    Saving,
    SiteRow,
)
from isthmus.report.page import render, write

__all__ = [
    "BINS",
    "CodeRow",
    "Curve",
    "Distortion",
    "EngineRow",
    "Example",
    "FrontierPoint",
    "Quality",
    "ReportData",
    "Saving",
    "SiteRow",
    "binned",
    "kept_shares",
    "render",
    "write",
]
