"""What is known of a matrix that was never formed, and the spectra file that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.layout import Layout
from pipeline.results import (
    BatchSpectra,
    Density,
    DistributionBand,
    LayerBlocks,
    MeanSpectrum,
    ModuleBlocks,
    SpectraFile,
)
from pipeline.shards import Array
from pipeline.spectrum import (
    Eigenpairs,
    Estimate,
    SpectralDistribution,
    Traces,
    density_of,
    fit_grid,
    share_in_eigenspace,
    sign_threshold,
    summarize,
)


@dataclass(frozen=True)
class Estimates:
    """The spectrum at one checkpoint, from products or from a Gram matrix.

    eigenvalues: ascending: both ends, or all. vectors, residuals: of the k largest, the largest first. parameters,
    layers: the traces of their diagonal blocks, by name. numbers: of the whole, by the keys of `QUANTITIES`.
    """

    eigenvalues: Array  # (P,) or fewer
    vectors: Array  # (P, k)
    residuals: Array  # (k,)
    parameters: Mapping[str, Estimate]
    layers: Mapping[str, Estimate]
    numbers: Mapping[str, float]
    density: Density | None = None
    distribution: DistributionBand | None = None
    batches: BatchSpectra | None = None

    @property
    def norm(self) -> Estimate:
        """The Frobenius norm."""
        value, half = self.numbers["frobenius_norm"], self.numbers.get("frobenius_norm_half_width", 0.0)
        return Estimate(value, value - half, value + half)

    @staticmethod
    def of_products(
        pairs: Eigenpairs,
        num_top: int,
        traces: Traces,
        band: SpectralDistribution | None,
        sharpness: Eigenpairs | None,
    ) -> Estimates:
        """num_top: how many of the pairs are of the upper end. sharpness: of the matrix preconditioned as Adam does."""
        largest = float(np.abs(pairs.values).max())
        norm = traces.frobenius_norm
        numbers = {
            "trace": traces.trace.value,
            "trace_half_width": half_width(traces.trace),
            "frobenius_norm": norm.value,
            "frobenius_norm_half_width": half_width(norm),
            "num_products": sum(each.num_products for each in (pairs, traces, band, sharpness) if each),
        }
        if sharpness is not None:
            numbers["lambda_max_preconditioned"] = float(sharpness.values[0])
        if largest:
            numbers["stable_rank"] = norm.value**2 / largest**2
        if len(pairs.values) > num_top:
            numbers["lambda_min"] = float(pairs.values[-1])
        if band is not None:
            numbers["distribution_band_width"] = band.width
        return Estimates(
            pairs.values[::-1].copy(),
            pairs.vectors[:, :num_top].copy(),
            pairs.residuals[:num_top].copy(),
            traces.parameters,
            traces.layers,
            numbers,
            _density_of_band(band) if band is not None else None,
            DistributionBand(band.points[1:], band.low[1:], band.high[1:]) if band is not None else None,
        )

    @staticmethod
    def of_all(
        eigenvalues: Array, vectors: Array, residuals: Array, traces: Mapping[str, float], layout: Layout
    ) -> Estimates:
        """eigenvalues: all P, descending. traces: of the parameters' blocks, by name."""
        values = eigenvalues[::-1].copy()
        of_layers = {
            name: sum(traces.get(inside, 0.0) for inside in layout.names_in(span))
            for name, span in layout.layers().items()
        }
        grid = fit_grid(float(values[0]), float(values[-1]))
        nothing = np.zeros((0, len(grid.coordinates)))
        return Estimates(
            values,
            vectors,
            residuals,
            {name: exactly(traces.get(name, 0.0)) for name in layout.names},
            {name: exactly(value) for name, value in of_layers.items()},
            summarize(values),
            Density(grid.eigenvalues, density_of(values, grid), nothing, None, grid.coordinates),
        )

    def file(
        self,
        layout: Layout,
        origin: Mapping[str, Any],
        numbers: Mapping[str, float],
        gradient: Array,
        spectrum: str,
        inputs_hash: str,
    ) -> SpectraFile:
        """The spectra file. origin: what it says of the experiment. numbers: what is known besides."""
        texts = dict(origin)
        floats = {key: texts.pop(key) for key, value in [*texts.items()] if isinstance(value, float)}
        num_top = self.vectors.shape[1]
        top = self.eigenvalues[::-1][:num_top].copy()
        share = share_in_eigenspace(gradient, self.vectors)
        return SpectraFile(
            step=texts.pop("step"),
            matrix=texts.pop("matrix"),
            spectrum=spectrum,
            inputs_hash=inputs_hash,
            origin=texts,
            numbers={
                **floats,
                **numbers,
                "num_parameters": layout.num_parameters,
                "gradient_norm": float(np.linalg.norm(gradient)),
                "lambda_max": float(self.eigenvalues[-1]),
                "negative_threshold": sign_threshold(origin["dtype"]) * float(np.abs(self.eigenvalues).max()),
                **({} if share is None else {"gradient_share_in_top_eigenspace": share}),
                **self.numbers,
            },
            mean=MeanSpectrum(self.eigenvalues, top, self.vectors, self.residuals, gradient),
            layers=self._parameters(layout),
            modules=self._modules(layout),
            density=self.density,
            batches=self.batches,
            distribution=self.distribution,
        )

    def _parameters(self, layout: Layout) -> LayerBlocks:
        estimates = [self.parameters[name] for name in layout.names]
        return LayerBlocks(
            layout.names,
            layout.shapes,
            np.asarray(layout.offsets),
            block_norms=None,
            trace=np.array([each.value for each in estimates]),
            eigenvalues={},
            trace_half_width=half_widths(estimates),
        )

    def _modules(self, layout: Layout) -> ModuleBlocks:
        spans = layout.layers()
        estimates = [self.layers[name] for name in spans]
        return ModuleBlocks(
            np.array([*spans]),
            np.array([span.stop - span.start for span in spans.values()]),
            trace=np.array([each.value for each in estimates]),
            lambda_max=np.full(len(spans), np.nan),
            trace_half_width=half_widths(estimates),
        )


def exactly(value: float) -> Estimate:
    """A number that is no estimate."""
    return Estimate(value, value, value)


def half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def half_widths(estimates: Sequence[Estimate]) -> Array | None:
    """Of the intervals; None where nothing is an estimate."""
    widths = np.array([half_width(each) for each in estimates])
    return widths if widths.any() else None


def _density_of_band(band: SpectralDistribution) -> Density:
    grid = band.grid
    nothing = np.zeros((0, len(grid.coordinates)))
    return Density(grid.eigenvalues, band.density, nothing, band.error, grid.coordinates)
