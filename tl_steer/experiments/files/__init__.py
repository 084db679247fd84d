"""What an experiment file may say: a frozen dataclass a table, and the reader that checks them."""

from .experiment import Experiment
from .toml_reader import own_experiments, read_experiment

__all__ = ["Experiment", "own_experiments", "read_experiment"]
