"""The report of a run: one HTML page of findings, sections with figures and tables, and texts."""

from .findings import (
    choice_finding,
    effect_finding,
    mass_finding,
    prompts_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from .page import report_html, write_report

__all__ = [
    "choice_finding",
    "effect_finding",
    "mass_finding",
    "prompts_finding",
    "report_html",
    "separation_finding",
    "text_finding",
    "unreadable_finding",
    "write_report",
]
