"""Answers recorded elsewhere, as the table that a sweep makes, and several unsteered draws of them."""

from .baselines import against_baselines
from .table import read_recorded

__all__ = ["against_baselines", "read_recorded"]
