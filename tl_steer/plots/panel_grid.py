"""Small multiples with shared axes, for the figures of a sweep."""

from collections.abc import Sequence
from textwrap import wrap

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .cells import Panel
from .template import HEIGHT

ROW = 340  # pixels of each further row of panels
CHARACTERS = 78  # of an axis title, across a figure that is 700 pixels wide


class PanelGrid:
    """A figure with a panel for each `Panel`, at most three beside each other, and one legend for all.

    Args:
        panels: what to draw, in reading order.
        x_title, y_title: written once a row and column.
        y_range: lower and upper end; by default what the data need.
    """

    def __init__(
        self,
        panels: Sequence[Panel],
        *,
        x_title: str,
        y_title: str,
        y_range: tuple[float, float] | None = None,
    ) -> None:
        self.columns = min(len(panels), 3) if len(panels) != 4 else 2
        self.rows = -(-len(panels) // self.columns)
        self.height = HEIGHT + ROW * (self.rows - 1)
        self.figure = make_subplots(
            rows=self.rows,
            cols=self.columns,
            shared_xaxes="all",
            shared_yaxes="all",
            horizontal_spacing=0.03,
            vertical_spacing=0.16 / self.rows,
            subplot_titles=[panel.title for panel in panels] if len(panels) > 1 else None,
        )
        self.figure.update_annotations(font_size=13)  # the panels' titles
        self.figure.update_layout(margin_t=76 if len(panels) == 1 else 100)
        # A long title under each of several panels would run into the next.
        is_long = len(x_title) > CHARACTERS // self.columns
        middle = 2 if is_long and self.columns == 3 else None
        lines = wrap(x_title, CHARACTERS // 2) if is_long and self.columns == 2 else [x_title]
        self.figure.update_xaxes(title_text="<br>".join(lines), row=self.rows, col=middle)
        self.figure.update_yaxes(title_text=y_title, col=1)
        # Said outright: plotly.js does not find the range of matched axes beside x axes whose range is set.
        self.figure.update_yaxes(range=y_range, autorange=y_range is None)
        self._named: set[str] = set()

    def add(self, place: int, trace: go.Scatter, group: str, *, rank: int = 500) -> None:
        """Draw into panel `place` (from 0); of the traces of a group, only the first is in the legend.

        Args:
            rank: place in the legend, smallest first.
        """
        trace.update(legendgroup=group, legendrank=rank)
        trace.update(showlegend=trace.showlegend is not False and group not in self._named)
        if trace.showlegend:
            self._named.add(group)
        row, column = divmod(place, self.columns)
        self.figure.add_trace(trace, row=row + 1, col=column + 1)
