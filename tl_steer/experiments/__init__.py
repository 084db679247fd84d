"""An experiment file to a run folder and a report."""

from .effect_findings import effect_finding, ranking_finding
from .experiment import Experiment
from .findings import choice_finding, mass_finding, separation_finding, text_finding
from .reading import own_experiments, read_experiment
from .report import report_html, write_report
from .results import Results
from .run import UnfinishedRunError, run

__all__ = [
    "Experiment",
    "Results",
    "UnfinishedRunError",
    "choice_finding",
    "effect_finding",
    "mass_finding",
    "own_experiments",
    "ranking_finding",
    "read_experiment",
    "report_html",
    "run",
    "separation_finding",
    "text_finding",
    "write_report",
]
