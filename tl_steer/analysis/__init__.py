"""From activations to tables: how directions separate, what varies, how far activations lie along vectors."""

from ._agreement import agreement, method_agreement
from ._component_factors import component_factors
from ._confounds import confounds
from ._logit_lens import logit_lens
from ._mean_projections import mean_projections
from ._pca import pca
from ._projections import projections
from ._separation import separation
from ._traces import mean_traces, trace_difference, traces
from ._vector_components import vector_components

__all__ = [
    "agreement",
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
