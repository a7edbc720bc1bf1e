"""Losses and accuracies along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.figure_style import BLUE, GREY, VERMILLION, Array, new_figure, value_axis

SERIES = (("train", "training samples", BLUE, "-", "o"), ("test", "test samples", VERMILLION, "--", "s"))


def training_curve(history: Mapping[str, Array], steps: Sequence[int]) -> Figure | None:
    """Losses and accuracies along training.

    history: columns step, train_loss, train_accuracy, test_loss, test_accuracy, NaN where not defined.
    steps: where the matrix was taken; each is marked.
    """
    kinds = [
        kind for kind in ("loss", "accuracy") if any(_defined(history, f"{who}_{kind}") for who, *_ in SERIES)
    ]
    if not kinds:
        return None
    figure = new_figure(width=8.0 if len(kinds) == 1 else 10.0, height=4.2)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _curves(axes, history, kind)
        _mark(axes, steps)
        axes.set(xlabel="training step", title=kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if kind == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def _defined(history: Mapping[str, Array], column: str) -> bool:
    return column in history and bool(np.isfinite(history[column]).any())


def _curves(axes: Any, history: Mapping[str, Array], kind: str) -> None:
    drawn = []
    for who, label, color, line, marker in SERIES:
        if _defined(history, f"{who}_{kind}"):
            values = history[f"{who}_{kind}"]
            known = np.isfinite(values)
            marker = marker if known.sum() <= 40 else ""
            steps = history["step"][known]
            axes.plot(
                steps,
                values[known],
                line,
                marker=marker,
                markersize=4,
                linewidth=1.5,
                color=color,
                label=label,
            )
            drawn.append(values[known])
    if kind == "loss":
        value_axis(axes, "y", np.concatenate(drawn))


def _mark(axes: Any, steps: Sequence[int]) -> None:
    for i, step in enumerate(steps):
        axes.axvline(
            step, color=GREY, linewidth=1.2, linestyle=":", label="" if i else "spectrum taken here", zorder=1
        )
