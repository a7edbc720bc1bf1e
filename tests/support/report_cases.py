"""Spectra files of synthetic matrices with a bulk, outliers and both signs, summed up by NumPy alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import yaml

from pipeline.results.spectra_file import (
    BatchSpectra,
    Density,
    DistributionBand,
    LandscapeFile,
    LayerBlocks,
    Lines,
    MeanSpectrum,
    ModuleBlocks,
    Plane,
    SpectraFile,
)

HASH = "0f1e2d3c"  # of the config

ROWS_OF_A_LAYER = (24, 8, 12, 4)
HISTORY = """step,train_loss,train_accuracy,test_loss,test_accuracy
0,2.3,0.1,2.31,0.09
60,0.4,0.9,0.45,0.88
120,0.05,0.99,0.11,0.97
"""


def matrices(num_batches, num_rows, negative=True, seed=0):
    """Symmetric matrices (B, P, P): ten outliers that all batches share, and a bulk of each batch's own."""
    rng = np.random.default_rng(seed)
    shared = np.linalg.qr(rng.normal(size=(num_rows, min(10, num_rows))))[0]
    found = []
    for _ in range(num_batches):
        bulk = rng.normal(size=(num_rows, num_rows)) * 0.03
        bulk = (bulk + bulk.T) / 2 if negative else bulk @ bulk.T
        heights = np.geomspace(20, 1, shared.shape[1]) * rng.uniform(0.7, 1.4, shared.shape[1])
        found.append((shared * heights) @ shared.T + bulk)
    return np.array(found)


