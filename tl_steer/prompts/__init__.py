"""Claims, contrast pairs, choice questions, and what confounds them."""

from .choice_questions import ChoiceQuestions, claim_questions, misconception_questions, sentiment_questions
from .honesty import honesty_pairs
from .pairs import ContrastPairs, audit, contrast_pairs
from .readers import (
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_neutral,
    read_pairs,
    read_prompts,
    read_questions,
    read_reviews,
)

__all__ = [
    "ChoiceQuestions", "ContrastPairs", "audit", "claim_questions", "contrast_pairs", "honesty_pairs",
    "misconception_questions", "read_claims", "read_dilemmas", "read_misconceptions", "read_neutral",
    "read_pairs", "read_prompts", "read_questions", "read_reviews", "sentiment_questions",
]  # fmt: skip
