"""From activations to tables: how directions separate, what varies, how far activations lie along vectors."""

from .component_factors import component_factors
from .logit_lens import logit_lens
from .mean_projections import mean_projections
from .pca import pca
from .projections import projections
from .separation import balanced_folds, separation
from .traces import mean_traces, trace_difference, traces
from .vector_components import vector_components

__all__ = [
    "balanced_folds",
    "component_factors",
    "logit_lens",
    "mean_projections",
    "mean_traces",
    "pca",
    "projections",
    "separation",
    "trace_difference",
    "traces",
    "vector_components",
]
