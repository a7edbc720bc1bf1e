"""The tables of the report as rows of text, from the spectra, the training history and the files of a run."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.report_words import HEADLINE, TILES, UNKNOWN, number, percent

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.folder import RunFolder
    from pipeline.hdf5 import Results

Array = NDArray[Any]
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
    """A number of the headline as a person reads it, by the name that it has in summary.json.

    exact: all its digits.
    """

    key: str
    name: str
    symbol: str
    value: str
    meaning: str
    exact: str


def headline(results: Results, history: Mapping[str, Array]) -> list[tuple[str, list[Number]]]:
    """Numbers in groups; those that are not defined for this run are left out."""
    groups = []
    attrs = results.attrs
    rounded = {key: number(value, 2) for key, value in attrs.items()}
    for title, quantities in HEADLINE.items():
        rows = [
            Number(
                q.key,
                q.name,
                q.symbol,
                number(attrs[q.key]),
                q.meaning.format_map(rounded),
                repr(attrs[q.key]),
            )
            for q in quantities
            if q.key in attrs
        ]
        if rows:
            groups.append((title, rows))
    training = _training(history)
    return [*groups, ("Training", training)] if training else groups


def _training(history: Mapping[str, Array]) -> list[Number]:
    rows = []
    for who, samples in (("train", "training"), ("test", "test")):
        for kind, show in (("loss", number), ("accuracy", percent)):
            values = history.get(f"{who}_{kind}", np.empty(0))
            if len(values) and np.isfinite(values[-1]):
                last, step = float(values[-1]), int(history["step"][-1])
                meaning = f"On all {samples} samples, at the last step of training, {step:,}."
                rows.append(Number(f"{who}_{kind}", f"{samples} {kind}", "", show(last), meaning, repr(last)))
    return rows


def tiles(groups: list[tuple[str, list[Number]]]) -> list[tuple[str, str]]:
    """What a reader wants to see first: label and value."""
    known = {row.key: row for _, rows in groups for row in rows}
    return [(label, known[key].value) for key, label in TILES.items() if key in known]


def batches(results: Results) -> Rows:
    """A row a batch, and the mean matrix as the last row."""
    columns = ["loss", "gradient_norm", "trace", "frobenius_norm", "lambda_max"]
    own = ["distance_to_mean", "overlap_with_mean"]
    arrays, attrs = results.arrays, results.attrs
    rows = []
    for b, num_samples in enumerate(arrays["batches/num_samples"]):
        values = [number(float(arrays[f"batches/{name}"][b])) for name in columns + own]
        rows.append([str(b), number(int(num_samples)), *values])
    mean = [number(attrs.get(name)) for name in columns]
    return [*rows, ["mean", number(attrs["num_samples"]), *mean, *[UNKNOWN] * len(own)]]


def layers(results: Results) -> Rows:
    """A row a parameter: name, shape, weights; trace, largest eigenvalue and norm of its diagonal block."""
    arrays = results.arrays
    sizes = np.diff(arrays["parameters/offsets"])
    rows = []
    for i, (name, shape) in enumerate(
        zip(arrays["parameters/names"], arrays["parameters/shapes"], strict=True)
    ):
        eigenvalues = arrays.get(f"layers/{name}/eigenvalues", np.empty(0))
        largest = float(eigenvalues.max()) if len(eigenvalues) else None
        trace, norm = float(arrays["layers/trace"][i]), float(arrays["layers/block_norms"][i, i])
        rows.append([str(name), _shape(str(shape)), *map(number, (int(sizes[i]), trace, largest, norm))])
    return rows


def _shape(shape: str) -> str:
    inner = shape.strip("()[] ").rstrip(",")
    return " × ".join(part.strip() for part in inner.split(",")) if inner else "scalar"


def steps(results: Mapping[int, Results]) -> Rows:
    """A row a step: loss, gradient norm, largest and smallest eigenvalue, trace, and so on."""
    names = ["loss", "gradient_norm", "lambda_max", "lambda_min", "trace"]
    names += ["effective_rank", "num_negative_eigenvalues"]
    return [
        [number(step), *(number(each.attrs.get(name)) for name in names)] for step, each in results.items()
    ]


def versions(results: Results) -> Rows:
    """What the report was written with; a version that the shards recorded is the one that computed them."""
    rows = [["Python", platform.python_version()]]
    for package in PACKAGES:
        try:
            rows.append([package, metadata.version(package)])
        except metadata.PackageNotFoundError:
            continue
    recorded = [
        [key.replace("_", " "), str(results.attrs[key])] for key in ("torch_version",) if key in results.attrs
    ]
    return [*rows, *recorded, ["platform", f"{platform.system()} {platform.machine()}"]]


def files(folder: RunFolder) -> Rows:
    """What lies in the run folder, by its name there; what is not there is left out."""
    described = {
        "shards": "the matrices: one HDF5 file a step and batch, and the mean of each step",
        "spectra": "all arrays behind these figures: one HDF5 file a step",
        "slices": "the loss along the top eigenvectors: one HDF5 file a step",
        "checkpoints": "weights as safetensors at each step, and the training history",
        "figures": "figures for papers and slides as PNG",
        "config.yaml": "the config with every choice resolved, its hash, and the command",
        "summary.json": "the headline numbers, by the names they have in the tracker",
        "run.log": "what the run logged",
    }
    return [[name, meaning] for name, meaning in described.items() if (folder.path / name).exists()]


def load_config(folder: RunFolder, config: Mapping[str, Any] | None) -> tuple[dict[str, Any], str, str]:
    """The config as a mapping and as YAML, and the command that began the run (empty if it is not known)."""
    import yaml

    saved = yaml.safe_load(folder.config.read_text()) if folder.config.is_file() else {}
    chosen = dict(saved if config is None else config)
    command = str(chosen.pop("command", ""))
    return chosen, yaml.safe_dump(chosen, sort_keys=False) if chosen else "", command
