"""Model organisms: small models in which the truth is planted, and what the estimators find of it."""

from .comparison import compare_estimators
from .planted import planted_direction
from .prompts import organism_pairs, organism_passages, organism_questions

__all__ = [
    "compare_estimators",
    "organism_pairs",
    "organism_passages",
    "organism_questions",
    "planted_direction",
]
