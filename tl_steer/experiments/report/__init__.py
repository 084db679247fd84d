"""The report of a run: one HTML page of findings, sections with figures and tables, and texts."""

from .page import report_html, write_report

__all__ = ["report_html", "write_report"]
