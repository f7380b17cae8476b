"""What quantizing each part of a model costs, and which parts to leave in float."""

from qdqpatch.sensitivity.measure import Sensitivity, UnitCost, measure
from qdqpatch.sensitivity.search import MixedPrecision, Trial, search
from qdqpatch.sensitivity.units import Unit, find_units

__all__ = [
    "MixedPrecision",
    "Sensitivity",
    "Trial",
    "Unit",
    "UnitCost",
    "find_units",
    "measure",
    "search",
]
