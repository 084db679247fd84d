"""Figures from tables: each function takes a tidy DataFrame and gives a `plotly.graph_objects.Figure`.

They compute no statistic, show nothing and save nothing. plotly is loaded with the first figure.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agreement_curves import agreement
    from .baseline_dots import baselines
    from .choice_dots import choices
    from .component_factor_heatmap import component_factors
    from .confound_heatmap import confounds
    from .damage_curves import damage
    from .dose_curves import dose_response
    from .effect_damage_plane import effect_and_damage
    from .effectiveness_curves import effectiveness
    from .embedding_curves import embedding_scores
    from .estimator_curves import estimators
    from .judgement_curves import judgements
    from .logit_lens_heatmap import logit_lens
    from .mean_projection_curves import mean_projections
    from .pca_scatter import pca
    from .projection_histograms import projections
    from .separation_curve import separation
    from .signal_plane import signal_detection
    from .sizes import sized
    from .slope_histogram import slopes
    from .steerability_curves import steerability
    from .text_table import texts
    from .trace_heatmaps import traces
    from .vector_component_histogram import vector_components

__all__ = [
    "agreement",
    "baselines",
    "choices",
    "component_factors",
    "confounds",
    "damage",
    "dose_response",
    "effect_and_damage",
    "effectiveness",
    "embedding_scores",
    "estimators",
    "judgements",
    "logit_lens",
    "mean_projections",
    "pca",
    "projections",
    "separation",
    "signal_detection",
    "sized",
    "slopes",
    "steerability",
    "texts",
    "traces",
    "vector_components",
]

# No module is named like its function: importing it would put the module in the function's place.
_HOMES = {
    "agreement": "agreement_curves",
    "baselines": "baseline_dots",
    "choices": "choice_dots",
    "component_factors": "component_factor_heatmap",
    "confounds": "confound_heatmap",
    "damage": "damage_curves",
    "dose_response": "dose_curves",
    "effect_and_damage": "effect_damage_plane",
    "effectiveness": "effectiveness_curves",
    "embedding_scores": "embedding_curves",
    "estimators": "estimator_curves",
    "judgements": "judgement_curves",
    "logit_lens": "logit_lens_heatmap",
    "mean_projections": "mean_projection_curves",
    "pca": "pca_scatter",
    "projections": "projection_histograms",
    "separation": "separation_curve",
    "signal_detection": "signal_plane",
    "sized": "sizes",
    "slopes": "slope_histogram",
    "steerability": "steerability_curves",
    "texts": "text_table",
    "traces": "trace_heatmaps",
    "vector_components": "vector_component_histogram",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
