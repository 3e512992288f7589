"""How all pictures of the project look: nobody needs to see colours to read one.

Colours are Okabe and Ito's (2008), which differ for people with any kind of colour vision. Lines
also differ in style and mark.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure


class LineStyle(NamedTuple):
    """How one line is drawn, as the keywords of ``Axes.plot``."""

    color: str
    linestyle: str
    marker: str


#: Styles of lines in the order of their use.
LINE_STYLES = (
    LineStyle("#0072B2", "-", "o"),
    LineStyle("#D55E00", "--", "s"),
    LineStyle("#009E73", "-.", "^"),
    LineStyle("#CC79A7", "-", "v"),
    LineStyle("#E69F00", "--", "D"),
    LineStyle("#56B4E9", "-.", "P"),
    LineStyle("#000000", ":", "X"),
)
#: Of bars and marks: those of this package, and others.
OURS, OTHERS = "#0072B2", "#A9B4BF"
#: What matplotlib's settings are while axes are made.
STYLE: Any = {
    "axes.prop_cycle": cycler(
        color=[style.color for style in LINE_STYLES],
        linestyle=[style.linestyle for style in LINE_STYLES],
        marker=[style.marker for style in LINE_STYLES],
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
}
#: Dots per inch of a picture that is saved.
DPI = 130


class Picture(Figure):
    """A figure that a notebook shows where it is the last line of a cell."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save it, as matplotlib's figures do; ``dpi`` is ``DPI`` (130) where it is not given."""
        super().savefig(fname, **({"dpi": DPI} | options))

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()

    def _repr_html_(self) -> str:
        found = dict.fromkeys(axes.get_title() for axes in self.axes)
        titles = ", ".join(title for title in found if title)
        text = escape(f"Picture: {titles}" if titles else "Picture")
        pixels = base64.b64encode(self._repr_png_()).decode("ascii")
        return f'<img alt="{text}" src="data:image/png;base64,{pixels}">'


def picture(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any
) -> tuple[Picture, Any]:
    """Return a figure and its axes in the project's style, outside of pyplot's list of figures.

    :param rows: of panels.
    :param columns: of panels.
    :param size: width and height in inches.
    :param options: of ``Figure.subplots``, such as ``sharey`` and ``squeeze``.
    """
    with matplotlib.rc_context(STYLE):
        figure = Picture(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, **options)
