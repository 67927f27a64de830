"""The doctor: proves on any network that its anatomy is right, site by site, and that what is narrowed can be kept."""

from isthmus.doctor.diagnosis import Check, Diagnosis, diagnose

__all__ = ["Check", "Diagnosis", "diagnose"]
