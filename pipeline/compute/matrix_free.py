"""The compute stage without matrices: the spectra of each checkpoint, from products over all batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.aggregate import CachedMatrix, PartialResults
from pipeline.compute.identity import identity_of
from pipeline.config import Verify
from pipeline.errors import PipelineError, StrategyError
from pipeline.experiment import Experiment
from pipeline.objective import NUM_FIRST, hash_of, objective_of, observed
from pipeline.operator import CurvatureOperator, curvature_operator
from pipeline.results import (
    Density,
    DistributionBand,
    LayerBlocks,
    MeanSpectrum,
    ModuleBlocks,
    SecondMoments,
    SpectraFile,
)
from pipeline.shards import SHARED, Array
from pipeline.spectrum import (
    SLQ,
    Eigenpairs,
    Estimate,
    SpectralDistribution,
    TopK,
    Traces,
    distribution_of,
    eigenpairs,
    share_in_eigenspace,
    sign_threshold,
    trace,
)
from pipeline.strategy import MatrixFree
from pipeline.system import RunFolder, available_memory, product_counter, shared_evidence

WRITING = 0.5e9  # bytes a second to the disk, about
SHARE_OF_WRITING = 5  # a product is kept if it took this many times longer than keeping it takes
log = logging.getLogger(__name__)


def estimate_spectra(folder: RunFolder, experiment: Experiment) -> None:
    """Write the spectra file of each checkpoint; one that was made of the same is taken as it is.

    The eigenvectors of a checkpoint are where the search begins at the next one.

    Raises:
        PipelineError: there is no checkpoint, or one of another experiment; an option has no meaning without matrices;
            or the eigenpairs do not converge.
    """
    steps = folder.checkpoint_steps()
    if not steps:
        raise PipelineError(
            f"{folder.checkpoints} holds no weights: add train to stages (training=none draws them)."
        )
    for step in steps:  # all of them before anything is computed
        experiment.problem.load(folder.checkpoint(step))
    start: Array | None = None
    for step in steps:
        experiment.problem.load(folder.checkpoint(step))
        estimation = Estimation.of(folder, experiment, step)
        path = folder.spectrum(step)
        file = SpectraFile.read_if_sound(path)
        if file is not None and file.inputs_hash == estimation.unfinished.identity:
            log.info("%s is up to date: taken as it is.", path.relative_to(folder.path))
        else:
            file = estimation.file(start)
            file.write(path)
        estimation.unfinished.remove()
        start = file.mean.top_eigenvectors


@dataclass(frozen=True)
class Estimation:
    """The spectrum at one checkpoint, whose weights the model has.

    origin: what the spectra file says of the experiment. unfinished: where products are kept.
    """

    experiment: Experiment
    step: int
    origin: Mapping[str, Any]
    unfinished: PartialResults
    second_moments: SecondMoments | None

    @staticmethod
    def of(folder: RunFolder, experiment: Experiment, step: int) -> Estimation:
        problem, spec = experiment.problem, experiment.matrix
        batches = experiment.batches()
        at = objective_of(problem.model, problem.criterion, spec.parameters)
        names = identity_of(problem, spec, at[1], step)
        names |= {"dtype": str(problem.dtype).removeprefix("torch.")}
        path = folder.second_moments(step)
        moments = SecondMoments.read(path) if path.exists() else None
        identity = [
            [names[key] for key in SHARED],
            [hash_of(batch) for batch in batches],
            spec.strategy,
            experiment.spectrum,
            moments.fingerprint if moments is not None else None,
        ]
        told = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        first = observed("first", *at, batches[0].chunk(0, NUM_FIRST))
        origin = {key: names[key] for key in (*SHARED, "torch_version")} | shared_evidence({**names, **first})
        return Estimation(experiment, step, origin, PartialResults(folder.unfinished(step), told), moments)

    def file(self, start: Array | None) -> SpectraFile:
        """Estimate all of it. start: (P, k) vectors near the ones that are sought."""
        method, strategy = self._options
        choices = self._choices()
        operator = self._operator(choices.get("way"))
        memory = int(choices.get("memory", available_memory() // 2))
        if not choices:
            self.unfinished.save("choices", {"way": operator.way, "memory": memory}, {})
        loss, gradient = operator.loss_and_gradient()
        matrix = self._kept(operator, "products", strategy)
        with product_counter(f"products at step {self.step}") as watch:
            pairs = eigenpairs(
                matrix,
                method.num_top,
                method.num_bottom,
                method.tolerance,
                max_products=method.max_passes * method.num_columns_per_pass,
                seed=method.seed,
                watch=watch,
                memory=memory,
            )
            traces = trace(matrix, strategy.num_trace_products, pairs=pairs, seed=method.seed)
            band = None
            if isinstance(method, SLQ) and len(pairs.values) < operator.num_rows:
                sizes = (strategy.num_density_vectors, strategy.num_density_steps)
                band = distribution_of(
                    matrix, *sizes, pairs=pairs, seed=method.seed, watch=watch, memory=memory
                )
            sharpness = self._preconditioned(operator, strategy)
        return self._assembled(operator, pairs, traces, band, loss, gradient.numpy(), sharpness)

    @property
    def _options(self) -> tuple[TopK | SLQ, MatrixFree]:
        """Raises a PipelineError for options that need a matrix."""
        method, strategy = self.experiment.spectrum, self.experiment.matrix.strategy
        assert isinstance(method, TopK | SLQ), "checked before"
        assert isinstance(strategy, MatrixFree), "as the stage was chosen"
        return method, strategy

    def _choices(self) -> Mapping[str, Any]:
        """What an earlier start of the run has chosen by a trial or by what was free: others have other rounding."""
        noted = self.unfinished.load("choices")
        return noted.attrs if noted is not None else {}

    def _operator(self, way: str | None) -> CurvatureOperator:
        """Products with the matrix of all batches."""
        problem, spec = self.experiment.problem, self.experiment.matrix

        def operator(verify: bool) -> CurvatureOperator:
            return curvature_operator(
                problem.model,
                problem.criterion,
                [tuple(batch) for batch in self.experiment.batches()],
                spec.matrix,
                spec.parameters,
                verify=verify,
                way=way,
            )

        try:
            return operator(spec.verify is not Verify.off)
        except StrategyError as error:
            if spec.verify is not Verify.warn:
                raise PipelineError(str(error)) from error
            log.warning("%s: products are taken all the same, because verify=warn.", error)
            return operator(verify=False)

    def _kept(self, matrix: Any, name: str, strategy: MatrixFree) -> Any:
        if not strategy.keep_products:
            return matrix
        seconds = SHARE_OF_WRITING * 8 * matrix.num_rows * matrix.columns_per_pass / WRITING
        return CachedMatrix(matrix, self.unfinished, name, slow=seconds)

    def _preconditioned(self, operator: CurvatureOperator, strategy: MatrixFree) -> dict[str, float]:
        """λmax of P^(−1/2) H P^(−1/2), where Adam has left the diagonal of P."""
        if self.second_moments is None:
            return {}
        diagonal = self.second_moments.preconditioner(operator.layout)
        if diagonal is None:
            return {}
        scale = 1 / np.sqrt(diagonal)
        matrix = self._kept(Preconditioned(operator, scale), "preconditioned", strategy)
        try:
            pairs = eigenpairs(matrix, top=1, bottom=0, tolerance=1e-5)
        except PipelineError as error:
            log.warning("no largest eigenvalue of the preconditioned matrix: %s", error)
            return {}
        return {"lambda_max_preconditioned": float(pairs.values[0])}

    def _assembled(
        self,
        operator: CurvatureOperator,
        pairs: Eigenpairs,
        traces: Traces,
        band: SpectralDistribution | None,
        loss: float,
        gradient: Array,
        sharpness: Mapping[str, float],
    ) -> SpectraFile:
        method, _ = self._options
        num_bottom = min(method.num_bottom, len(pairs.values) - min(method.num_top, len(pairs.values)))
        num_top = len(pairs.values) - num_bottom
        largest = float(np.abs(pairs.values).max())
        frobenius = traces.frobenius_norm.value
        origin = dict(self.origin)
        floats = {key: origin.pop(key) for key, value in [*origin.items()] if isinstance(value, float)}
        batches = self.experiment.batches()
        numbers: dict[str, float | None] = {
            **floats,
            "num_parameters": operator.num_rows,
            "num_samples": sum(batch.num_samples for batch in batches),
            "num_batches": len(batches),
            "loss": loss,
            "gradient_norm": float(np.linalg.norm(gradient)),
            "lambda_max": float(pairs.values[0]),
            "lambda_min": float(pairs.values[-1]) if num_bottom else None,
            "stable_rank": frobenius**2 / largest**2 if largest else None,
            "trace": traces.trace.value,
            "trace_half_width": half_width(traces.trace),
            "frobenius_norm": frobenius,
            "frobenius_norm_half_width": half_width(traces.frobenius_norm),
            "gradient_share_in_top_eigenspace": share_in_eigenspace(gradient, pairs.vectors[:, :num_top]),
            "negative_threshold": sign_threshold(self.origin["dtype"]) * largest,
            "largest_probe_error": operator.certificate.probe_error if operator.certificate else None,
            "num_products": pairs.num_products + traces.num_products + (band.num_products if band else 0),
            "distribution_band_width": band.width if band is not None else None,
            **sharpness,
        }
        return SpectraFile(
            step=origin.pop("step"),
            matrix=origin.pop("matrix"),
            spectrum=type(method).__name__.lower(),
            inputs_hash=self.unfinished.identity,
            origin={**origin, "way": operator.way},
            numbers={name: number for name, number in numbers.items() if number is not None},
            mean=MeanSpectrum(
                pairs.values[::-1].copy(),
                pairs.values[:num_top].copy(),
                pairs.vectors[:, :num_top].copy(),
                pairs.residuals[:num_top].copy(),
                gradient,
            ),
            layers=_parameters(operator, traces),
            modules=_modules(operator, traces),
            density=_density(band) if band is not None else None,
            distribution=_band(band) if band is not None else None,
        )


@dataclass(frozen=True)
class Preconditioned:
    """D H D of an operator H and the diagonal D with entries `scale`, (P,)."""

    operator: CurvatureOperator
    scale: Array

    @property
    def num_rows(self) -> int:
        return self.operator.num_rows

    @property
    def columns_per_pass(self) -> int:
        return self.operator.columns_per_pass

    def dense(self) -> Array:
        scaled: Array = self.scale[:, None] * self.operator.dense() * self.scale
        return scaled

    def matvec(self, vectors: Array) -> Array:
        column = self.scale[:, None]
        product: Array = column * self.operator.matvec(column * vectors)
        return product


def half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def _parameters(operator: CurvatureOperator, traces: Traces) -> LayerBlocks:
    layout = operator.layout
    estimates = [traces.parameters[name] for name in layout.names]
    return LayerBlocks(
        layout.names,
        layout.shapes,
        np.asarray(layout.offsets),
        block_norms=None,
        trace=np.array([each.value for each in estimates]),
        eigenvalues={},
        trace_half_width=np.array([half_width(each) for each in estimates]),
    )


def _modules(operator: CurvatureOperator, traces: Traces) -> ModuleBlocks:
    spans = operator.layout.layers()
    return ModuleBlocks(
        np.array([*spans]),
        np.array([span.stop - span.start for span in spans.values()]),
        trace=np.array([traces.layers[name].value for name in spans]),
        lambda_max=np.full(len(spans), np.nan),
        trace_half_width=np.array([half_width(traces.layers[name]) for name in spans]),
    )


def _density(band: SpectralDistribution) -> Density:
    grid = band.grid
    nothing = np.zeros((0, len(grid.coordinates)))
    return Density(grid.eigenvalues, band.density, nothing, band.error, grid.coordinates)


def _band(band: SpectralDistribution) -> DistributionBand:
    return DistributionBand(band.points[1:], band.low[1:], band.high[1:])
