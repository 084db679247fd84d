"""Results from generated text: read answers, LLM judges, embeddings, text damage, recorded answers."""

from .._read_choice import read_choice
from ._judge import judge, judge_cost, preference
from ._side_by_side import side_by_side
from ._text_damage import text_damage
from .embeddings import embedding_scores, exemplar_accuracy
from .exemplar_writer import exemplar_cost, write_exemplars
from .judge_requests import JudgeCost
from .recorded_table import read_recorded

__all__ = [
    "JudgeCost", "embedding_scores", "exemplar_accuracy", "exemplar_cost", "judge", "judge_cost",
    "preference", "read_choice", "read_recorded", "side_by_side", "text_damage", "write_exemplars",
]  # fmt: skip
