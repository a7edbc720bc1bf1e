"""What all figures share: colors, sizes, axes with a sign and a logarithm, and the way to a file.

Nothing here touches pyplot, and the settings of the user's own matplotlibrc play no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, LogFormatterSciNotation, NullLocator
from numpy.typing import NDArray
from PIL import Image

from pipeline.results import number
from pipeline.system import replacing

Array = NDArray[Any]

# Okabe and Ito's palette, told apart by all common forms of color vision.
BLUE, VERMILLION, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
INK, GREY, PALE = "#1F2430", "#6B7280", "#E5E7EB"
DPI = 200  # at a width of 5.3 inches on paper that is 300
WIDTH, HEIGHT = 8.0, 4.5  # inches: 16:9, a slide

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "svg.hashsalt": "figures",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of the figures that are made and saved inside; what was set outside returns afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(context: str = "", width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure with a line in grey at its top that says what is shown."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    if context:
        figure.suptitle(context, x=0.01, ha="left", fontsize=9, color=GREY)
    return figure


def save_png(figure: Figure, path: Path) -> tuple[int, int]:
    """Write the figure, whole or not at all, and return its width and height in pixels.

    `savefig` would lay the figure out and draw it twice, which is half of a report's time.
    """
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with replacing(path) as partial:
        image.save(partial, format="png", compress_level=4, dpi=(DPI, DPI))
    return image.size


def save(figure: Figure, path: Path) -> None:
    """Write the figure as its name ends: .png, or as vectors .pdf or .svg, the same to the byte at any time."""
    if path.suffix == ".png":
        save_png(figure, path)
        return
    undated = {".pdf": "CreationDate", ".svg": "Date"}[path.suffix]
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=DPI, metadata={undated: None})


def say(axes: Any, text: str) -> None:
    """A sentence in the middle of axes that have nothing to draw."""
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def power(exponent: int, sign: int = 1) -> str:
    """A power of ten as a tick label."""
    return f"${'-' if sign < 0 else ''}10^{{{exponent}}}$"


def signed_log(
    axes: Any, which: str, low: float, high: float, threshold: float, num_ticks: int = 9, whole: bool = False
) -> None:
    """Make `which` ("x" or "y") logarithmic on both sides of zero and linear within about +-threshold.

    The coordinate is asinh(value / threshold), which has no kink. Ticks: zero and powers of ten, so few that
    their labels keep apart. whole: labels are whole numbers, as of steps.
    """

    def decades(value: float) -> float:
        return math.asinh(value / threshold) / math.log(10)

    room = (decades(high) - decades(low)) / num_ticks  # for one label
    stride = max(1, math.ceil(room))
    ticks, labels = [0.0], ["0"]
    for sign, end in ((-1, -low), (1, high)):
        exponent = math.floor(math.log10(end) + 1e-9) if end > 0 else 0
        while end > 0 and decades(10.0**exponent) >= 0.8 * room:
            ticks.append(sign * 10.0**exponent)
            labels.append(f"{sign * 10**exponent:,}" if whole else power(exponent, sign))
            exponent -= stride
    getattr(axes, f"set_{which}scale")("asinh", linear_width=threshold)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(NullLocator())
    getattr(axes, f"set_{which}lim")(low, high)


class PlainLabels(LogFormatterSciNotation):
    """Labels 0.2, 0.5 on a logarithmic axis that spans too little for powers of ten alone."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return number(float(x), 1) if super().__call__(x, pos) else ""


def log_labels(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis from `low` to `high` by plain numbers where powers of ten are too few."""
    if high < 30 * low:
        axis.set_major_formatter(PlainLabels())
        axis.set_minor_formatter(PlainLabels(minor_thresholds=(2, 0.5)))
