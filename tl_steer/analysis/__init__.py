"""From activations to tables: separation, agreement, principal components, projections and lenses."""

from ._agreement import agreement, method_agreement
from ._components import component_factors, pca, vector_components
from ._confounds import confounds
from ._logit_lens import logit_lens
from ._projections import mean_projections, projections
from ._separation import separation
from ._traces import mean_traces, trace_difference, traces

__all__ = [
    "agreement", "component_factors", "confounds", "logit_lens", "mean_projections", "mean_traces",
    "method_agreement", "pca", "projections", "separation", "trace_difference", "traces",
    "vector_components",
]  # fmt: skip
