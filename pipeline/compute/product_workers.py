"""Products whose batches are dealt to the workers of a cluster: each computes the sum over a part of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipeline.cluster import Address, Cluster, Pool, Threads, opened, worker_share
from pipeline.compute.identity import identity_of
from pipeline.compute.worker import alone, config_and_folder, experiment_of
from pipeline.experiment import Experiment
from pipeline.objective import NUM_FIRST, hash_of, objective_of, observed
from pipeline.operator import Part, PartialSum
from pipeline.shards import Array
from pipeline.system import OtherExperiment, RunFolder, check_evidence, num_cores

SAME = ("matrix", "config_hash", "weights_hash")  # in a worker as in the run


@dataclass
class ProductWorkers:
    """The workers of a cluster, which are started when they are first asked for, and go when the context ends.

    about: the config and the run folder, as workers are told.
    """

    cluster: Cluster
    about: tuple[str, str]
    stack: ExitStack = field(default_factory=ExitStack)

    @staticmethod
    def of(cluster: Cluster, experiment: Experiment, folder: RunFolder) -> ProductWorkers | None:
        """None for threads, which share this process's cores anyway."""
        if isinstance(cluster, Threads):
            return None
        return ProductWorkers(cluster, config_and_folder(experiment, folder))

    def __enter__(self) -> ProductWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self.stack.__exit__(kind, error, traceback)

    @cached_property
    def pool(self) -> Pool:
        return self.stack.enter_context(opened(self.cluster, Path(self.about[1]) / ".dask"))

    @property
    def num_workers(self) -> int:
        """They are started to be counted only where it is not known else."""
        return num_product_workers(self.cluster) or self.pool.num_workers

    def multiply(
        self, step: int, evidence: Mapping[str, Any], parts: Sequence[Part], vectors: Array
    ) -> Sequence[Array]:
        """The sums of all parts, (P, m) in float64. evidence: of `evidence_of`, at that step."""
        encoded = json.dumps(evidence)
        calls = [(*self.about, step, encoded, part, vectors) for part in parts]
        return self.pool.map(partial_product, calls)


def num_product_workers(cluster: Cluster) -> int | None:
    """Processes that products will be dealt to; None where that is not known before they are there."""
    if isinstance(cluster, Threads):
        return 1
    return None if isinstance(cluster, Address) else getattr(cluster, "num_workers", None) or num_cores()


def partial_product(config: str, folder: str, step: int, evidence: str, part: Part, vectors: Array) -> Array:
    """Σ_b t_b H_b V over the batches of a part, (P, m) in float64, in a worker; weights come from the checkpoint.

    What products are computed from is built once, and kept for the next call: a part costs its graphs in each worker
    that has been asked for it. config: YAML. evidence: JSON.

    Raises:
        PipelineError: the worker has other code or files than the run.
    """
    with alone():
        sums = _sums(config, folder, step, evidence)
        if part not in sums:
            checkpoint = RunFolder(Path(folder)).checkpoint(step)
            experiment = _checked(experiment_of(config), checkpoint, step, json.loads(evidence))
            sums[part] = _sum_of(part, experiment, num_others=len(sums))
        return sums[part](vectors)


@lru_cache(maxsize=1)
def _sums(config: str, folder: str, step: int, evidence: str) -> dict[Part, PartialSum]:
    """Those of one checkpoint: with another one they are let go, and their graphs."""
    return {}


def _checked(experiment: Experiment, checkpoint: Path, step: int, evidence: Mapping[str, Any]) -> Experiment:
    """The experiment with the weights of the checkpoint, if it is that of the run."""
    experiment.problem.load(checkpoint)
    own = evidence_of(experiment, step)
    for key in ("batches", *SAME):
        if own[key] != evidence[key]:
            raise OtherExperiment(checkpoint, "other settings or files", f"its {key.removesuffix('_hash')}")
    check_evidence(checkpoint, evidence, own)
    return experiment


def _sum_of(part: Part, experiment: Experiment, num_others: int) -> PartialSum:
    """num_others: parts that this worker has already, which leave less memory to a further one."""
    problem, spec = experiment.problem, experiment.matrix
    share = worker_share()
    if next(problem.model.parameters()).is_cuda:  # workers take the GPUs of a machine in turn
        share = min(1.0, share * torch.cuda.device_count())
    about = (problem.model, problem.criterion, experiment.batches(), spec.matrix, spec.parameters)
    return PartialSum.of(part, *about, share=share / 2**num_others)


def evidence_of(experiment: Experiment, step: int) -> dict[str, Any]:
    """What the products at a checkpoint depend on, whose weights the model has: numbers and texts."""
    problem, spec, batches = experiment.problem, experiment.matrix, experiment.batches()
    at = objective_of(problem.model, problem.criterion, spec.parameters)
    names = identity_of(problem, spec, at, step, batches[0])
    first = observed("first", *at, batches[0].chunk(0, NUM_FIRST))
    kept = {key: names[key] for key in (*SAME, "train_hash")}
    return {**kept, **first, "batches": [hash_of(batch) for batch in batches]}
