"""Sites: what can be made narrower, where it is, how it is closed and how it is removed."""

from isthmus.sites.discovery import LAYERS, VOCABULARY, WIDTH, discover, survey
from isthmus.sites.gates import closed_values, gated
from isthmus.sites.site import Attribute, Gate, Site, SiteKind, Slice
from isthmus.sites.surgery import check_kept, narrow_model
from isthmus.sites.traced import Survey

__all__ = [
    "LAYERS",
    "VOCABULARY",
    "WIDTH",
    "Attribute",
    "Gate",
    "Site",
    "SiteKind",
    "Slice",
    "Survey",
    "check_kept",
    "closed_values",
    "discover",
    "gated",
    "narrow_model",
    "survey",
]
