"""What a run leaves behind, typed: the spectra file and the landscape file of a step.

With `dataset_attributes` the only module that spells the names of their arrays. Whoever writes builds the object;
whoever reads takes attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from pipeline.results.result_file import Columns, ResultFile, shapes
from pipeline.shards import Array
from pipeline.spectrum import cosines

FORMAT_VERSION = 1


@dataclass(frozen=True, repr=False)
class MeanSpectrum(Columns):
    """The spectrum of the mean matrix: k top eigenpairs of P weights."""

    GROUP = "mean"
    eigenvalues: Array  # ascending: all P, or the extreme ones where the spectrum is not exact
    top_eigenvalues: Array  # (k,) descending
    top_eigenvectors: Array  # (P, k)
    residuals: Array  # (k,): ‖H v − λ v‖
    gradient: Array  # (P,) of the mean loss

    @property
    def gradient_cosines(self) -> Array:
        """|gᵀv| / ‖g‖ of the gradient and each top eigenvector, (k,); their squares add up to the share in the space.

        An eigenvector's sign means nothing, so there is none here. Within a multiple eigenvalue only the sum of squares
        has a meaning.
        """
        return cosines(self.gradient, self.top_eigenvectors)

    @property
    def participation(self) -> Array:
        """Over how many weights each top eigenvector is spread, 1 / Σ_i v_i⁴, (k,): from 1 to P."""
        squares = np.asarray(self.top_eigenvectors, np.float64) ** 2
        spread: Array = squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0)
        return spread


@dataclass(frozen=True, repr=False)
class Density(Columns):
    """Densities of the spectra on one grid, per decade of |λ|; NaN where Lanczos does not resolve eigenvalues."""

    GROUP = "density"
    grid: Array  # (G,) ascending
    values: Array  # (G,) of the mean matrix
    batches: Array  # (B, G)
    standard_error: Array | None = None  # (G,) of `values`, where those are an estimate
    coordinate: Array | None = None  # (G,) t, over which `values` integrate to 1; not in files before 0.3


@dataclass(frozen=True, repr=False)
class DistributionBand(Columns):
    """Bounds of the share of eigenvalues that are at most x, from each point up to the next, with 95 % confidence.

    They hold everywhere at once.
    """

    GROUP = "distribution"
    points: Array  # (n,) ascending
    low: Array  # (n,)
    high: Array  # (n,)


@dataclass(frozen=True, repr=False)
class BatchSpectra(Columns):
    """Numbers of each of B batches' own matrix; those that are estimated have the half-width of a 95 % interval."""

    GROUP = "batches"
    eigenvalues: Array  # (B, k) descending, or (B, P) ascending where all were asked for
    num_samples: Array  # (B,), as the following ones
    loss: Array
    gradient_norm: Array
    trace: Array
    frobenius_norm: Array
    lambda_max: Array
    distance_to_mean: Array  # in the Frobenius norm, relative to that of the mean
    overlap_with_mean: Array  # of the top eigenspaces
    overlap: Array  # (B, B) of the top eigenspaces of any two
    trace_half_width: Array | None = None  # (B,), as the following ones
    frobenius_norm_half_width: Array | None = None
    distance_to_mean_half_width: Array | None = None

    def __len__(self) -> int:
        return len(self.num_samples)

    @classmethod
    def _of(cls, arrays: Mapping[str, Array], optional: tuple[str, ...] = ()) -> Self:
        widths = ("trace_half_width", "frobenius_norm_half_width", "distance_to_mean_half_width")
        return super()._of(arrays, (*widths, *optional))

    @property
    def headline(self) -> dict[str, float]:
        """How far batches are from the mean, and from one another; nothing of one batch."""
        if len(self) < 2:
            return {}
        distance = float(np.average(self.distance_to_mean, weights=self.num_samples))
        overlap = float(self.overlap[np.triu_indices(len(self), 1)].mean())
        return {"mean_distance_between_batch_and_mean": distance, "mean_overlap_between_batches": overlap}

    def top(self, num_top: int) -> Array:
        """The top eigenvalues of each batch, (B, k) descending, whether the file holds k or all P of them."""
        ascending = self.eigenvalues.shape[1] > num_top or bool((np.diff(self.eigenvalues, axis=1) > 0).any())
        return self.eigenvalues[:, ::-1][:, :num_top] if ascending else self.eigenvalues


