"""What a person can choose where matrices fit neither the disk nor memory: each way that would do, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isqrt

from pipeline.config import Blocks, Keep
from pipeline.experiment import Experiment
from pipeline.shards import file_size
from pipeline.spectrum import SLQ, Exact, SpectrumMethod, TopK
from pipeline.strategy import HVP

PRODUCTS = "strategy=matrix_free with spectrum=slq, which stores no matrix (docs/howto/matrix_free.md)"
OTHER_DISK = "another disk with hydra.run.dir=FOLDER"


def ways_on_disk(
    experiment: Experiment, num_files: Callable[[Experiment], int], free_bytes: int
) -> list[str]:
    """Changes of the options with which all files of a run fit into `free_bytes` of disk; at last, another disk.

    num_files: of one matrix each, that the run leaves.
    """
    spec = experiment.matrix
    several = len(experiment.batches()) > 1
    changed = {}
    if spec.keep is Keep.all and several:
        changed["keep=mean"] = replace(experiment, matrix=replace(spec, keep=Keep.mean))
    if several:
        changed["num_batches=1"] = replace(experiment, num_batches=1)
    if experiment.checkpoint_steps:
        changed["no checkpoint_steps"] = replace(experiment, checkpoint_steps=())
    if spec.blocks is Blocks.all and len(experiment.layout().layers()) > 1:
        changed["blocks=layer"] = replace(experiment, matrix=replace(spec, blocks=Blocks.layer))

    def needed(one: Experiment, itemsize: int) -> int:
        return num_files(one) * bytes_on_disk(one, itemsize)

    itemsize = stored_itemsize(experiment)
    ways = [name for name, one in changed.items() if needed(one, itemsize) <= free_bytes]
    if itemsize == 8 and needed(experiment, 4) <= free_bytes:
        ways.append("dtype=float32, or storage.precision=float32")
    if "blocks=layer" in changed and "keep=mean" in changed and not ways:
        both = replace(changed["blocks=layer"], matrix=replace(spec, keep=Keep.mean, blocks=Blocks.layer))
        ways += ["blocks=layer with keep=mean"] if needed(both, itemsize) <= free_bytes else []
    fits = isqrt(2 * free_bytes // max(1, num_files(experiment) * itemsize))
    return [*ways, *_fewer_weights(experiment, fits), PRODUCTS, OTHER_DISK]


def ways_in_memory(experiment: Experiment, option: str, num_bytes: int, free_bytes: int) -> list[str]:
    """Changes with which what `option` holds fits into `free_bytes` of memory, where it needs `num_bytes`."""
    num_rows, itemsize = experiment.layout().num_parameters, experiment.problem.dtype.itemsize
    ways = []
    if option.startswith("spectrum=") and isinstance(experiment.spectrum, Exact):
        others: dict[str, SpectrumMethod] = {"spectrum=slq": SLQ(), "spectrum=topk": TopK()}
        ways += [name for name, each in others.items() if each.memory(num_rows, itemsize) <= free_bytes]
    if option.startswith("strategy=") and not isinstance(experiment.matrix.strategy, HVP):
        ways += ["strategy=hvp"] if HVP().memory(num_rows, itemsize) <= free_bytes else []
    if itemsize == 8 and num_bytes // 2 <= free_bytes:
        ways.append("dtype=float32")
    quadratic = isinstance(experiment.spectrum, Exact) or option.startswith("strategy=")
    share = free_bytes / num_bytes
    fewer = _fewer_weights(experiment, int(num_rows * (share**0.5 if quadratic else share)))
    return [*ways, *fewer, PRODUCTS] if quadratic else [*ways, *fewer]


def bytes_on_disk(experiment: Experiment, itemsize: int | None = None) -> int:
    """Of one matrix. itemsize: of its numbers; None as the options say."""
    spec = experiment.matrix
    stored = itemsize or stored_itemsize(experiment)
    return file_size(experiment.layout(), stored, spec.blocks.value, spec.storage.tile)


def stored_itemsize(experiment: Experiment) -> int:
    """Bytes of a number on disk."""
    return 4 if experiment.matrix.storage.precision == "float32" else experiment.problem.dtype.itemsize


def _fewer_weights(experiment: Experiment, fits: int) -> list[str]:
    """The largest layer whose weights are few enough, as an example of `parameters`."""
    layout = experiment.layout()
    sizes = {name: span.stop - span.start for name, span in layout.layers().items()}
    small = {name: size for name, size in sizes.items() if size <= fits and name not in layout.names}
    if len(layout.names) == 1 or fits < 1:
        return []
    example = ""
    if small:
        name = max(small, key=lambda each: small[each])
        example = f', such as parameters=["{name}.*"] with {small[name]:,}'
    return [f"fewer weights (parameters=[...], about {fits:,} at most{example})"]
