"""Claims, contrast pairs, choice questions, and what confounds them."""

from .audit import audit
from .data import (
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_neutral,
    read_pairs,
    read_questions,
    read_reviews,
)
from .honesty import honesty_pairs
from .pairs import (
    SIDES,
    ContrastPairs,
    contrast_pairs,
    factors_by_side,
    group_numbers,
    sided_factors,
)
from .questions import ChoiceQuestions, claim_questions, misconception_questions, sentiment_questions

__all__ = [
    "SIDES",
    "ChoiceQuestions",
    "ContrastPairs",
    "audit",
    "claim_questions",
    "contrast_pairs",
    "factors_by_side",
    "group_numbers",
    "honesty_pairs",
    "misconception_questions",
    "read_claims",
    "read_dilemmas",
    "read_misconceptions",
    "read_neutral",
    "read_pairs",
    "read_questions",
    "read_reviews",
    "sentiment_questions",
    "sided_factors",
]
