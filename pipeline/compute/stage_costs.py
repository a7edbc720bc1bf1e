"""Seconds and peak memory of each stage, estimated before any of it begins.

What varies with the machine is measured in about a second: a tangent and a product of matrices (`cost_estimate`), a
step of training (`training/trial.py`), all eigenvalues of a small matrix (`spectrum/cost.py`), a loss and a gradient in
float64. What does not is a constant here, fitted to runs, and goes with the speed at which a core runs Python:
`scripts/benchmark_plan.py` shows planned beside actual seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch

from pipeline.aggregate import AT_ONCE, LARGEST, TILES_PER_TASK, sizes_of
from pipeline.compute.cost_estimate import Plan, expected_seconds, fastest
from pipeline.compute.loss_landscape import NUM_LINES
from pipeline.compute.product_costs import ProductCosts
from pipeline.compute.recipe import parts_of
from pipeline.config import Verify
from pipeline.experiment import Experiment
from pipeline.objective import Batch, Objective, Params, Tree, objective_of, predict
from pipeline.spectrum import SPEEDUP, Exact, Rates, SpectrumMethod, TopK
from pipeline.strategy import MatrixFree
from pipeline.training import Adam, GradientTraining, trial_of

LOOP = 3.4e-3  # seconds of the processor for `_loop`, with which the following constants go
A_MATRIX = 0.08  # seconds, beside derivatives and bytes: guards, evidence, a file that is forced to the disk
A_STAGE = 0.1  # seconds in which a stage starts
GRADIENTS = 18  # in float64, of a certificate of two vectors
WRITING = 0.6e9  # bytes a second and core: tiles, checksums, the disk's cache
POOLING = (
    0.35e9  # bytes a second and core: tiles read, checked, added up in float64 and compared with their mean
)
PASSES_EXACT = 14  # of Lanczos in memory for the top eigenvectors beside all eigenvalues
PASSES_TOPK = 10
A_DECOMPOSITION = 0.03  # seconds, beside what grows with the rows
A_REPORT = 2.5  # seconds for figures and page of one step
A_STEP = 0.65  # seconds for one more
MANY = 1024  # samples whose loss is tried
REPORT_BYTES = 250 * 10**6  # figures, page and their libraries


@dataclass(frozen=True)
class StageCost:
    """A stage, what it does, its seconds (None: not known), and the bytes that it holds beside what the process has."""

    stage: str
    work: str
    seconds: float | None
    memory: int


@dataclass(frozen=True)
class Work:
    """What a run has to do; each method gives the cost of a stage.

    experiment: its spectrum is no longer `auto`. num_steps: checkpoints that are aggregated. num_matrices: that are to
    be computed. bytes_each: of a matrix on disk, where a number takes `itemsize`. num_workers: processes or threads
    that share a stage. training: that of the run. product_workers: processes that products are dealt to, None where
    their number is not known; 1 for this process.
    """

    experiment: Experiment
    batches: Sequence[Batch]
    num_steps: int
    num_matrices: int
    bytes_each: int
    itemsize: int
    num_workers: int
    training: object = None
    product_workers: int | None = 1

    @cached_property
    def plan(self) -> Plan:
        """Of the matrix of one batch."""
        spec, problem = self.experiment.matrix, self.experiment.problem
        plans = []
        for part in parts_of(problem.model, problem.criterion, spec.parameters, spec.blocks):
            transformed, drawn = spec.matrix.problem(part.objective, part.params, self.batches[0])
            plans.append(Plan.of(spec.computed_by, transformed, part.params, drawn))
        return Plan.together(plans)

    @property
    def num_rows(self) -> int:
        return self.experiment.layout().num_parameters

    @property
    def num_shards(self) -> int:
        """Of a step, when it is aggregated."""
        keeps_mean = self.experiment.matrix.keeps_mean(len(self.batches))
        return 1 if keeps_mean else len(self.batches)

    def train(self) -> StageCost:
        """Weights, gradients, two means of Adam, and a copy of each while they are saved."""
        problem, num_steps = self.experiment.problem, self.experiment.last_step
        work = f"{num_steps:,} steps" if num_steps else "the weights as they are"
        seconds = A_STAGE * slowness()
        weights = sum(value.numel() * value.element_size() for value in problem.model.parameters())
        if isinstance(self.training, GradientTraining):
            trial = trial_of(self.training, problem.model, problem.criterion, problem.train, problem.test)
            if trial is None:
                return StageCost("train", work, None, 8 * weights)
            seconds += trial.total(self.training)
        elif num_steps:  # a class of the user's own
            return StageCost("train", work, None, 8 * weights)
        return StageCost("train", work, seconds, 8 * weights)

    def matrices(self) -> StageCost:
        """Derivatives and products, bytes on the disk, and a certificate for each."""
        spec = self.experiment.matrix
        derivatives = expected_seconds(self.plan, *self._objective(), self.batches[0])
        checks = 0.0 if spec.verify is Verify.off else GRADIENTS * self._gradient[0]
        each = derivatives + checks + (self.bytes_each / WRITING + A_MATRIX) * slowness()
        seconds = self.num_matrices * each + A_STAGE * slowness()
        memory = spec.computed_by.memory(self.num_rows, self.experiment.problem.dtype.itemsize)
        return StageCost("matrices", f"{self.num_matrices} of {self.plan}", seconds, memory)

    def spectra(self) -> StageCost:
        """Where no matrix is computed: products for eigenpairs, density and traces; or a Gram matrix."""
        objective, params = self._objective()
        first, num_samples = self.batches[0], sum(batch.num_samples for batch in self.batches)
        gradient = fastest(lambda: objective.gradient(params, first), self._place) / first.num_samples
        if isinstance(self.experiment.matrix.strategy, MatrixFree):
            products = ProductCosts(self.experiment, self.batches, self.product_workers)
            seconds, memory = products.seconds(gradient) + products.reading * slowness(), products.memory
            work = str(products)
        else:
            (memory,) = memory_without_matrix(self.experiment).values()
            size = num_outputs(self.experiment)
            seconds = Rates.of("float64").all_eigenvalues(size, "cpu")
            seconds += gradient * num_samples * self.experiment.spectrum.num_top
            work = f"all eigenvalues of a Gram matrix of {size:,} rows"
        seconds = self.num_steps * (seconds + GRADIENTS * self._gradient[0]) + A_STAGE * slowness()
        return StageCost("products", work + self._at, seconds, memory)

    def mean(self) -> StageCost:
        """Every tile of every batch read and added up, and the mean written where there are several."""
        number, tile = self.num_shards, self.experiment.matrix.storage.tile
        seconds = number * self.bytes_each / POOLING / self.num_workers
        if number > 1:
            seconds += self.bytes_each / WRITING
        held = (min(AT_ONCE, number) * self.itemsize + 2 * 8 * TILES_PER_TASK) * tile**2
        work = f"of {number} matrices" if number > 1 else "norms of 1 matrix"
        seconds = (self.num_steps * seconds + A_STAGE) * slowness()
        return StageCost("mean", work + self._at, seconds, held * self.num_workers)

    def spectrum(self) -> StageCost:
        """Blocks of parameters and batches, a worker each; then the mean, with all threads."""
        method, num_rows = self.experiment.spectrum, self.num_rows
        layout = self.experiment.layout()
        share = (
            self._gradient[1] / num_rows if self.num_matrices else 1.0
        )  # other rows are zeros, and left out
        *blocks, whole = [max(1, round(size * share)) for size in sizes_of(layout, num_batches=0)]
        num_batches = self.num_shards if self.num_shards > 1 else 0
        together = sum(self._decomposition(method, size, 1) for size in blocks)
        together += num_batches * self._decomposition(method.of_batch(), whole, 1, method.in_memory)
        layers = [span for span in layout.layers().values() if len(layout.names_in(span)) > 1]
        sizes = [span.stop - span.start for span in layers]
        together += sum(self._decomposition(LARGEST, size, 1, method.in_memory) for size in sizes)
        seconds = together / self.num_workers + self._decomposition(method, whole, None)
        if isinstance(self.training, Adam):  # and of the matrix preconditioned as it does
            seconds += self._decomposition(LARGEST, num_rows, None, method.in_memory)
        held = num_rows**2 * self.itemsize if method.in_memory else 0
        of_batch = held + method.of_batch().memory(num_rows, self.itemsize)
        memory = max(method.memory(num_rows, self.itemsize), min(self.num_workers, num_batches) * of_batch)
        name = "all eigenvalues" if isinstance(method, Exact) else type(method).__name__.lower()
        work = f"{name} of {num_rows:,} rows" + (f", ends of {num_batches} batches" if num_batches else "")
        seconds = self.num_steps * seconds + A_STAGE * slowness()
        return StageCost("spectrum", work + self._at, seconds, memory)

    def landscape(self, num_points: int) -> StageCost:
        """Losses of all samples in float64: k n on lines, m² on the plane."""
        num_lines = min(NUM_LINES, self.experiment.spectrum.num_top, self.num_rows)
        side = (num_points // 2) | 1 if num_lines > 1 else 0
        number = num_lines * (num_points | 1) + side**2 + 2
        num_samples = [batch.num_samples for batch in self.batches]
        objective, params = self._objective(torch.float64)
        some = self.experiment.problem.train.chunk(0, min(sum(num_samples), MANY)).to(dtype=torch.float64)
        with torch.no_grad():
            loss = fastest(lambda: objective.loss(params, some), self._place)
        loss *= sum(num_samples) / some.num_samples
        seconds = self.num_steps * number * loss + A_STAGE * slowness()
        work = f"{number} losses of {sum(num_samples):,} samples"
        return StageCost("landscape", work + self._at, seconds, 8 * self.num_rows * (side + 8))

    def report(self) -> StageCost:
        """Figures and the page."""
        seconds = (A_REPORT + A_STEP * (self.num_steps - 1)) * slowness()
        return StageCost("report", "figures and page", seconds, REPORT_BYTES)

    def _objective(self, dtype: torch.dtype | None = None) -> tuple[Objective, Params]:
        problem = self.experiment.problem
        return objective_of(problem.model, problem.criterion, self.experiment.matrix.parameters, dtype)

    @property
    def _place(self) -> torch.device:
        return next(self.experiment.problem.model.parameters()).device

    @cached_property
    def _gradient(self) -> tuple[float, int]:
        """Seconds of one in float64, and how many weights the loss depends on at the weights of now."""
        objective, params = self._objective(torch.float64)
        batch = self.batches[0].to(dtype=torch.float64)
        seconds = fastest(lambda: objective.gradient(params, batch), self._place)
        return seconds, max(1, int(objective.gradient(params, batch).count_nonzero()))

    @property
    def _at(self) -> str:
        return f" at each of {self.num_steps} checkpoints" if self.num_steps > 1 else ""

    def _decomposition(
        self,
        method: SpectrumMethod,
        num_rows: int,
        num_threads: int | None,
        in_memory: bool | None = None,
    ) -> float:
        """Seconds for one matrix. in_memory: whether it is handed over so; None as the method wants it."""
        rates = Rates.of(f"float{8 * self.itemsize}")
        held = method.in_memory if in_memory is None else in_memory
        seconds = A_DECOMPOSITION * slowness()
        if held:
            seconds += num_rows**2 * self.itemsize / 2 / POOLING * slowness()
        if isinstance(method, Exact):
            seconds += rates.all_eigenvalues(num_rows, method.device, num_threads)
            return seconds + rates.passes(num_rows, 2 * method.num_top, PASSES_EXACT)
        width = getattr(method, "num_columns_per_pass", 2 * method.num_top)
        number = PASSES_TOPK if isinstance(method, TopK) else getattr(method, "num_steps", PASSES_TOPK)
        threads = 1 if num_threads == 1 or held else rates.num_threads
        passes = rates.passes(num_rows, width, number, 0 if held else self.itemsize)
        return seconds + passes / float(threads**SPEEDUP)


def memory_without_matrix(experiment: Experiment) -> dict[str, int]:
    """Bytes where no matrix is computed, by the option: the smallest basis, or a Gram matrix with its vectors."""
    num_rows, method = experiment.layout().num_parameters, experiment.spectrum
    if isinstance(experiment.matrix.strategy, MatrixFree):
        return {"strategy=matrix_free": ProductCosts(experiment, experiment.batches(), 1).fewest_bytes}
    return {"strategy=gram": 3 * 8 * num_outputs(experiment) ** 2 + 8 * num_rows * (method.num_top + 2)}


def num_outputs(experiment: Experiment) -> int:
    """Numbers that the model puts out for the samples of all batches: the rows of a Gram matrix, at most."""
    problem, batches = experiment.problem, experiment.batches()
    with torch.no_grad():
        outputs = predict(problem.model, batches[0].chunk(0, 2).inputs)
    a_sample = sum(value[:1].numel() for value in Tree.of(outputs).tensors)
    return a_sample * sum(batch.num_samples for batch in batches)


@cache
def slowness() -> float:
    """How much slower a core runs Python now than when the constants were fitted. Cost: 20 ms."""
    return fastest(_loop, torch.device("cpu"), 5) / LOOP


def _loop() -> None:
    table: dict[str, int] = {}
    for i in range(12_000):
        table[f"key-{i % 997}"] = table.get(f"key-{i % 331}", 0) + i
    json.dumps(table)
