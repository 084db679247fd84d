"""From activations to tables: how directions separate, what varies, how far activations lie along vectors."""

from .agreement import agreement, method_agreement
from .component_factors import component_factors
from .confounds import confounds
from .logit_lens import logit_lens
from .mean_projections import mean_projections
from .pca import pca
from .projections import projections
from .separation import balanced_folds, separation
from .traces import mean_traces, trace_difference, traces
from .vector_components import vector_components

__all__ = [
    "agreement",
    "balanced_folds",
    "component_factors",
    "confounds",
    "logit_lens",
    "mean_projections",
    "mean_traces",
    "method_agreement",
    "pca",
    "projections",
    "separation",
    "trace_difference",
    "traces",
    "vector_components",
]
