"""The report: verdict, evidence and texts of an experiment on one HTML page."""

from .from_tables import report
from .page import report_page
from .results import Results, Settings

__all__ = ["Results", "Settings", "report", "report_page"]
