"""The report: one self-contained HTML page from plain data, of a narrowed network or of an audit."""

from isthmus.report.auditdata import AuditData, AuditedNetwork
from isthmus.report.bins import binned, kept_shares
from isthmus.report.data import (
    BINS,
    CodeRow,
    Curve,
    Distortion,
    EngineRow,
    Example,
    FrontierPoint,
    LayerProfile,
    Quality,
    ReportData,
    Saving,
    SiteRow,
)
from isthmus.report.page import render, render_audit, write, write_audit

__all__ = [
    "BINS",
    "AuditData",
    "AuditedNetwork",
    "CodeRow",
    "Curve",
    "Distortion",
    "EngineRow",
    "Example",
    "FrontierPoint",
    "LayerProfile",
    "Quality",
    "ReportData",
    "Saving",
    "SiteRow",
    "binned",
    "kept_shares",
    "render",
    "render_audit",
    "write",
    "write_audit",
]
