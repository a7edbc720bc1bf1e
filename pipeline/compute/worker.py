"""A batch's matrix, or a band of it, in another process, which is told the config and the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import yaml

from pipeline.cluster import Cluster, Threads
from pipeline.errors import PipelineError
from pipeline.shards import Band
from pipeline.system import OtherExperiment, RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.compute.distribution import Processes, Work
    from pipeline.experiment import Experiment

_alone = Lock()


def processes_of(cluster: Cluster, experiment: Experiment, folder: RunFolder) -> Processes | None:
    """How shards are computed by workers of a cluster; None for threads, which share this process's cores anyway."""
    if isinstance(cluster, Threads):
        return None

    def compute(work: Callable[[int], list[Work]]) -> None:
        from pipeline.cluster import fan_out

        about = config_and_folder(experiment, folder)
        fan_out(
            cluster,
            folder.path / ".dask",
            compute_shard,
            lambda num_workers: [(*about, each) for each in work(num_workers)],
        )

    return compute


def config_and_folder(experiment: Experiment, folder: RunFolder) -> tuple[str, str]:
    """The config and the run folder."""
    return yaml.safe_dump(dict(experiment.recipe)), str(folder.path.absolute())


def compute_shard(config: str, folder: str, work: tuple[int, int, Band | None]) -> None:
    """Compute a shard of a run, or a band of one, unless it is there; weights come from the checkpoint.

    config: YAML. work: the step, the batch, and the band of its matrix; None for all of it.
    """
    from pipeline.compute.stage import matrices_of

    step, batch, band = work
    run, experiment = RunFolder(Path(folder)), experiment_of(config)
    with alone():
        experiment.problem.load(run.checkpoint(step))
        [matrix] = matrices_of(
            run, step, experiment.problem, experiment.batches(), experiment.matrix, only=batch
        )
        if band is not None:
            matrix.write_band(band)
        elif matrix.there() is None:
            matrix.write()


@contextmanager
def alone() -> Iterator[None]:
    """Within it a thread has the worker's model for itself, whose weights are those of one call at a time.

    Raises:
        PipelineError: in place of OtherExperiment: what differs is the worker's, for the run itself has looked before.
    """
    try:
        with _alone:
            yield
    except OtherExperiment as error:  # the run itself has looked before
        raise PipelineError(
            f"a worker has other code or files than the run ({error.where} differ): start the workers anew; "
            "what your own classes draw must be the same in each process."
        ) from error


@lru_cache(maxsize=1)
def experiment_of(config: str) -> Experiment:
    """Built once in each worker, not once for each batch. config: YAML."""
    from pipeline.cluster import worker_number
    from pipeline.experiment import as_config, build_experiment

    return build_experiment(as_config(yaml.safe_load(config)), worker=worker_number())