@dataclass(frozen=True, repr=False)
class LayerBlocks:
    """The parameters of the model, m of them, and the blocks of the mean matrix that belong to them.

    What products with the matrix do not give is None; what they estimate has the half-width of a 95 % interval.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: Array  # (m + 1,): where the rows of each begin
    block_norms: Array | None  # (m, m): the Frobenius norm of each block
    trace: Array  # (m,) of the diagonal blocks
    eigenvalues: Mapping[str, Array]  # of the diagonal blocks that were decomposed, by the parameter's name
    trace_half_width: Array | None = None  # (m,)

    def __repr__(self) -> str:
        return f"LayerBlocks({shapes(self)})"

    @property
    def sizes(self) -> Array:
        """The number of weights of each parameter, (m,)."""
        return np.diff(self.offsets)

    @property
    def arrays(self) -> dict[str, Any]:
        found = {
            "parameters/names": list(self.names),
            "parameters/shapes": [str(shape) for shape in self.shapes],
            "parameters/offsets": self.offsets,
            "layers/block_norms": self.block_norms,
            "layers/trace": self.trace,
            "layers/trace_half_width": self.trace_half_width,
            **{f"layers/{name}/eigenvalues": values for name, values in self.eigenvalues.items()},
        }
        return {name: values for name, values in found.items() if values is not None}

    @classmethod
    def _of(cls, arrays: Mapping[str, Array]) -> Self:
        names = tuple(str(name) for name in arrays["parameters/names"])
        eigenvalues = {name: arrays.get(f"layers/{name}/eigenvalues") for name in names}
        return cls(
            names,
            tuple(tuple(map(int, re.findall(r"\d+", shape))) for shape in arrays["parameters/shapes"]),
            arrays["parameters/offsets"],
            arrays.get("layers/block_norms"),
            arrays["layers/trace"],
            {name: values for name, values in eigenvalues.items() if values is not None},
            arrays.get("layers/trace_half_width"),
        )


@dataclass(frozen=True, repr=False)
class ModuleBlocks(Columns):
    """The layers of the model, M of them (what a module has of its own), and their diagonal blocks of the mean."""

    GROUP = "modules"
    names: Array  # (M,) texts
    sizes: Array  # (M,): weights
    trace: Array  # (M,)
    lambda_max: Array  # (M,), NaN where it was not computed
    trace_half_width: Array | None = None  # (M,), where the trace is an estimate

    @classmethod
    def _of(cls, arrays: Mapping[str, Array], optional: tuple[str, ...] = ()) -> Self:
        found = super()._of(arrays, ("trace_half_width", *optional))
        return replace(found, names=found.names.astype(str))


@dataclass(frozen=True, repr=False)
class SpectraFile(ResultFile):
    """What aggregation found at one step: `spectra/step-….h5`.

    spectrum: how the mean was decomposed. inputs_hash: of all that the file is made from. numbers: every number of the
    whole, the headline among them, by its key. origin: the texts and lists that shards share (matrix, config_hash, …).
    density, batches, distribution: None in a file that has none; modules: in one of a version before 0.3.
    """

    step: int
    matrix: str
    spectrum: str
    inputs_hash: str
    numbers: dict[str, float]
    origin: dict[str, Any]
    mean: MeanSpectrum
    layers: LayerBlocks
    density: Density | None = None
    batches: BatchSpectra | None = None
    modules: ModuleBlocks | None = None
    distribution: DistributionBand | None = None

    def __repr__(self) -> str:
        parts = [
            f"step {self.step}: {self.matrix}, spectrum={self.spectrum}, P = {self.layers.offsets[-1]:,}"
        ]
        if self.num_top:
            parts.append(f"λ max {self.mean.top_eigenvalues[0]:.4g}")
        if self.batches is not None:
            parts.append(f"{len(self.batches)} batches")
        return f"SpectraFile({', '.join(parts)})"

    @property
    def num_top(self) -> int:
        return len(self.mean.top_eigenvalues)

    @property
    def without_matrix(self) -> bool:
        """Whether the matrix was never formed: the file then says by which way products with it were computed."""
        return "way" in self.origin

    @property
    def several_batches(self) -> BatchSpectra | None:
        """The batches, where there are at least two to be compared."""
        return self.batches if self.batches is not None and len(self.batches) > 1 else None

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers and the step, as summary.json and the tracker have them."""
        return {**self.numbers, "step": self.step}

    @property
    def attrs(self) -> dict[str, Any]:
        return {
            **self.origin,
            "matrix": self.matrix,
            "step": self.step,
            "format_version": FORMAT_VERSION,
            "spectrum": self.spectrum,
            "num_top": self.num_top,
            "inputs_hash": self.inputs_hash,
            **self.numbers,
        }

    @property
    def arrays(self) -> dict[str, Any]:
        parts = (self.mean, self.layers, self.batches, self.density, self.modules, self.distribution)
        return {name: values for part in parts if part is not None for name, values in part.arrays.items()}

    @classmethod
    def _of(cls, attrs: dict[str, Any], arrays: dict[str, Array]) -> Self:
        own = {key: attrs[key] for key in ("step", "matrix", "spectrum")}
        rest = {key: value for key, value in attrs.items() if key not in (*own, "format_version", "num_top")}
        inputs_hash = str(rest.pop("inputs_hash", ""))
        numbers = {key: value for key, value in rest.items() if type(value) in (int, float)}
        has = {name.partition("/")[0] for name in arrays}
        return cls(
            **own,
            inputs_hash=inputs_hash,
            numbers=numbers,
            origin={key: value for key, value in rest.items() if key not in numbers},
            mean=MeanSpectrum._of(arrays),
            layers=LayerBlocks._of(arrays),
            density=Density._of(arrays, ("standard_error", "coordinate")) if Density.GROUP in has else None,
            batches=BatchSpectra._of(arrays) if BatchSpectra.GROUP in has else None,
            modules=ModuleBlocks._of(arrays) if ModuleBlocks.GROUP in has else None,
            distribution=DistributionBand._of(arrays) if DistributionBand.GROUP in has else None,
        )


