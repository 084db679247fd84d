"""Sweeps, and what their tables say: effects with intervals, sensitivity and bias, honest choosing."""

from .choosing import choose
from .effectiveness import effectiveness
from .embedding import embedding_effect, embedding_scores, exemplar_accuracy
from .judging import JudgeCost, JudgeError, judge, judge_cost, preference
from .reading import read_choice
from .recorded import read_recorded
from .side_by_side import side_by_side
from .signal_detection import signal_detection
from .sweep import sweep

__all__ = [
    "JudgeCost",
    "JudgeError",
    "choose",
    "effectiveness",
    "embedding_effect",
    "embedding_scores",
    "exemplar_accuracy",
    "judge",
    "judge_cost",
    "preference",
    "read_choice",
    "read_recorded",
    "side_by_side",
    "signal_detection",
    "sweep",
]
