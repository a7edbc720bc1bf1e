"""Charts of the loss along the top eigenvectors, beside the quadratic that the eigenvalues describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.page.page import Arrays, Chart
from pipeline.results import number

if TYPE_CHECKING:
    from pipeline.results import LandscapeFile

COLORS = ("@blue", "@orange", "@green")
HEIGHT = 390


def lines(slices: Mapping[int, LandscapeFile], arrays: Arrays) -> Chart:
    """The loss on a line along each of the top eigenvectors; dotted, the quadratic."""
    traces: list[dict[str, Any]] = []
    for step, file in slices.items():
        for i, eigenvalue in enumerate(file.lines.eigenvalues):
            losses, model = file.lines.losses[i], file.lines.quadratic(i)
            # the quadratic ends where the picture does
            within = np.where(model <= np.nanmax(losses) * 1.05, model, np.nan)
            common = {
                "type": "scatter",
                "mode": "lines",
                "x": arrays.put(file.lines.distances[i]),
                "legendgroup": str(i),
                "meta": {"step": step},
                "hovertemplate": f"v<sub>{i + 1}</sub>, distance %{{x:.3~g}}<br>%{{y:.5~g}}<extra></extra>",
            }
            solid = {
                "name": f"v<sub>{i + 1}</sub>, λ = {number(float(eigenvalue), 3)}",
                "y": arrays.put(losses),
            }
            traces.append({**common, **solid, "line": {"color": COLORS[i], "width": 2.2}})
            dotted = {"color": COLORS[i], "width": 1.4, "dash": "dot"}
            traces.append(
                {**common, "y": arrays.put(within), "line": dotted, "showlegend": False, "name": "quadratic"}
            )
    return Chart(
        "loss_lines",
        "Loss along the top eigenvectors",
        "Solid: the loss when all weights move along one eigenvector. Dotted: the quadratic L + gᵀv t + ½λt². Where "
        "they part, curvature no longer tells how the loss goes on.",
        traces,
        {
            "xaxis": {"title": "distance t from the weights"},
            "yaxis": {"title": "loss (dotted: the quadratic)", "rangemode": "tozero"},
        },
        span=3,
        height=HEIGHT,
    )


def plane(slices: Mapping[int, LandscapeFile], arrays: Arrays) -> Chart | None:
    """The loss on the plane of the first two eigenvectors."""
    traces: list[dict[str, Any]] = []
    for step, file in slices.items():
        if file.plane is None:
            continue
        losses = file.plane.losses
        seen = losses[np.isfinite(losses) & (losses > 0)]
        if not len(seen):
            continue
        traces.append(
            {
                "type": "contour",
                "x": arrays.put(file.plane.first),
                "y": arrays.put(file.plane.second),
                "z": arrays.put(losses),
                "zmin": float(seen.min()),
                "zmax": float(seen.max()),
                "logarithmic": bool(seen.max() > 10 * seen.min()),
                "colorscale": "Viridis",
                "ncontours": 16,
                "colorbar": {"title": "loss"},
                "hovertemplate": "t<sub>1</sub> = %{x:.3~g}, t<sub>2</sub> = %{y:.3~g}<br>"
                "loss %{customdata:.4~g}<extra></extra>",
                "meta": {"step": step},
            }
        )
        here = {"symbol": "cross-thin-open", "size": 11, "color": "@mark", "line": {"width": 2}}
        point = {"x": [0], "y": [0], "marker": here, "hovertemplate": "the weights<extra></extra>"}
        traces.append(
            {"type": "scatter", "mode": "markers", **point, "showlegend": False, "meta": {"step": step}}
        )
    if not traces:
        return None
    return Chart(
        "loss_plane",
        "Loss on the plane of the top two eigenvectors",
        "The cross marks the weights. An ellipse is a quadratic; contours that bend are what it leaves out.",
        traces,
        {
            "xaxis": {"title": "distance t<sub>1</sub> along v<sub>1</sub>", "showgrid": False},
            "yaxis": {"title": "distance t<sub>2</sub> along v<sub>2</sub>", "showgrid": False},
        },
        span=3,
        height=HEIGHT,
    )
