"""Charts of the top eigenvectors: the gradient's cosine with each, and over how many weights each is spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.charts.batches import heat_map, square_axes
from pipeline.report.page.page import Array, Arrays, Chart

if TYPE_CHECKING:
    from pipeline.results import SpectraFile

SMALL = 300


def gradient_cosines(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart | None:
    """The cosine of the gradient and each top eigenvector, a bar each; None where every gradient is zero."""
    values = {step: each.mean.gradient_cosines for step, each in results.items()}
    values = {step: each for step, each in values.items() if np.isfinite(each).all()}
    if not values:
        return None
    return _of_vectors(
        "gradient_cosines",
        "The gradient along each top eigenvector",
        "|gᵀv<sub>j</sub>| / ‖g‖: 1 where the gradient points along an eigenvector, about 1/√P by chance. The squares "
        "add up to the share of the gradient in the top eigenspace.",
        ("cosine", "%{y:.4f}"),
        values,
        arrays,
    )


def participation(results: Mapping[int, SpectraFile], arrays: Arrays) -> Chart:
    """Over how many weights each top eigenvector is spread."""
    return _of_vectors(
        "participation",
        "Weights that take part in each top eigenvector",
        "1 / Σ<sub>i</sub> v<sub>ij</sub>⁴, the participation number of a unit vector: 1 where it is a single weight, "
        "P where all weights have the same size; P/3 for a random direction.",
        ("weights", "%{y:.4~g} weights"),
        {step: each.mean.participation for step, each in results.items()},
        arrays,
    )


def _of_vectors(
    name: str, title: str, text: str, axis: tuple[str, str], values: Mapping[int, Array], arrays: Arrays
) -> Chart:
    """A bar for each top eigenvector, at each step. axis: its name, and how a value is shown."""
    highest = max(float(each.max()) for each in values.values())
    return Chart(
        name,
        title,
        text,
        [_bars(each, step, arrays, axis[1]) for step, each in values.items()],
        {"xaxis": _index(len(each) for each in values.values()), "yaxis": _from_zero(axis[0], highest)},
        span=3,
        height=SMALL,
    )


def cosines_along(
    results: Mapping[int, SpectraFile], arrays: Arrays, height: Callable[[int], int]
) -> Chart | None:
    """The cosine of the gradient and each top eigenvector, a row a step."""
    num_top = max(each.num_top for each in results.values())
    values = np.array(
        [
            np.pad(cosines, (0, num_top - len(cosines)), constant_values=np.nan)
            for cosines in (each.mean.gradient_cosines for each in results.values())
        ]
    )
    if not np.isfinite(values).any():
        return None
    names, columns = [f"{step:,}" for step in results], [str(j) for j in range(1, num_top + 1)]
    return Chart(
        "cosine_steps",
        "Cosine of the gradient and each top eigenvector",
        "|gᵀv<sub>j</sub>| / ‖g‖ at each step, v<sub>1</sub> the sharpest direction: bright where the gradient lies "
        "along it. An index stands for another eigenvector after two eigenvalues have crossed.",
        [
            {
                **heat_map(arrays.put(values), columns, names),
                "hovertemplate": "step %{y}, eigenvector %{x}<br>cosine %{z:.4f}<extra></extra>",
            }
        ],
        square_axes("index j of the eigenvector", "training step"),
        span=3,
        height=height(len(names)),
    )


def _bars(values: Array, step: int, arrays: Arrays, hover: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "x": arrays.put(np.arange(1, len(values) + 1)),
        "y": arrays.put(values),
        "marker": {"color": "@blue"},
        "width": 0.55,
        "hovertemplate": f"eigenvector %{{x}}<br>{hover}<extra></extra>",
        "meta": {"step": step},
    }


def _index(counts: Any) -> dict[str, Any]:
    return {"title": "index j", "dtick": max(1, max(counts) // 10)}


def _from_zero(title: str, highest: float) -> dict[str, Any]:
    return {"title": title, "range": [0, 1.1 * highest if highest > 1e-12 else 1.0]}
