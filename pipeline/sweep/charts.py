"""Charts of a sweep: the spectra of its jobs over each other, and headline numbers against the choices that vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from pipeline.report import Array, Arrays, Chart, thinned_ranks, value_scale
from pipeline.results import QUANTITIES, SWEEP_CHARTS, linear_width

COLORS = ("@blue", "@orange", "@green", "@purple", "@grey")
DASHES = ("solid", "dot", "dash", "dashdot", "longdash")
LOOKS = list(product(DASHES, COLORS))
MOST_POINTS = 600  # of the eigenvalues of one job; their ranks are drawn on a logarithmic axis
MOST_NUMBERS = 6
BY_JOB = "job"


@dataclass(frozen=True)
class Line:
    """What is drawn of one job: its choices, its headline numbers and, where it was aggregated, its spectrum.

    The density is that of the mean matrix at the last step, on a grid of its own; `eigenvalues` are all that are known.
    steps: the numbers of each step that has a spectrum.
    """

    number: int
    choices: Mapping[str, str]
    numbers: Mapping[str, float]
    eigenvalues: Array | None = None
    grid: Array | None = None
    density: Array | None = None
    steps: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        choices = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.choices.items())
        return f"job {self.number}{': ' if choices else ''}{choices}"


def charts_of(lines: Sequence[Line], arrays: Arrays) -> dict[str, list[Chart]]:
    """The charts by section; none where no job has got far enough."""
    spectra = [density(lines, arrays), by_rank(lines, arrays)]
    numbers = [against(key, lines, arrays) for key in SWEEP_CHARTS]
    return {
        "spectra": [chart for chart in spectra if chart],
        "numbers": [chart for chart in numbers if chart][:MOST_NUMBERS],
    }


def density(lines: Sequence[Line], arrays: Arrays) -> Chart | None:
    """The densities of the jobs' mean matrices over each other."""
    known = [
        (line, line.grid, line.density)
        for line in lines
        if line.grid is not None and line.density is not None
    ]
    if not known:
        return None
    highest = max(float(np.nanmax(values)) for _, _, values in known)
    floor = highest / (10 * max(10, *(int(line.numbers.get("num_parameters", 10)) for line, _, _ in known)))
    seen = np.concatenate([grid[values > floor] for _, grid, values in known])
    hover = "<br>λ = %{customdata:.4~g}<br>density %{y:.3~g}"
    curves = [
        (line, {
            "mode": "lines",
            "x": arrays.put(grid),
            "y": arrays.put(np.where(np.isnan(values), np.nan, np.maximum(values, floor / 100))),
            "hovertemplate": f"{line}{hover}<extra></extra>",
        })
        for line, grid, values in known
    ]  # fmt: skip
    return Chart(
        "densities",
        "Densities of the spectra",
        "Where the eigenvalues of each job's mean matrix lie, negative ones left of zero: the tall part around zero is "
        "the bulk. Lines that lie on one another are choices that do not change the spectrum.",
        list(_colored(curves, lines)),
        {
            "xaxis": {"title": "eigenvalue λ", "range": [float(seen.min()), float(seen.max())]},
            "yaxis": {
                "title": "density per decade of |λ|",
                "type": "log",
                "range": [float(np.log10(floor)), float(np.log10(3 * highest))],
            },
        },
        signed={"x": max(linear_width(grid) for _, grid, _ in known)},
        choices=_choices("color", "colors by", lines),
        height=460,
    )


def by_rank(lines: Sequence[Line], arrays: Arrays) -> Chart | None:
    """The positive eigenvalues of the jobs' mean matrices, from the largest down."""
    known = [(line, np.sort(line.eigenvalues)[::-1]) for line in lines if line.eigenvalues is not None]
    known = [(line, values[values > 0]) for line, values in known if (values > 0).any()]
    if not known:
        return None
    curves = []
    for line, values in known:
        kept = thinned_ranks(len(values), MOST_POINTS)
        hover = f"{line}<br>rank %{{x:,}}<br>λ = %{{y:.5~g}}<extra></extra>"
        curves.append(
            (
                line,
                {
                    "mode": "lines",
                    "x": arrays.put(kept + 1),
                    "y": arrays.put(values[kept]),
                    "hovertemplate": hover,
                },
            )
        )
    largest = max(float(values[0]) for _, values in known)
    smallest = max(min(float(values[-1]) for _, values in known), 1e-9 * largest)
    longest = max(len(values) for _, values in known)
    return Chart(
        "ranks",
        "Positive eigenvalues by rank",
        "The eigenvalues of each job's mean matrix from the largest down: a drop separates outliers from the bulk.",
        list(_colored(curves, lines)),
        {
            "xaxis": {
                "title": "rank (1 = largest)",
                "type": "log",
                "range": [-0.06, float(np.log10(1.2 * max(longest, 8)))],
            },
            "yaxis": {
                "title": "eigenvalue λ",
                "type": "log",
                "range": [float(np.log10(smallest / 2)), float(np.log10(2.5 * largest))],
            },
        },
        choices=_choices("color", "colors by", lines),
        height=420,
    )