@dataclass(frozen=True, repr=False)
class Lines(Columns):
    """The loss on lines along k top eigenvectors, at n distances from the weights."""

    GROUP = "lines"
    eigenvalues: Array  # (k,)
    slopes: Array  # (k,): the gradient along each eigenvector
    distances: Array  # (k, n)
    losses: Array  # (k, n)

    def quadratic(self, line: int) -> Array:
        """L + (gᵀv) t + ½ λ t² on a line, (n,): what the loss would be if the matrix told all of it."""
        distances, losses = self.distances[line], self.losses[line]
        slope, curvature = float(self.slopes[line]), float(self.eigenvalues[line])
        result: Array = losses[len(losses) // 2] + slope * distances + curvature * distances**2 / 2
        return result


@dataclass(frozen=True, repr=False)
class Plane(Columns):
    """The loss on the plane of the first two eigenvectors."""

    GROUP = "plane"
    first: Array  # (m,): distances along the first
    second: Array  # (m,)
    losses: Array  # (m, m): a row a distance along the second


@dataclass(frozen=True, repr=False)
class LandscapeFile(ResultFile):
    """The loss along the top eigenvectors at one step: `slices/step-….h5`.

    inputs_hash: that of the spectra it belongs to. num_points: on each line, as asked for.
    plane: None where there is one eigenvector.
    """

    step: int
    inputs_hash: str
    num_points: int
    lines: Lines
    plane: Plane | None = None

    def __repr__(self) -> str:
        return f"LandscapeFile(step {self.step}: {len(self.lines.eigenvalues)} lines of {self.num_points} points)"

    @property
    def attrs(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "inputs_hash": self.inputs_hash,
            "num_points": self.num_points,
        }

    @property
    def arrays(self) -> dict[str, Any]:
        return self.lines.arrays | (self.plane.arrays if self.plane is not None else {})

    @classmethod
    def _of(cls, attrs: dict[str, Any], arrays: dict[str, Array]) -> Self:
        plane = Plane._of(arrays) if any(name.startswith(f"{Plane.GROUP}/") for name in arrays) else None
        own = {key: attrs[key] for key in ("step", "inputs_hash", "num_points")}
        return cls(**own, lines=Lines._of(arrays), plane=plane)
