"""One Dask worker process against two, each with one thread: computing batches, rows of one matrix, and aggregation.

    python scripts/benchmark_workers.py                     # three minutes a round
    python scripts/benchmark_workers.py --only rows --hidden 240 --strategy khatri_rao
    python scripts/benchmark_workers.py --only products     # two workers against one process with one and two threads

Each run is a `python -m pipeline.run` of the digits MLP with so many hidden units in a folder of its own. What is told
are the seconds of the stage in `summary.json`, the start of the workers among them. The results must be identical.
Products are those of a run without matrices, of a conv net and 8 batches of digits; eigenvalues must agree to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.results import SpectraFile
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
    "strategy.num_trace_products=16",
    "strategy.keep_products=false",
    "spectrum=topk",
    "spectrum.num_top=2",
    "spectrum.tolerance=1e-3",
    "stages=[train,compute]",
)
PROCESSES = {
    "1 process, 1 thread": ("device.num_threads=1",),
    "1 process, 2 threads": ("device.num_threads=2",),
    "2 workers, 1 thread each": ("device.num_threads=1", "cluster=local", "cluster.num_workers=2"),
}


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


def compare_products(rounds: int, scratch: Path) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    eigenvalues, summary = {}, {}
    for number in range(rounds):
        for place, (name, options) in enumerate(PROCESSES.items()):
            folder = scratch / f"products-{number}-{place}"
            summary[name] = run(folder, *CONV_NET, *options)
            seconds[name].append(summary[name]["seconds_compute"])
            [step] = RunFolder(folder).spectrum_steps()
            eigenvalues[name] = SpectraFile.read(RunFolder(folder).spectrum(step)).mean.eigenvalues
            subprocess.run(["rm", "-rf", folder], check=True)
    alone, *others = PROCESSES
    print(f"products   P = {int(summary[alone]['num_parameters']):,}, seconds of the stage compute")
    for name in PROCESSES:
        ratio = statistics.median(a / b for a, b in zip(seconds[alone], seconds[name], strict=True))
        products = int(summary[name]["num_products"])
        told = f"{statistics.median(seconds[name]):6.1f} s for {products} products: {ratio:.2f} times as fast"
        print(f"    {name:25}{told}", flush=True)
    off = max(np.abs(eigenvalues[name] / eigenvalues[alone] - 1).max() for name in others)
    print(f"    eigenvalues agree to {off:.1e}", flush=True)
    if not off < 1e-5:
        raise SystemExit("these are not the same numbers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="batches,rows,aggregate")
    parser.add_argument("--hidden", type=int, default=80, help="hidden units: 75 weights each")
    parser.add_argument("--strategy", default="hvp", help="of both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs"), help="where runs are written")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began; P = {75 * options.hidden + 10:,}"
        " but for products"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for kind in options.only.split(","):
            if kind == "products":
                compare_products(options.rounds, Path(scratch).absolute())
                continue
            net = (f"model.hidden_sizes=[{options.hidden}]", f"strategy={options.strategy}")
            compare(kind, net, options.rounds, Path(scratch).absolute())


if __name__ == "__main__":
    main()
