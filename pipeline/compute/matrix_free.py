"""The compute stage without matrices: the spectra of each checkpoint, from products over all batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.aggregate import LARGEST, CachedMatrix, PartialResults, Scaled
from pipeline.compute.batch_estimates import batch_estimates
from pipeline.compute.estimates import Estimates
from pipeline.compute.identity import identity_of
from pipeline.compute.loss_landscape import joined
from pipeline.compute.product_workers import ProductWorkers, evidence_of
from pipeline.config import Verify
from pipeline.errors import PipelineError, StrategyError
from pipeline.experiment import Experiment
from pipeline.objective import NUM_FIRST, Batch, hash_of, objective_of, observed
from pipeline.operator import (
    COLUMNS_PER_PASS,
    CurvatureOperator,
    Part,
    PartialSum,
    curvature_operator,
    gram_spectrum,
    operators_of_batches,
    parts_of,
    sum_of_parts,
)
from pipeline.results import SecondMoments, SpectraFile, second_moments_at
from pipeline.shards import SHARED, Array
from pipeline.spectrum import SLQ, Eigenpairs, TopK, Watch, distribution_of, eigenpairs, trace
from pipeline.strategy import Gram, MatrixFree
from pipeline.system import RunFolder, available_memory, product_counter, shared_evidence

WRITING = 0.5e9  # bytes a second to the disk, about
SHARE_OF_WRITING = 5  # a product is kept if it took this many times longer than keeping it takes
# Residuals of eigenpairs of a Gram matrix that rounding explains, relative to the largest eigenvalue: 7e-7 and 2e-15
# were seen for the CNN of conf/ on digits.
SINGLE_GRAM, DOUBLE_GRAM = 1e-4, 1e-10
log = logging.getLogger(__name__)


def estimate_spectra(
    folder: RunFolder, experiment: Experiment, workers: ProductWorkers | None = None
) -> None:
    """Write the spectra file of each checkpoint; one that was made of the same is taken as it is.

    The eigenvectors of a checkpoint are where the search begins at the next one. workers: compute products, where there
    are several batches.

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
        if len(steps) > 1:
            experiment.problem.load(folder.checkpoint(step))
        estimation = Estimation.of(folder, experiment, step)
        path = folder.spectrum(step)
        file = SpectraFile.read_if_sound(path)
        if file is not None and file.inputs_hash == estimation.unfinished.identity:
            log.info("%s is up to date: taken as it is.", path.relative_to(folder.path))
        else:
            file = estimation.file(start, workers)
            file.write(path)
        estimation.unfinished.remove()
        start = file.mean.top_eigenvectors


