"""An experiment file to a run folder and a report."""

from .files import Experiment, own_experiments, read_experiment
from .report import report_html, write_report
from .results import Results
from .run import UnfinishedRunError, run

__all__ = [
    "Experiment",
    "Results",
    "UnfinishedRunError",
    "own_experiments",
    "read_experiment",
    "report_html",
    "run",
    "write_report",
]
