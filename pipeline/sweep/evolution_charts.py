"""Charts of numbers along training, those of all jobs of a sweep over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.report import Arrays, Chart, step_axis, value_scale
from pipeline.results import QUANTITIES, STEP_CHARTS
from pipeline.sweep.charts import LOOKS, Line
from pipeline.sweep.seeds import Statistics, groups_of

HEIGHT = 330


def along_training(lines: Sequence[Line], arrays: Arrays) -> Iterator[Chart]:
    """A chart a number: a line a job, or its mean over the seeds with the standard deviation as error bars."""
    several = [line for line in lines if len(line.steps) > 1]
    for key in STEP_CHARTS:
        traces = list(_traces(key, several, arrays))
        if not traces:
            continue
        quantity = QUANTITIES[key]
        shown = [arrays.get(trace["y"]) for trace in traces]
        axis, signed = step_axis(sorted({int(step) for trace in traces for step in arrays.get(trace["x"])}))
        bars = any("error_y" in trace for trace in traces)
        reading = " Mean over the seeds; bars: one standard deviation of them (n − 1)." if bars else ""
        scale = {"tickformat": ".0%", "range": [0, 1.02]} if quantity.unit == "%" else value_scale(*shown)
        yield Chart(
            f"along-{key}",
            quantity.title,
            quantity.sentence + reading,
            traces,
            {"xaxis": axis, "yaxis": {"title": quantity.symbol, **scale}},
            signed,
            span=3,
            height=HEIGHT,
        )


def _traces(key: str, lines: Sequence[Line], arrays: Arrays) -> Iterator[dict[str, Any]]:
    """A line for each group of jobs that differ in their seed alone, at the steps that all of them have."""
    for place, (choices, members) in enumerate(groups_of([line.choices for line in lines]).items()):
        jobs = [lines[member] for member in members]
        steps = sorted(
            set.intersection(*({s for s, numbers in job.steps.items() if key in numbers} for job in jobs))
        )
        if not steps:
            continue
        found = [Statistics.of(job.steps[step][key] for job in jobs) for step in steps]
        dash, color = LOOKS[place % len(LOOKS)]
        name = (
            " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in choices)
            or f"job {jobs[0].number}"
        )
        deviations = [each.deviation for each in found]
        bars = {"type": "data", "array": arrays.put(deviations), "color": color, "thickness": 1.2, "width": 3}
        count = f", {len(jobs)} seeds" if len(jobs) > 1 else ""
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name if len(jobs) == 1 or choices else f"{len(jobs)} seeds",
            "x": arrays.put(steps),
            "y": arrays.put([each.mean for each in found]),
            "customdata": arrays.put(steps),
            "line": {"color": color, "dash": dash, "width": 2},
            "marker": {"size": 5},
            "showlegend": True,
            "hovertemplate": f"{name}{count}<br>step %{{customdata:,}}<br>%{{y:.5~g}}<extra></extra>",
            **({"error_y": bars} if np.isfinite(deviations).any() else {}),
        }
