"""Hessians of neural networks with respect to their weights, on disk and in memory, and their spectra.

`hessian(model, criterion, inputs, targets)` gives the matrix as a tensor, `layer_hessians` its blocks for each layer,
`sample_hessians` one for each sample; `eigenvalues(matrix)` and `plot_spectrum(matrix)` take it from there.
`curvature_operator(model, criterion, batches)` gives products with the matrix of a net of any size; `eigenpairs`,
`density`, `trace`, `diagonal` and `solve` take it, or a stored matrix; `gram_spectrum` gives all eigenvalues of a GGN.
`open_shard`, `open_run` and `open_sweep` read what runs left behind. The pipeline itself is `python -m pipeline.run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.system import __version__ as __version__

if TYPE_CHECKING:
    from pipeline.compute.dense import hessian, layer_hessians, sample_hessians
    from pipeline.operator import curvature_operator, gram_spectrum
    from pipeline.report.spectrum_axes import plot_spectrum
    from pipeline.results.matrix_eigenvalues import eigenvalues
    from pipeline.results.run import open_run
    from pipeline.shards.shard import open_shard
    from pipeline.spectrum import diagonal, eigenpairs, solve, trace
    from pipeline.spectrum.distribution import density
    from pipeline.sweep.jobs import open_sweep

__all__ = [
    "curvature_operator",
    "density",
    "diagonal",
    "eigenpairs",
    "eigenvalues",
    "gram_spectrum",
    "hessian",
    "layer_hessians",
    "open_run",
    "open_shard",
    "open_sweep",
    "plot_spectrum",
    "sample_hessians",
    "solve",
    "trace",
]

_HOMES = {
    "curvature_operator": "pipeline.operator",
    "density": "pipeline.spectrum.distribution",
    "diagonal": "pipeline.spectrum",
    "eigenpairs": "pipeline.spectrum",
    "eigenvalues": "pipeline.results.matrix_eigenvalues",
    "gram_spectrum": "pipeline.operator",
    "hessian": "pipeline.compute.dense",
    "layer_hessians": "pipeline.compute.dense",
    "open_run": "pipeline.results.run",
    "open_shard": "pipeline.shards.shard",
    "open_sweep": "pipeline.sweep.jobs",
    "plot_spectrum": "pipeline.report.spectrum_axes",
    "sample_hessians": "pipeline.compute.dense",
    "solve": "pipeline.spectrum",
    "trace": "pipeline.spectrum",
}


def __getattr__(name: str) -> Any:
    """Import an entry point when it is first asked for: `--help` needs no torch, reading a shard needs none either."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, for `dir(pipeline)` and completion; nothing is imported for it."""
    return sorted({*__all__, "__version__", "__doc__", "__name__", "__path__", "__file__"})
