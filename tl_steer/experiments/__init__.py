"""An experiment file to a run folder and a report."""

from ._run import run
from .config_file import Experiment, own_experiments, read_experiment
from .run_report import read_results, write_report

__all__ = [
    "Experiment",
    "own_experiments",
    "read_experiment",
    "read_results",
    "run",
    "write_report",
]
