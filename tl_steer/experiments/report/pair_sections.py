"""The report's sections about the pairs and the vectors made of them."""

import numpy as np
import pandas as pd

from ... import plots
from ..results import Results
from .report_tables import audit_table
from .sections import Section, drawn

MOST_MARKERS = 5
FIGURE_LAYERS = 7  # a scatter of every layer would make the file many times larger


def pair_sections(results: Results) -> list[Section]:
    """What differs between the sides, whether they separate, and where they lie."""
    return [_audit(results), _separation(results), _components(results), _projections(results)]


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    told = f"{names} may be carried by the vector too" if names else "none is marked here"
    read = (
        "The two sides should differ in the behaviour alone. What differs by more than a tenth of a standard "
        f"deviation is marked: {told}."
    )
    return Section("audit", "What differs between the two sides", read, tables=[audit_table(results.audit)])


def _separation(results: Results) -> Section:
    read = (
        "Directions are made on some pairs and tested on others. Above the dotted line they hold something "
        "that the labels are about: only 5 % of shuffled labels get that far at any layer. The grey band is "
        "what these get at each layer taken alone."
    )
    figure = drawn("separation", plots.separation, results.separation)
    return Section("separation", "Do the pairs separate?", read, [figure])


def _components(results: Results) -> Section:
    read = (
        "Each point is a prompt (hover to read it), placed by what varies most among all of them. Sides "
        "that fall apart differ in what varies most; sides that mix may still differ elsewhere."
    )
    table = results.components(_some_layers(results))
    symbol = _factor_by_side(table)
    figure = drawn("pca", plots.pca, table, layer=results.shown_layer, symbol=symbol)
    return Section("pca", "Where the prompts lie", read, [figure])


def _projections(results: Results) -> Section:
    read = (
        "How far each prompt lies along the vector, from both sides' mean. The vector was made of these "
        "very pairs, so this flatters it; the held-out pairs above do not."
    )
    table = results.projected(_some_layers(results))
    figure = drawn("projections", plots.projections, table, layer=results.shown_layer)
    return Section("projections", "Along the vector", read, [figure])


def _some_layers(results: Results) -> list[int]:
    """A handful of the captured layers, evenly spread, the one that is shown first among them."""
    layers, shown = results.activations.layers, results.shown_layer
    spread = np.linspace(0, len(layers) - 1, min(FIGURE_LAYERS, len(layers))).round().astype(int)
    some = [layers[place] for place in spread]
    nearest = min(some, key=lambda layer: abs(layer - shown))
    return sorted({*some} - {nearest} | {shown})


def _factor_by_side(table: pd.DataFrame) -> str | None:
    """A factor that differs between the sides of a pair (the letter), to be told apart from the behaviour."""
    known = list(table.columns)
    factors = [
        name
        for name in known[known.index("prompt") + 1 : known.index("PC1")]
        if name not in ("group", "label")
    ]
    few = [name for name in factors if 2 <= table[name].nunique() <= MOST_MARKERS]
    return next((name for name in few if table.groupby(["layer", "pair"])[name].nunique().max() > 1), None)
