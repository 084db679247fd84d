"""Model organisms: small models in which the truth is planted, and what the estimators find of it."""

from ._compare_estimators import compare_estimators
from .organism_prompts import organism_pairs, organism_passages, organism_questions
from .planted import planted_direction

__all__ = [
    "compare_estimators",
    "organism_pairs",
    "organism_passages",
    "organism_questions",
    "planted_direction",
]