@dataclass(frozen=True)
class Estimation:
    """The spectrum at one checkpoint, whose weights the model has, over all batches.

    origin: what the spectra file says of the experiment. unfinished: where products are kept.
    """

    experiment: Experiment
    batches: Sequence[Batch]
    step: int
    origin: Mapping[str, Any]
    unfinished: PartialResults
    second_moments: SecondMoments | None

    @staticmethod
    def of(folder: RunFolder, experiment: Experiment, step: int) -> Estimation:
        problem, spec = experiment.problem, experiment.matrix
        batches = experiment.batches()
        at = objective_of(problem.model, problem.criterion, spec.parameters)
        names = identity_of(problem, spec, at, step, batches[0])
        names |= {"dtype": str(problem.dtype).removeprefix("torch.")}
        moments = second_moments_at(folder.second_moments(step))
        identity = [
            [names[key] for key in SHARED],
            [hash_of(batch) for batch in batches],
            spec.strategy,
            experiment.spectrum,
            moments.fingerprint if moments is not None else None,
        ]
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        first = observed("first", *at, batches[0].chunk(0, NUM_FIRST))
        origin = {key: names[key] for key in (*SHARED, "torch_version")} | shared_evidence({**names, **first})
        unfinished = PartialResults(folder.unfinished(step), digest)
        return Estimation(experiment, batches, step, origin, unfinished, moments)

    def file(self, start: Array | None, workers: ProductWorkers | None = None) -> SpectraFile:
        """Estimate all of it. start: (P, k) vectors near the ones that are sought. workers: compute products."""
        choices = self._choices()
        operator = self._operator(choices.get("way"))
        memory = int(choices.get("memory", available_memory() // 2))
        num_parts = self._num_parts(choices, workers)
        if not choices:
            chosen = {"way": operator.way, "memory": memory, "parts": num_parts}
            self.unfinished.save("choices", chosen, {})
        loss, gradient = operator.loss_and_gradient()
        method, strategy = self.experiment.spectrum, self.experiment.matrix.strategy
        num_samples = sum(batch.num_samples for batch in self.batches)
        numbers = {"loss": loss, "num_samples": num_samples, "num_batches": len(self.batches)}
        if operator.certificate is not None:
            numbers["largest_probe_error"] = operator.certificate.probe_error
        if isinstance(strategy, Gram):
            estimates = self._by_gram_matrix(operator, method.num_top)
        else:
            assert isinstance(strategy, MatrixFree), "no matrix is computed"
            assert isinstance(method, TopK | SLQ), "settled before"
            in_parts = self._in_parts(operator, num_parts, workers)
            estimates = self._by_products(in_parts, strategy, method, memory, start)
            if strategy.each_batch and len(self.batches) > 1:
                estimates = self._with_batches(operator, estimates, strategy, method, memory)
        return estimates.file(
            operator.layout,
            {**self.origin, "way": operator.way},
            numbers,
            gradient.numpy(),
            type(method).__name__.lower(),
            self.unfinished.identity,
        )

    def _by_products(
        self,
        operator: CurvatureOperator,
        strategy: MatrixFree,
        method: TopK | SLQ,
        memory: int,
        start: Array | None,
    ) -> Estimates:
        matrix = self._kept(operator, "products", strategy)
        with product_counter(f"products at step {self.step}") as watch:
            pairs = _pairs(matrix, method, method.num_top, method.num_bottom, start, watch, memory)
            traces = trace(matrix, strategy.num_trace_products, pairs=pairs, seed=method.seed)
            band = None
            if isinstance(method, SLQ) and len(pairs.values) < operator.num_rows:
                sizes = (strategy.num_density_vectors, strategy.num_density_steps)
                band = distribution_of(
                    matrix, *sizes, pairs=pairs, seed=method.seed, watch=watch, memory=memory
                )
            sharpness = self._preconditioned(operator, strategy, memory)
        return Estimates.of_products(pairs, min(method.num_top, operator.num_rows), traces, band, sharpness)

    def _with_batches(
        self,
        operator: CurvatureOperator,
        estimates: Estimates,
        strategy: MatrixFree,
        method: TopK | SLQ,
        memory: int,
    ) -> Estimates:
        """The same estimates with those of each batch's own matrix."""
        top = estimates.vectors

        def search(matrix: Any, batch: int) -> Eigenpairs:
            with product_counter(f"products of batch {batch} at step {self.step}") as watch:
                return _pairs(matrix, method, top.shape[1], 0, top, watch, memory)

        found = batch_estimates(
            operators_of_batches(operator),
            [batch.num_samples for batch in self.batches],
            top,
            estimates.norm,
            search,
            strategy.num_trace_products,
            method.seed,
            keep=lambda matrix, name: self._kept(matrix, name, strategy),
        )
        return replace(estimates, batches=found, numbers={**estimates.numbers, **found.headline})

    def _by_gram_matrix(self, operator: CurvatureOperator, num_top: int) -> Estimates:
        """All eigenvalues, and the residuals of the largest ones by products that share nothing with them.

        Raises:
            PipelineError: it does not fit into memory, the matrix is no Gauss-Newton matrix, or the products differ.
        """
        problem, spec = self.experiment.problem, self.experiment.matrix
        (batch,) = joined(self.batches, None)
        about = (problem.model, problem.criterion, *batch, spec.matrix, spec.parameters)
        found = gram_spectrum(*about, num_vectors=num_top)
        values = np.zeros(operator.num_rows)
        values[: len(found.eigenvalues)] = found.eigenvalues
        top = values[: found.vectors.shape[1]]
        residuals = np.linalg.norm(operator.matvec(found.vectors) - found.vectors * top, axis=0)
        allowed = SINGLE_GRAM if problem.dtype.itemsize < 8 else DOUBLE_GRAM
        largest = values.max(initial=0.0)
        if (residuals > allowed * largest).any():
            off = residuals.max() / largest if largest else np.inf
            raise PipelineError(
                f"eigenpairs of the Gram matrix are {off:.1e} of the largest eigenvalue off "
                f"products with the matrix, {allowed:g} is allowed: choose strategy=matrix_free, or dtype=float64."
            )
        return Estimates.of_all(values, found.vectors, residuals, found.traces, operator.layout)

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
                [tuple(batch) for batch in self.batches],
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

    def _num_parts(self, choices: Mapping[str, Any], workers: ProductWorkers | None) -> int:
        """One for each worker that there is now; a run that goes on has as many as before, for the same rounding."""
        num_batches = len(self.batches)
        if choices:
            return int(choices.get("parts", 1))
        if workers is None or num_batches == 1 or isinstance(self.experiment.matrix.strategy, Gram):
            return 1
        return min(num_batches, workers.num_workers)

    def _in_parts(
        self, operator: CurvatureOperator, num_parts: int, workers: ProductWorkers | None
    ) -> CurvatureOperator:
        """The operator, or the same with products that are added from sums over parts of the batches."""
        if num_parts == 1:
            return operator
        parts = parts_of(operator, num_parts)
        if workers is None:
            multiply = self._multiply_here(parts)
        else:
            log.info("products are dealt to the workers in %d parts of the batches.", num_parts)
            evidence = evidence_of(self.experiment, self.step)
            multiply = partial(workers.multiply, self.step, evidence, parts)
        return sum_of_parts(operator, parts, multiply)

    def _multiply_here(self, parts: Sequence[Part]) -> Callable[[Array], Sequence[Array]]:
        """The sums of parts one after another, to go on with what workers have begun."""
        problem, spec = self.experiment.problem, self.experiment.matrix
        about = (problem.model, problem.criterion, self.batches, spec.matrix, spec.parameters)
        sums = [PartialSum.of(part, *about, share=1 / len(parts)) for part in parts]
        return lambda vectors: [each(vectors) for each in sums]

    def _kept(self, matrix: Any, name: str, strategy: MatrixFree) -> Any:
        if not strategy.keep_products:
            return matrix
        num_bytes = self.experiment.problem.dtype.itemsize * matrix.num_rows * COLUMNS_PER_PASS
        return CachedMatrix(matrix, self.unfinished, name, slow=SHARE_OF_WRITING * num_bytes / WRITING)

    def _preconditioned(
        self, operator: CurvatureOperator, strategy: MatrixFree, memory: int
    ) -> Eigenpairs | None:
        """The largest pair of P^(−1/2) H P^(−1/2), where Adam has left the diagonal of P."""
        moments = self.second_moments
        diagonal = moments.preconditioner(operator.layout) if moments is not None else None
        if diagonal is None:
            return None
        matrix = self._kept(Scaled(operator, 1 / np.sqrt(diagonal)), "preconditioned", strategy)
        try:
            return eigenpairs(*(matrix, 1, 0, LARGEST.tolerance), block_size=COLUMNS_PER_PASS, memory=memory)
        except PipelineError as error:
            log.warning("no largest eigenvalue of the preconditioned matrix: %s", error)
            return None


def _pairs(
    matrix: Any,
    method: TopK | SLQ,
    num_top: int,
    num_bottom: int,
    start: Array | None,
    watch: Watch,
    memory: int,
) -> Eigenpairs:
    return eigenpairs(
        matrix,
        num_top,
        num_bottom,
        method.tolerance,
        max_products=method.max_passes * method.num_columns_per_pass,
        seed=method.seed,
        start=start,
        watch=watch,
        memory=memory,
    )