def density(eigenvalues, grid, width):
    """Gaussian kernels in the coordinate asinh(eigenvalue / width), of integral one in it."""
    points, places = np.arcsinh(grid / width), np.arcsinh(eigenvalues / width)
    kernels = np.exp(-0.5 * ((points[:, None] - places) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
    return kernels.mean(axis=1)


def spectra(
    num_batches=6, num_layers=4, spectrum="exact", negative=True, zero=False, step=120, names=None, num_top=5
):
    """What aggregation would write for such matrices."""
    sizes = [ROWS_OF_A_LAYER[i % 4] for i in range(num_layers)]
    offsets = np.cumsum([0, *sizes])
    each = matrices(num_batches, offsets[-1], negative, seed=step) * (0.0 if zero else 1.0)
    num_samples = np.full(num_batches, 50)
    num_samples[-1] = 17
    weights = num_samples / num_samples.sum()
    mean = np.tensordot(weights, each, 1)
    values, vectors = np.linalg.eigh(mean)
    own = [np.linalg.eigh(matrix) for matrix in each]
    tops = [pair[1][:, ::-1][:, :num_top] for pair in own]
    top = vectors[:, ::-1][:, :num_top]
    norm = float(np.linalg.norm(mean))
    grid = np.sinh(np.linspace(-12, 12, 300)) * 1e-3
    blocks = [slice(*offsets[i : i + 2]) for i in range(num_layers)]
    layers = [slice(offsets[i], offsets[min(i + 2, num_layers)]) for i in range(0, num_layers, 2)]
    names = names or [f"layers.{i // 2}.{'bias' if i % 2 else 'weight'}" for i in range(num_layers)]
    distances = np.array([np.linalg.norm(matrix - mean) for matrix in each]) / (norm or 1.0)
    overlap = np.array([[np.sum((a.T @ b) ** 2) / num_top for b in tops] for a in tops])
    exact = spectrum == "exact"
    return SpectraFile(
        step=step,
        matrix="hessian",
        spectrum=spectrum,
        inputs_hash="fedcba98",
        origin={
            "strategy": "func",
            "blocks": "all",
            "reduction": "mean",
            "dtype": "float64",
            "config_hash": HASH,
        },
        numbers={
            "num_parameters": int(offsets[-1]),
            "num_samples": int(num_samples.sum()),
            "num_batches": num_batches,
            "negative_threshold": norm * 1e-4,
            "loss": 0.0421,
            "gradient_norm": 0.0312,
            "trace": float(np.trace(mean)),
            "lambda_max": float(values[-1]),
            "lambda_min": float(values[0]),
            "frobenius_norm": norm,
            "gradient_share_in_top_eigenspace": 0.71,
            **({"num_negative_eigenvalues": int((values < -norm * 1e-4).sum())} if exact else {}),
            **({"participation_ratio": 7.5} if exact else {}),
            **({"mean_overlap_between_batches": 0.66} if num_batches > 1 else {}),
        },
        mean=MeanSpectrum(
            eigenvalues=values if exact else np.concatenate([values[:1], values[-num_top:]]),
            top_eigenvalues=values[::-1][:num_top],
            top_eigenvectors=top,
            residuals=np.zeros(num_top),
            gradient=np.ones(offsets[-1]),
        ),
        batches=BatchSpectra(
            eigenvalues=np.array([pair[0][::-1][:num_top] for pair in own]),
            num_samples=num_samples,
            loss=np.linspace(0.03, 0.05, num_batches),
            gradient_norm=np.linspace(0.1, 0.2, num_batches),
            trace=np.trace(each, axis1=1, axis2=2),
            frobenius_norm=np.linalg.norm(each, axis=(1, 2)),
            lambda_max=np.array([pair[0][-1] for pair in own]),
            distance_to_mean=distances,
            overlap_with_mean=np.array([np.sum((a.T @ top) ** 2) / num_top for a in tops]),
            overlap=overlap,
        ),
        layers=LayerBlocks(
            names=tuple(names),
            shapes=tuple((size // 2, 2) for size in sizes),
            offsets=offsets,
            block_norms=np.array([[np.linalg.norm(mean[a, b]) for b in blocks] for a in blocks]),
            trace=np.array([np.trace(mean[a, a]) for a in blocks]),
            eigenvalues={name: np.linalg.eigvalsh(mean[a, a]) for name, a in zip(names, blocks, strict=True)},
        ),
        modules=ModuleBlocks(
            names=np.array([f"layers.{i}" for i in range((num_layers + 1) // 2)]),
            sizes=np.diff(offsets[[*range(0, num_layers, 2), num_layers]]),
            trace=np.array([np.trace(mean[a, a]) for a in layers]),
            lambda_max=np.array([np.linalg.eigvalsh(mean[a, a])[-1] for a in layers]),
        ),
        density=Density(
            grid=grid,
            values=density(values, grid, 1e-3),
            batches=np.array([density(pair[0], grid, 1e-3) for pair in own]),
        ),
    )


def estimated(**options):
    """What the stage compute writes where no matrix is computed."""
    file = spectra(spectrum="slq", **options)
    half = {"trace_half_width": 0.21, "frobenius_norm_half_width": 0.03}
    width = {"num_products": 435, "distribution_band_width": 0.04, "largest_probe_error": 6.6e-12}
    numbers = {key: value for key, value in file.numbers.items() if key != "mean_overlap_between_batches"}
    points = np.sort(np.concatenate([file.density.grid[::30], file.mean.eigenvalues]))
    share = np.linspace(0.02, 1, len(points))
    return replace(
        file,
        origin={**file.origin, "strategy": "matrix_free", "way": "reverse over reverse, graph kept"},
        numbers={**numbers, **half, **width},
        batches=None,
        density=replace(file.density, batches=np.zeros((0, len(file.density.grid)))),
        distribution=DistributionBand(points, (share - 0.02).clip(0), (share + 0.02).clip(max=1)),
        layers=replace(
            file.layers,
            block_norms=None,
            eigenvalues={},
            trace_half_width=np.full(len(file.layers.names), 0.05),
        ),
        modules=replace(file.modules, lambda_max=np.full(len(file.modules.names), np.nan)),
    )


def bowl(eigenvalues=(4.0, 1.0, 0.5), loss=0.1, inputs_hash="fedcba98", step=120):
    """Slices of a loss that is a quadratic along its eigenvectors."""
    first, second = np.linspace(-1, 1, 13), np.linspace(-2, 2, 13)
    distances = np.array([np.linspace(-1, 1, 27) / np.sqrt(value) for value in eigenvalues])
    slopes, curvatures = np.array([0.2, -0.1, 0.0]), np.array(eigenvalues)
    losses = loss + slopes[:, None] * distances + curvatures[:, None] * distances**2 / 2
    plane = Plane(first, second, loss + 2 * first**2 + second[:, None] ** 2 / 2)
    return LandscapeFile(step, inputs_hash, 27, Lines(curvatures, slopes, distances, losses), plane)


def put(folder, *results, history=HISTORY, config=None):
    """Make a run folder that holds these spectra, and this config."""
    if config is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(yaml.safe_dump({**config, "config_hash": HASH}, sort_keys=False))
    for each in results:
        each.write(folder.spectrum(each.step))
    if history:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        folder.history.write_text(history)
    return folder


CASES = {
    "six batches": {},
    "one batch": {"num_batches": 1},
    "many batches": {"num_batches": 120, "num_layers": 2},
    "one layer": {"num_layers": 1},
    "forty layers": {"num_layers": 40},
    "long names": {
        "names": [f"encoder.layers.{i}.self_attention.output_projection.lora_{i}.weight" for i in range(4)]
    },
    "top k": {"spectrum": "topk"},
    "no negative eigenvalue": {"negative": False},
    "all zero": {"zero": True},
    "top one": {"num_top": 1},
}
