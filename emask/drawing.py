"""Figures and pictures as PNG: an empty matplotlib figure, the bytes of one, names that it can draw."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


NAME = 24  # characters, most of a name in a plot


def blank(width: float, height: float, dpi: int = 100) -> Figure | None:
    """An empty figure, width and height in inches; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which keeps figures and picks a window system
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as PNG; no version of matplotlib in it, so that equal figures give equal bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def encode_png(picture: Image) -> bytes:
    """A Pillow picture as PNG."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def plain(name: str) -> str:
    """A name as matplotlib can draw it: short, in one line, and not taken for a formula."""
    short = name if len(name) <= NAME else name[: NAME - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in short).replace("$", r"\$")
