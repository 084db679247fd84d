"""Texts scored by how near their embeddings are to exemplars of two kinds."""

from .exemplars import exemplar_accuracy
from .scores import embedding_effect, embedding_scores

__all__ = ["embedding_effect", "embedding_scores", "exemplar_accuracy"]
