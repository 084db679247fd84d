"""Figures from tables: each function takes a tidy DataFrame and gives a `plotly.graph_objects.Figure`.

They compute no statistic, show nothing and save nothing. plotly is loaded with the first figure.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dose_curves import dose_response
    from .effectiveness_curves import effectiveness
    from .pca_scatter import pca
    from .projection_histograms import projections
    from .separation_curve import separation
    from .signal_plane import signal_detection

__all__ = ["dose_response", "effectiveness", "pca", "projections", "separation", "signal_detection"]

# No module is named like its function: importing it would put the module in the function's place.
_HOMES = {
    "dose_response": "dose_curves",
    "effectiveness": "effectiveness_curves",
    "pca": "pca_scatter",
    "projections": "projection_histograms",
    "separation": "separation_curve",
    "signal_detection": "signal_plane",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