def against(key: str, lines: Sequence[Line], arrays: Arrays) -> Chart | None:
    """A headline number of each job against a choice, and its mean over the jobs that share the choice."""
    known = [line for line in lines if key in line.numbers and np.isfinite(line.numbers[key])]
    varying = _varying(lines)
    if not known or not varying:
        return None
    quantity = QUANTITIES[key]
    traces: list[dict[str, Any]] = []
    for along in varying:
        places = _places([line.choices.get(along, "") for line in known])
        values = np.array([line.numbers[key] for line in known])
        meta = {"along": along} if len(varying) > 1 else {}
        traces.append({
            "type": "scatter", "mode": "markers", "name": "a job", "x": places, "y": arrays.put(values),
            "text": [str(line) for line in known], "hovertemplate": "%{text}<br>%{y:.5~g}<extra></extra>",
            "marker": {"size": 9, "color": "@blue", "opacity": 0.75}, "meta": meta,
        })  # fmt: skip
        levels = sorted(set(places)) if isinstance(places[0], float) else list(dict.fromkeys(places))
        means = [float(values[[place == level for place in places]].mean()) for level in levels]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": "mean", "x": levels, "y": arrays.put(means),
            "line": {"color": "@orange", "width": 1.5, "dash": "dot"}, "meta": meta,
            "marker": {"symbol": "line-ew-open", "size": 18, "color": "@orange", "line": {"width": 2.5}},
            "hovertemplate": "mean of %{x}<br>%{y:.5~g}<extra></extra>",
        })  # fmt: skip
    return Chart(
        f"against-{key}",
        quantity.title,
        f"{quantity.sentence} Dots: the jobs. Bars: mean of the jobs that share the choice.",
        traces,
        {
            "xaxis": {},
            "yaxis": value_scale(np.array([line.numbers[key] for line in known])),
            "showlegend": False,
        },
        choices=_choices("along", "against", lines, by_job=False),
        span=2,
        height=280,
    )


def _varying(lines: Sequence[Line]) -> list[str]:
    """The choices that differ between these jobs; the one on which the largest eigenvalue depends most comes first."""
    keys = dict.fromkeys(key for line in lines for key in line.choices)
    differing = [key for key in keys if len({line.choices.get(key) for line in lines}) > 1]
    return sorted(differing, key=lambda key: _spread_within(key, lines))


def _spread_within(key: str, lines: Sequence[Line]) -> float:
    """The variance of λmax among jobs that share this choice."""
    groups: dict[str, list[float]] = {}
    for line in lines:
        if "lambda_max" in line.numbers:
            groups.setdefault(line.choices.get(key, ""), []).append(line.numbers["lambda_max"])
    return sum(len(values) * float(np.var(values)) for values in groups.values())


def _choices(
    key: str, label: str, lines: Sequence[Line], by_job: bool = True
) -> dict[str, tuple[str, dict[str, str]]]:
    options = {name: name for name in _varying(lines)} | ({BY_JOB: "job"} if by_job else {})
    return {key: (label, options)} if len(options) > 1 else {}


def _places(values: Sequence[str]) -> list[Any]:
    """Numbers if all are numbers, else the texts themselves."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return list(values)


def _colored(
    curves: Sequence[tuple[Line, dict[str, Any]]], lines: Sequence[Line]
) -> Iterator[dict[str, Any]]:
    """Each curve once for each choice of colors: one look a value, and one entry in the legend."""
    varying = _varying(lines)
    for by in [*varying, BY_JOB]:
        values = [str(line.number) if by == BY_JOB else line.choices.get(by, "") for line in lines]
        looks = {value: LOOKS[i % len(LOOKS)] for i, value in enumerate(dict.fromkeys(values))}
        named = set()
        for line, curve in curves:
            value = str(line.number) if by == BY_JOB else line.choices.get(by, "")
            dash, color = looks[value]
            yield {
                "type": "scatter",
                **curve,
                "name": f"{by.rpartition('.')[2]} {value}",
                "legendgroup": value,
                "showlegend": value not in named,
                "line": {"color": color, "dash": dash, "width": 1.8},
                "opacity": 0.85,
                "meta": {"color": by} if varying else {},
            }
            named.add(value)
