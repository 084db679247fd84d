"""An experiment file to a run folder and a report."""

from .answer_shifts import answer_shifts
from .effect_findings import effect_finding, ranking_finding
from .experiment import Experiment
from .findings import (
    choice_finding,
    mass_finding,
    prompts_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from .reading import own_experiments, read_experiment
from .report import report_html, write_report
from .results import Results
from .run import UnfinishedRunError, run

__all__ = [
    "Experiment",
    "Results",
    "UnfinishedRunError",
    "answer_shifts",
    "choice_finding",
    "effect_finding",
    "mass_finding",
    "own_experiments",
    "prompts_finding",
    "ranking_finding",
    "read_experiment",
    "report_html",
    "run",
    "separation_finding",
    "text_finding",
    "unreadable_finding",
    "write_report",
]
