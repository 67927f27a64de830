"""Mutual information between any two of input, a site and label, in nats, with an interval that counts bias in."""

from isthmus.information.auto import Auto
from isthmus.information.measuring import mutual_information
from isthmus.information.registry import ESTIMATORS, Estimator, get
from isthmus.information.result import Information, Null

__all__ = ["ESTIMATORS", "Auto", "Estimator", "Information", "Null", "get", "mutual_information"]
