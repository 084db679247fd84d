"""Figures from tables: each function takes a tidy DataFrame and returns a `plotly.graph_objects.Figure`.

`side_by_side` and `tokens` return HTML (`.save(path)`, `.write_image(path)`).

A figure has the name of the function whose table it draws; a table that it cannot draw raises ValueError.
Figures compute no inferential statistics, and neither show nor save. plotly loads with the first figure.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparisons import against_baselines, choose, compare_estimators, preference
    from .components import pca, vector_components
    from .effect_maps import against_controls, effect_map
    from .heat_maps import component_factors, confounds, logit_lens
    from .histograms import projections
    from .layer_curves import agreement, mean_projections, separation
    from .planes import effect_and_damage, signal_detection
    from .slope_figures import prompt_slopes, steerability
    from .style import for_print
    from .sweep_curves import damage, dose_response, effectiveness, embedding_scores
    from .text_figures import traces
    from .text_table import side_by_side
    from .token_texts import tokens

_MODULES = {
    "comparisons": ("against_baselines", "choose", "compare_estimators", "preference"),
    "components": ("pca", "vector_components"),
    "effect_maps": ("against_controls", "effect_map"),
    "heat_maps": ("component_factors", "confounds", "logit_lens"),
    "histograms": ("projections",),
    "layer_curves": ("agreement", "mean_projections", "separation"),
    "planes": ("effect_and_damage", "signal_detection"),
    "slope_figures": ("prompt_slopes", "steerability"),
    "style": ("for_print",),
    "sweep_curves": ("damage", "dose_response", "effectiveness", "embedding_scores"),
    "text_figures": ("traces",),
    "text_table": ("side_by_side",),
    "token_texts": ("tokens",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "against_baselines", "against_controls", "agreement", "choose", "compare_estimators",
    "component_factors", "confounds", "damage", "dose_response", "effect_and_damage", "effect_map",
    "effectiveness", "embedding_scores", "for_print",
    "logit_lens", "mean_projections", "pca", "preference", "projections", "prompt_slopes", "separation",
    "side_by_side", "signal_detection", "steerability", "tokens", "traces", "vector_components",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
