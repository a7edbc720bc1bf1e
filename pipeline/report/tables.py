"""The tables of the report as rows of text, from the spectra, the training history and the files of a run."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.results import BATCH_TABLE, QUANTITIES, STEP_TABLE, TILES, UNKNOWN, Quantity, number
from pipeline.system import machine

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.results import SpectraFile
    from pipeline.system import RunFolder

Array = NDArray[Any]
HALF_WIDTH = "_half_width"  # of a 95 % interval: ends the key of an estimate's
Rows = list[list[str]]
PACKAGES = ("torch", "numpy", "scipy", "h5py", "dask", "hydra-core", "mlflow", "plotly", "matplotlib")


def read_history(path: Path) -> dict[str, Array]:
    """The columns of a training history, NaN where a cell is empty; no columns if there is no such file.

    Raises:
        PipelineError: a cell is not a number.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    try:
        cells = [[float(cell) if cell else np.nan for cell in row] for row in rows]
        columns = np.array(cells, float).reshape(len(rows), len(header)).T
    except ValueError as error:
        raise PipelineError(
            f"{path} is no table of numbers ({error}): delete it, the report does without."
        ) from None
    return dict(zip(header, columns, strict=True)) if rows else {}


@dataclass(frozen=True)
class Number:
    """A headline number of a run: what it is, as a person reads it, and with all its digits."""

    quantity: Quantity
    value: str
    exact: str


def headline(file: SpectraFile, history: Mapping[str, Array]) -> list[tuple[str, list[Number]]]:
    """Numbers of the step and of the end of training, in groups; those that are not defined are left out."""
    ends = {key: float(values[-1]) for key, values in history.items() if key != "step" and len(values)}
    numbers = file.numbers | {key: value for key, value in ends.items() if np.isfinite(value)}
    groups: dict[str, list[Number]] = {}
    for key, quantity in QUANTITIES.items():
        if key in numbers and not key.endswith(HALF_WIDTH):
            half = numbers.get(f"{key}{HALF_WIDTH}", np.nan)
            row = Number(quantity, quantity.text_with_interval(numbers[key], half), repr(numbers[key]))
            groups.setdefault(quantity.group, []).append(row)
    return list(groups.items())


def tiles(groups: list[tuple[str, list[Number]]]) -> list[tuple[str, str]]:
    """What a reader wants to see first: name and value."""
    values = {row.quantity.key: row.value for _, rows in groups for row in rows}
    return [(QUANTITIES[key].name, values[key]) for key in TILES if key in values]


def column_heads(keys: Sequence[str]) -> list[str]:
    """The heads of columns of headline numbers."""
    return [QUANTITIES[key].label for key in keys]


def batches(file: SpectraFile) -> tuple[list[str], Rows]:
    """Head and rows: a row a batch, and the mean matrix as the last row; no rows where there are no batches."""
    head = ["batch", "samples", *column_heads(BATCH_TABLE), "distance to mean", "overlap with mean"]
    each = file.batches
    if each is None:
        return head, []
    keys = [*BATCH_TABLE, "distance_to_mean", "overlap_with_mean"]
    rows = [
        [str(b), number(int(each.num_samples[b])), *(_with_half_width(each, key, b) for key in keys)]
        for b in range(len(each))
    ]
    mean = [number(file.numbers.get(key)) for key in BATCH_TABLE]
    return head, [*rows, ["mean", number(file.numbers["num_samples"]), *mean, UNKNOWN, UNKNOWN]]


def layers(file: SpectraFile) -> Rows:
    """A row a parameter: name, shape, weights; trace, largest eigenvalue and norm of its diagonal block.

    A trace that is estimated has the half-width of its 95 % interval beside it.
    """
    blocks, rows = file.layers, []
    for i, (name, shape) in enumerate(zip(blocks.names, blocks.shapes, strict=True)):
        eigenvalues = blocks.eigenvalues.get(name, np.empty(0))
        trace = _with_half_width(blocks, "trace", i)
        largest = number(float(eigenvalues.max()) if len(eigenvalues) else None)
        norm = number(None if blocks.block_norms is None else float(blocks.block_norms[i, i]))
        size = number(int(blocks.sizes[i]))
        rows.append([name, " × ".join(map(str, shape)) or "scalar", size, trace, largest, norm])
    return rows


def _with_half_width(columns: object, key: str, row: int) -> str:
    """A number, with the half-width of its 95 % interval beside it where it is an estimate."""
    value = number(float(getattr(columns, key)[row]))
    half_widths = getattr(columns, f"{key}{HALF_WIDTH}", None)
    return value if half_widths is None else f"{value} ± {number(float(half_widths[row]), 2)}"


def estimates(file: SpectraFile) -> Rows:
    """What was estimated from products and how well; no rows where nothing was."""
    if "num_products" not in file.numbers:
        return []
    values, residuals = file.mean.top_eigenvalues, file.mean.residuals
    scale = float(np.abs(file.mean.eigenvalues).max()) or 1.0
    rows = [
        [
            f"top {len(values)} eigenvalues and their vectors",
            f"‖H v − λ v‖ ≤ {number(float(residuals.max()) / scale, 2)} |λ|max; a search in the space without them "
            "found none that was missed",
        ]
    ]
    numbers = file.numbers
    for key, words in (("trace", "trace"), ("frobenius_norm", "Frobenius norm")):
        if (half := numbers.get(f"{key}{HALF_WIDTH}")) is not None:
            rows.append([words, f"± {number(half, 2)} with 95 % confidence"])
    if "distribution_band_width" in numbers:
        width = number(numbers["distribution_band_width"], 2)
        words = f"in a band {width} wide on average, everywhere at once with 95 % confidence"
        rows.append(["distribution of the eigenvalues", words])
    if "largest_probe_error" in numbers:
        error = number(numbers["largest_probe_error"], 2)
        rows.append(["products H v", f"in float64 within {error} of differences of the model's own gradient"])
    return rows


def steps(results: Mapping[int, SpectraFile]) -> tuple[list[str], Rows]:
    """Head and rows: a row a step."""
    rows = [
        [number(step), *(number(each.numbers.get(key)) for key in STEP_TABLE)]
        for step, each in results.items()
    ]
    return ["step", *column_heads(STEP_TABLE)], rows


def versions(origin: Mapping[str, Any]) -> Rows:
    """What the report was written with; a version that the shards recorded (`origin`) is the one that computed them."""
    rows = [["Python", platform.python_version()]]
    for package in PACKAGES:
        try:
            rows.append([package, metadata.version(package)])
        except metadata.PackageNotFoundError:
            continue
    recorded = [[key.replace("_", " "), str(origin[key])] for key in ("torch_version",) if key in origin]
    return [*rows, *recorded, *([key, value] for key, value in machine().items())]


def files(folder: RunFolder) -> Rows:
    """What lies in the run folder, by its name there; what is not there is left out."""
    described = {
        "shards": "the matrices: one HDF5 file a step and batch, and the mean of each step",
        "spectra": "all arrays behind these figures: one HDF5 file a step",
        "slices": "the loss along the top eigenvectors: one HDF5 file a step",
        "law.h5": "the law that was measured: checks with their verdicts, and the curves of its figure",
        "checkpoints": "weights as safetensors at each step, and the training history",
        "figures": "figures for papers and slides, in the formats of figure_formats: png, pdf, svg",
        "config.yaml": "the config with every choice resolved, its hash, and the command",
        "summary.json": "the headline numbers, by the names they have in the tracker",
        "run.log": "what the run logged",
    }
    return [[name, meaning] for name, meaning in described.items() if (folder.path / name).exists()]
