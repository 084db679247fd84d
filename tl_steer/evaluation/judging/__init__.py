"""A language model as judge of two texts: asked in both orders, patiently, and never twice the same."""

from .asking import judge, judge_cost
from .cost import JudgeCost
from .preferences import preference
from .retries import JudgeError

__all__ = ["JudgeCost", "JudgeError", "judge", "judge_cost", "preference"]
