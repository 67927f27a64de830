"""The report: one self-contained HTML page from plain data."""

from isthmus.report.bins import binned, kept_shares
from isthmus.report.data import (
    BINS,
    Curve,
    Distortion,
    EngineRow,
    Example,
    Quality,
    ReportData,
    Saving,
    SiteRow,
)
from isthmus.report.page import render, write

__all__ = [
    "BINS",
    "Curve",
    "Distortion",
    "EngineRow",
    "Example",
    "Quality",
    "ReportData",
    "Saving",
    "SiteRow",
    "binned",
    "kept_shares",
    "render",
    "write",
]
