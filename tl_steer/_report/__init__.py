"""The report: verdict, evidence and texts of an experiment on one HTML page."""

from .from_tables import report
from .results import Results, Settings

__all__ = ["Results", "Settings", "report"]
