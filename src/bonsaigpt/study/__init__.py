"""The experiments that a user runs by name: many runs from one plan, and what they say together."""

from bonsaigpt.measure.statistics import Difference, Estimate, estimate, paired_difference

__all__ = ["Difference", "Estimate", "estimate", "paired_difference"]
