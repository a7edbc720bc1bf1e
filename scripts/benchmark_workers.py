"""One Dask worker process against two, each with one thread: computing batches, rows of one matrix, and aggregation.

    python scripts/benchmark_workers.py                     # three minutes a round
    python scripts/benchmark_workers.py --only rows --hidden 240 --strategy khatri_rao
    python scripts/benchmark_workers.py --only products     # two workers against one process with one and two threads

Each run is a `python -m pipeline.run` of the digits MLP with so many hidden units in a folder of its own. What is told
are the seconds of the stage in `summary.json`, the start of the workers among them. The results must be identical.
Products are those of a run without matrices, of a conv net and 8 batches of digits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.cluster import Local
from pipeline.compute.product_workers import ProductWorkers, evidence_of
from pipeline.compute.worker import config_and_folder
from pipeline.config import settings_of
from pipeline.experiment import as_config, build_experiment
from pipeline.operator import curvature_operator, parts_of
from pipeline.shards import Array
from pipeline.shards.hdf5 import read_array_file, read_arrays
from pipeline.system.run_folder import RunFolder

PROJECT = Path(__file__).resolve().parents[1]
OPTIONS = (
    "device=cpu",
    "tracking=none",
    "slice_points=null",
    "training.num_steps=50",
    "hydra.output_subdir=null",
)
KINDS = {  # what is computed, and the stage that is timed
    "batches": (("stages=[train,compute]",), "compute"),
    "rows": (("stages=[train,compute]", "data.batch_size=null"), "compute"),
    "aggregate": (("stages=[aggregate]", "spectrum=topk"), "aggregate"),
}
CONV_NET = (
    "model=cnn",
    "model.num_channels=[64,128,256]",
    "data.size=16",
    "data.num_samples=1024",
    "data.batch_size=128",
    "strategy=matrix_free",
    "stages=[train]",
)
SIZES = ("input_shape", "num_outputs")  # of the data, which says them itself


def run(folder: Path, *options: str) -> dict[str, float]:
    """What summary.json says after a run."""
    command = [sys.executable, "-m", "pipeline.run", *OPTIONS, *options, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    summary: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return summary


def content(folder: RunFolder) -> dict[str, bytes]:
    """The checksums of all tiles, and all that aggregation found."""
    found = {}
    for step in folder.shard_steps():
        for path in folder.shard_paths(step):
            found[f"{step} {path.name}"] = read_arrays(path, ["checksums"])["checksums"].tobytes()
    for step in folder.spectrum_steps():
        arrays = read_array_file(folder.spectrum(step)).arrays
        found |= {
            f"{step} {name}": np.asarray(values)
            .astype("S64" if values.dtype == object else values.dtype)
            .tobytes()
            for name, values in arrays.items()
        }
    return found


def compare(kind: str, net: Sequence[str], rounds: int, scratch: Path) -> None:
    options, stage = KINDS[kind]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    contents = {}
    for number in range(rounds):
        for workers in seconds:
            folder = scratch / f"{kind}-{number}-{workers}"
            if stage == "aggregate":
                run(folder, *net, "stages=[train,compute]")
            cluster = ("cluster=local", f"cluster.num_workers={workers}")
            seconds[workers].append(run(folder, *net, *options, *cluster)[f"seconds_{stage}"])
            contents[workers] = content(RunFolder(folder))
            subprocess.run(["rm", "-rf", folder], check=True)
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
    same = contents[1] == contents[2] and bool(contents[1])
    print(
        f"{kind:10} 1 worker {one:6.1f} s, 2 workers {two:6.1f} s: {ratio:.2f} times as fast; identical: {same}",
        flush=True,
    )


def compare_products(turns: int, net: Sequence[str], scratch: Path) -> None:
    """Each turn takes a product in each way; other work on the machine disturbs the median more than the least."""
    folder = RunFolder(scratch / "products")
    run(folder.path, *net)
    settings = dict(settings_of(folder))
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in SIZES}
    experiment = build_experiment(as_config(settings))
    problem, step = experiment.problem, experiment.last_step
    problem.load(folder.checkpoint(step))
    pairs = [tuple(batch) for batch in experiment.batches()]
    operator = curvature_operator(problem.model, problem.criterion, pairs, way="reverse over reverse")
    parts, evidence = parts_of(operator, 2), evidence_of(experiment, step)
    vectors = np.random.default_rng(0).standard_normal((operator.num_rows, 1)).astype(np.float32)
    begun = time.perf_counter()
    with ProductWorkers(Local(2), config_and_folder(experiment, folder)) as workers:

        def dealt() -> Array:
            torch.set_num_threads(1)
            found = sum(workers.multiply(step, evidence, parts, vectors))
            return np.asarray(found) / sum(sum(part.weights) for part in parts)

        def alone(num_threads: int) -> Array:
            torch.set_num_threads(num_threads)
            return operator.matvec(vectors)

        off = np.linalg.norm(dealt() - alone(1)) / np.linalg.norm(alone(1))
        begin = time.perf_counter() - begun
        ways = {
            "1 process, 1 thread": partial(alone, 1),
            "1 process, 2 threads": partial(alone, 2),
            "2 workers, 1 thread each": dealt,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
    print(f"products   P = {operator.num_rows:,}, {len(pairs)} batches, {operator.way}, {turns} turns")
    print(f"{'':30}{'least':>10}{'median':>10}   seconds a product")
    for name, each in seconds.items():
        print(f"    {name:26}{min(each):10.3f}{statistics.median(each):10.3f}")
    print(f"    the workers' first product, and their start: {begin:.1f} s; products agree to {off:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="batches,rows,aggregate")
    parser.add_argument("--hidden", type=int, default=80, help="hidden units: 75 weights each")
    parser.add_argument("--strategy", default="hvp", help="of both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20, help="of products")
    parser.add_argument("--folder", type=Path, default=Path("outputs"), help="where runs are written")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began")
    if options.only != "products":
        print(f"P = {75 * options.hidden + 10:,}")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for kind in options.only.split(","):
            if kind == "products":
                compare_products(options.turns, CONV_NET, Path(scratch).absolute())
                continue
            net = (f"model.hidden_sizes=[{options.hidden}]", f"strategy={options.strategy}")
            compare(kind, net, options.rounds, Path(scratch).absolute())


if __name__ == "__main__":
    main()
