"""Model organisms: small models trained to lie, to lean to one answer, or to use a planted direction."""

from .language import organism_pairs, organism_passages, organism_questions
from .planted import compare_estimators, planted_direction

__all__ = [
    "compare_estimators",
    "organism_pairs",
    "organism_passages",
    "organism_questions",
    "planted_direction",
]
