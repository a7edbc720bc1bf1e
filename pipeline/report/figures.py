"""The charts of a page as PNG files, by matplotlib: for papers, slides and the tracker.

A `Chart` describes what plotly.js draws; this is its other back end, so both show the same numbers. Of choices that a
reader of the page has, a picture shows the one that is made at first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.config import FIGURE_FORMATS
from pipeline.report.figure_style import Array, log_labels, new_figure, save, say, signed_log, style
from pipeline.report.page.page import THEMES, Arrays, Chart
from pipeline.results import number

PICTURES = {  # name of the file: the charts that stand in it side by side
    "density": ("density",),
    "distribution": ("distribution",),
    "eigenvalues": ("eigenvalues",),
    "directions": ("gradient_cosines", "participation"),
    "layers": ("layer_lambda_max", "layer_trace"),
    "block_norms": ("block_norms",),
    "batches": ("batch_eigenvalues", "batch_distances", "batch_overlaps"),
    "landscape": ("loss_lines", "loss_plane"),
    "training": ("loss", "accuracy"),
    "steps": ("along_lambda_max", "along_trace", "along_effective_rank"),
    "sharpness_steps": ("along_lambda_max_preconditioned",),
    "participation_steps": ("along_participation_ratio",),
    "gradient_steps": ("along_gradient_share_in_top_eigenspace", "cosine_steps"),
    "layer_steps": ("layers_along_lambda_max", "layers_along_trace"),
    "density_steps": ("density_steps",),
    "overlap_steps": ("overlap_steps",),
    "law": ("law_1", "law_2", "law_3"),
}
WIDTHS = {1: 8.0, 2: 10.0, 3: 12.5}  # inches, by the number of charts side by side
PIXELS = 92.0  # of a page to an inch of a picture
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-down": "v",
    "line-ns-open": "|",
    "line-ew-open": "_",
    "cross-thin-open": "+",
}
MOST_LABELS = 48


def draw_pictures(
    charts: Sequence[Chart],
    arrays: Arrays,
    choice: Mapping[str, str],
    context: str,
    folder: Path,
    formats: Sequence[str] = ("png",),
) -> Iterator[Path]:
    """Draw the charts into the files of `folder`, yielding each.

    A file whose charts are not there, or of another format, is removed: one of an earlier report would be taken for
    one of this.
    choice: of the whole page, such as {"step": "1000"}. context: a line on what is shown. formats: png, pdf, svg.
    """
    named = {chart.name: chart for chart in charts}
    for name, parts in PICTURES.items():
        shown = [named[part] for part in parts if part in named and named[part].visible(choice)]
        for other in FIGURE_FORMATS if not shown else set(FIGURE_FORMATS) - set(formats):
            (folder / f"{name}.{other}").unlink(missing_ok=True)
        for path in [folder / f"{name}.{each}" for each in formats]:
            if shown:
                with style():
                    save(picture(shown, arrays, choice, context), path)
            yield path


def picture(charts: Sequence[Chart], arrays: Arrays, choice: Mapping[str, str], context: str = "") -> Figure:
    """A figure of charts side by side."""
    height = max(chart.height for chart in charts) / PIXELS
    width = max(WIDTHS[len(charts)], 1.1 * height)
    if len(charts) == 1 and charts[0].span < 4:
        height = max(height, 4.8)
        width = max(1.2 * height, 6.5)  # a square and its color bar, under a line of context
    figure = new_figure(context, width, height + 0.3)
    panels = figure.subplots(1, len(charts), squeeze=False)[0]
    for axes, chart in zip(panels, charts, strict=True):
        _Panel(figure, axes, chart, arrays, width / len(charts)).draw(chart.visible(choice))
    return figure


class _Panel:
    """One chart on the axes of a figure; width: of its part of the figure, in inches."""

    def __init__(self, figure: Figure, axes: Any, chart: Chart, arrays: Arrays, width: float) -> None:
        self.figure, self.axes, self.chart, self.arrays, self.width = figure, axes, chart, arrays, width
        self.places: dict[str, dict[str, int]] = {}  # of the names along an axis that has names

    def draw(self, traces: Sequence[dict[str, Any]]) -> None:
        axes, layout = self.axes, self.chart.layout
        axes.set_facecolor(_color(layout.get("plot_bgcolor", "white")))
        for which in "xy":
            self._scale(which, layout.get(f"{which}axis", {}))
        before: Array | None = None
        for trace in traces:
            before = getattr(self, f"_{trace['type']}")(trace, before)
        for shape in layout.get("shapes", ()):
            line = shape["line"]
            axes.axvline(
                shape["x0"], color=_color(line["color"]), linestyle=LINES[line["dash"]], linewidth=1, zorder=1
            )
        for which in "xy":
            self._finish(which, layout.get(f"{which}axis", {}))
        self._legend(layout)

    def _scale(self, which: str, axis: Mapping[str, Any]) -> None:
        if axis.get("type") == "log":
            getattr(self.axes, f"set_{which}scale")("log")
        elif axis.get("type") == "category":
            names = dict.fromkeys(
                str(name) for trace in self.chart.traces for name in self.arrays.get(trace[which])
            )
            self.places[which] = {name: place for place, name in enumerate(names)}
        self.axes.grid(visible=axis.get("showgrid", True), axis=which)

    def _values(self, trace: Mapping[str, Any], which: str) -> Array:
        values = self.arrays.get(trace[which])
        if which in self.places:
            return np.array([self.places[which][str(name)] for name in values], float)
        return values.astype(float)

    def _scatter(self, trace: Mapping[str, Any], before: Array | None) -> Array:
        x, y = self._values(trace, "x"), self._values(trace, "y")
        line, marker = trace.get("line", {}), trace.get("marker", {})
        color = _color(line.get("color") or marker.get("color") or "@grey")
        if "fill" in trace:
            lower = before if trace["fill"] == "tonexty" and before is not None else np.nanmin(y)
            label = trace.get("name", "") if line.get("width") == 0 else ""
            fill = _color(trace["fillcolor"])
            self.axes.fill_between(x, lower, y, color=fill, linewidth=0, label=label)
        if line.get("width", 1) == 0:
            return y
        symbol = MARKERS[marker.get("symbol", "circle")]
        drawn = self.axes.plot(
            x,
            y,
            linestyle=LINES[line.get("dash", "solid")] if "lines" in trace["mode"] else "none",
            linewidth=0.85 * line.get("width", 2),
            marker=symbol if "markers" in trace["mode"] else "",
            markersize=0.85 * marker.get("size", 6),
            markeredgewidth=marker.get("line", {}).get("width", 0.0),
            color=color,
            alpha=trace.get("opacity", marker.get("opacity", 1.0)),
            label=_text(trace["name"]) if trace.get("name") and trace.get("showlegend", True) else "",
        )
        if symbol in "|_":  # as wide as they are meant to be, above what is under them
            drawn[0].set_zorder(3)
        return y

    def _bar(self, trace: Mapping[str, Any], _: Array | None) -> None:
        x, y = self._values(trace, "x"), self._values(trace, "y")
        self.axes.bar(x, y, width=trace["width"], color=_color(trace["marker"]["color"]))
        self.axes.set_xlim(x.min() - 0.7, x.max() + 0.7)

    def _heatmap(self, trace: Mapping[str, Any], _: Array | None) -> None:
        values = self.arrays.get(trace["z"]).astype(float)
        shown, norm = _colors(trace, values)
        if not shown.count():
            say(self.axes, self.chart.reading.rsplit(". ", 1)[-1])
        limits = {"norm": norm} if norm else {"vmin": trace["zmin"], "vmax": trace["zmax"]}
        if "x" in self.places:
            aspect = "equal" if self.chart.span <= 4 and shown.shape[0] == shown.shape[1] else "auto"
            image = self.axes.imshow(shown, cmap="viridis", aspect=aspect, **limits)
            self.axes.spines[:].set_visible(False)
        else:
            x = self._values(trace, "x")
            edges = np.append(x, x[-1] + (x[-1] - x[-2]))
            rows = np.arange(len(values) + 1) - 0.5
            image = self.axes.pcolormesh(edges, rows, shown, cmap="viridis", rasterized=True, **limits)
        if "texttemplate" in trace:
            self._write(image, shown, "%{z" in trace["texttemplate"])
        self._bar_of_colors(image, trace, norm)

    def _contour(self, trace: Mapping[str, Any], _: Array | None) -> None:
        x, y, values = (self.arrays.get(trace[key]).astype(float) for key in "xyz")
        shown, norm = _colors(trace, values)
        between = np.geomspace if norm else np.linspace
        levels = between(trace["zmin"], trace["zmax"] * (1 + 1e-4), trace["ncontours"] + 1)
        image = self.axes.contourf(x, y, shown, levels=levels, norm=norm, cmap="viridis")
        self._bar_of_colors(image, trace, norm, np.geomspace(levels[0], levels[-1], 5) if norm else None)

    def _bar_of_colors(
        self, image: Any, trace: Mapping[str, Any], norm: LogNorm | None, ticks: Array | None = None
    ) -> None:
        bar = self.figure.colorbar(image, ax=self.axes, pad=0.02, aspect=25)
        bar.outline.set_visible(False)
        bar.set_label(_text(trace.get("colorbar", {}).get("title", "")))
        if ticks is not None:
            bar.set_ticks(list(ticks), labels=[number(float(tick), 2) for tick in ticks])
            bar.minorticks_off()
        elif norm:
            log_labels(bar.ax.yaxis, trace["zmin"], trace["zmax"])
        else:
            bar.locator = MaxNLocator(6)
            bar.update_ticks()

    def _write(self, image: Any, shown: Any, shares: bool) -> None:
        """A number into each cell of a heat map, in the shade that can be read on its color."""
        dark = image.cmap(image.norm(shown))[..., :3] @ np.array([0.299, 0.587, 0.114]) < 0.5
        for (row, column), value in np.ndenumerate(np.ma.filled(shown, 0.0)):
            text = f"{value:.2f}" if shares else number(float(value), 3)
            shade = "white" if dark[row, column] else "black"
            self.axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=shade)

    def _finish(self, which: str, axis: Mapping[str, Any]) -> None:
        """The range, ticks and title of an axis, after all is drawn."""
        limits, ticks = getattr(self.axes, f"set_{which}lim"), getattr(self.axes, f"{which}axis")
        getattr(self.axes, f"set_{which}label")(_text(axis.get("title", "")))
        if which in self.places:
            self._names(which, ticks)
        elif which in self.chart.signed:
            low, high = axis["range"]
            most = max(4, int(1.3 * self.width))
            whole = axis.get("whole", False)
            signed_log(self.axes, which, low, high, self.chart.signed[which], most, whole)
        elif axis.get("type") == "log":
            low, high = (10.0**end for end in axis["range"])
            limits(low, high)
            log_labels(ticks, low, high)
        elif "range" in axis:
            limits(*axis["range"])
        elif axis.get("rangemode") == "tozero":
            limits(min(0.0, getattr(self.axes, f"get_{which}lim")()[0]), None)
        if axis.get("tickformat") == ".0%":
            ticks.set_major_formatter(PercentFormatter(1.0))
        elif which == "x" and "x" not in {*self.places, *self.chart.signed} and axis.get("type") != "log":
            whole = "dtick" in axis or "step" in axis["title"]
            ticks.set_major_locator(MaxNLocator(integer=whole, nbins=max(4, int(1.2 * self.width))))
            if whole:
                ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    def _names(self, which: str, ticks: Any) -> None:
        """Names at the ticks, as many as there is room for, upright where they are too long to lie."""
        names = [_text(name) for name in self.places[which]]
        most = min(MOST_LABELS, int(6 * self.width))
        chosen = range(0, len(names), -(-len(names) // most))
        size = 9.5 if len(names) <= 12 else 8 if len(names) <= 30 else 7
        room = 8.5 * self.width / max(1, len(chosen))  # characters that fit under one column
        lying = which == "y" or max(len(name) for name in names) <= room
        turned: dict[str, Any] = {}
        if not lying:
            few = len(names) <= 12 and max(map(len, names)) > 6
            turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
        ticks.set_ticks(list(chosen), [names[place] for place in chosen], fontsize=size, **turned)
        ticks.set_tick_params(length=0)

    def _legend(self, layout: Mapping[str, Any]) -> None:
        """A title, and under it a legend above the axes, in as many rows as its entries take."""
        size = min(11.0, 130 * (self.width - 1.1) / len(self.chart.title))  # points: it ends with the axes
        handles, labels = self.axes.get_legend_handles_labels()
        forced = any(trace.get("showlegend") for trace in self.chart.traces)
        if layout.get("showlegend", True) is False or not (len(handles) > 1 or (handles and forced)):
            self.axes.set_title(self.chart.title, fontsize=size)
            return
        longest = max(len(re.sub(r"[${}\\]|mathrm", "", label)) for label in labels) + 5
        columns = max(1, min(len(labels), int(11 * self.width / longest)))
        rows = -(-len(labels) // columns)
        corner = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.1}
        legend = self.axes.legend(handles, labels, ncols=columns, columnspacing=1.2, **corner)
        for handle in legend.legend_handles:
            if isinstance(handle, Line2D):  # lines that are faint are to be told apart here
                handle.set_alpha(1.0)
        self.axes.set_title(self.chart.title, fontsize=size, pad=8 + 15 * rows)


def _colors(trace: Mapping[str, Any], values: Array) -> tuple[Any, LogNorm | None]:
    """The values that have a color, and the norm of colors by the logarithm; None where they go by the value."""
    if not trace.get("logarithmic"):
        return np.ma.masked_invalid(values), None
    least = trace["zmin"] * (1 - 1e-4)  # arrays are rounded, bounds are not
    return np.ma.masked_less(np.nan_to_num(values), least), LogNorm(trace["zmin"], trace["zmax"], clip=True)


def _color(name: str) -> tuple[float, float, float, float]:
    """A color of the light theme, "@blue", or as CSS writes it."""
    text = THEMES["light"][name[1:]] if name.startswith("@") else name
    if text.startswith("rgba"):
        red, green, blue, alpha = map(float, text[5:-1].split(","))
        return red / 255, green / 255, blue / 255, alpha
    return to_rgba(text)


def _text(html: str) -> str:
    """A text of a page as matplotlib takes it; no character of a name starts a formula."""
    text = re.sub(r"</?span[^>]*>", "", html).replace("$", r"\$")
    text = re.sub(r"<sub>(.*?)</sub>", r"$_{\\mathrm{\1}}$", text)
    return re.sub(r"<sup>(.*?)</sup>", r"$^{\\mathrm{\1}}$", text)
