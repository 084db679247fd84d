"""A language model as judge of two texts, shown in both orders, and as writer of exemplar answers."""

from .asking import judge, judge_cost
from .cost import JudgeCost
from .exemplar_writer import exemplar_cost, write_exemplars
from .preferences import preference
from .retries import JudgeError

__all__ = [
    "JudgeCost",
    "JudgeError",
    "exemplar_cost",
    "judge",
    "judge_cost",
    "preference",
    "write_exemplars",
]
