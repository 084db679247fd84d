"""An experiment file to a run folder and a report."""

from ._run import run
from .config_file import Experiment, own_experiments, read_experiment
from .report import report_html, write_report
from .results import Results

__all__ = [
    "Experiment",
    "Results",
    "own_experiments",
    "read_experiment",
    "report_html",
    "run",
    "write_report",
]
