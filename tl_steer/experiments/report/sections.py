"""A part of the report: a heading, what to read from it, and figures or tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .report_tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the report: heading, what to read from it, and a figure, tables, or both."""

    id: str
    title: str
    read: str
    figures: Sequence[tuple[str, Markup]] = ()
    tables: Sequence[Table] = ()


def drawn(id_: str, plot: Callable[..., Any], table: pd.DataFrame, **options: Any) -> tuple[str, Markup]:
    """A figure's id, and its HTML without plotly.js, which the page holds once."""
    figure = plot(table, **options)
    config = {"displaylogo": False, "responsive": True}
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{id_}", config=config)
    return id_, Markup(div)
