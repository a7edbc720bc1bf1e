"""What each dataset of a spectra, landscape or law file says of itself, for readers that have nothing but h5py.

The attributes of a dataset are `description`, `unit`, `shape` in symbols, and, where it is a function of something that
lies beside it, `coordinate`: the path of that dataset. P: weights; k: top eigenvectors; B: batches; m: parameters; M:
layers; G: points of the grid of densities; n: points of a line; C: checks of a law; D: diagrams of its figure; S: their
series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LOSS, SLOPE, CURVATURE = "loss", "loss / weight", "loss / weight^2"
PER_DECADE = "1 / decade: integrates to 1 over the coordinate"
GRID, T = "eigenvalue of each point", "/density/coordinate"
TOP, NAMES, KEY = "/mean/top_eigenvalues", "/parameters/names", "/checks/key"

# name: description, unit, shape, coordinate
DATASETS = {
    "mean/eigenvalues": (
        "eigenvalues of the weighted mean of all batches' matrices, ascending; all P if spectrum=exact, else both ends",
        CURVATURE,
        "(P,) or fewer",
        "",
    ),
    "mean/top_eigenvalues": ("its largest eigenvalues, descending", CURVATURE, "(k,)", ""),
    "mean/top_eigenvectors": ("their eigenvectors, as columns of norm 1", "1", "(P, k)", TOP),
    "mean/residuals": ("norm of H v - lambda v of each top eigenvector", CURVATURE, "(k,)", TOP),
    "mean/gradient": ("gradient of the mean loss by the weights", SLOPE, "(P,)", ""),
    "density/grid": (GRID, CURVATURE, "(G,)", T),
    "density/coordinate": (
        "t = asinh(eigenvalue / threshold) / ln 10, in even steps: decades of |eigenvalue| far from zero",
        "decade",
        "(G,)",
        "",
    ),
    "density/values": ("density of the spectrum of the mean", PER_DECADE, "(G,)", T),
    "density/batches": (
        "density of the spectrum of each batch, NaN where it is not resolved",
        PER_DECADE,
        "(B, G)",
        T,
    ),
    "density/standard_error": (
        "standard error of density/values, which is an estimate",
        "1 / decade",
        "(G,)",
        T,
    ),
    "batches/eigenvalues": (
        "eigenvalues of each batch's own matrix: the k largest, descending, or all P, ascending",
        CURVATURE,
        "(B, k) or (B, P)",
        "",
    ),
    "batches/num_samples": ("samples in each batch", "sample", "(B,)", ""),
    "batches/loss": ("loss of each batch", LOSS, "(B,)", ""),
    "batches/gradient_norm": ("norm of each batch's gradient", SLOPE, "(B,)", ""),
    "batches/trace": ("trace of each batch's matrix", CURVATURE, "(B,)", ""),
    "batches/frobenius_norm": ("Frobenius norm of each batch's matrix", CURVATURE, "(B,)", ""),
    "batches/lambda_max": ("largest eigenvalue of each batch's matrix", CURVATURE, "(B,)", ""),
    "batches/distance_to_mean": (
        "Frobenius norm of its difference from the mean, relative to the mean's",
        "1",
        "(B,)",
        "",
    ),
    "batches/overlap_with_mean": (
        "overlap of its top eigenspace with that of the mean, 0 to 1",
        "1",
        "(B,)",
        "",
    ),
    **{
        f"batches/{name}_half_width": (
            f"half of the 95 % interval of batches/{name}, which is an estimate",
            unit,
            "(B,)",
            "",
        )
        for name, unit in (("trace", CURVATURE), ("frobenius_norm", CURVATURE), ("distance_to_mean", "1"))
    },
    "batches/overlap": ("overlap of the top eigenspaces of any two batches, 0 to 1", "1", "(B, B)", ""),
    "parameters/names": ("names of the parameters in the order of rows and columns", "", "(m,)", ""),
    "parameters/shapes": ("shape of each parameter, flattened row-major", "", "(m,)", NAMES),
    "parameters/offsets": (
        "where the rows of each parameter begin, and P at the end",
        "weight",
        "(m + 1,)",
        NAMES,
    ),
    "layers/block_norms": (
        "Frobenius norm of the block of the mean for each pair of parameters",
        CURVATURE,
        "(m, m)",
        NAMES,
    ),
    "layers/trace": ("trace of the diagonal block of each parameter", CURVATURE, "(m,)", NAMES),
    "layers/trace_half_width": (
        "half of the 95 % interval of layers/trace, which is an estimate",
        CURVATURE,
        "(m,)",
        NAMES,
    ),
    "distribution/points": ("points at which the band changes, ascending", CURVATURE, "(n,)", ""),
    "distribution/low": (
        "lower bound of the share of eigenvalues that are at most x, from each point up to the next; 95 % confidence",
        "1",
        "(n,)",
        "/distribution/points",
    ),
    "distribution/high": ("upper bound of the same", "1", "(n,)", "/distribution/points"),
    "layers/*/eigenvalues": ("eigenvalues of this parameter's diagonal block of the mean", CURVATURE, "", ""),
    "modules/names": ("layers of the model: what a module has of its own", "", "(M,)", ""),
    "modules/sizes": ("weights of each layer", "weight", "(M,)", "/modules/names"),
    "modules/trace": ("trace of the diagonal block of each layer", CURVATURE, "(M,)", "/modules/names"),
    "modules/lambda_max": (
        "largest eigenvalue of each layer's block, NaN if unknown",
        CURVATURE,
        "(M,)",
        "/modules/names",
    ),
    "modules/trace_half_width": (
        "half of the 95 % interval of modules/trace, which is an estimate",
        CURVATURE,
        "(M,)",
        "/modules/names",
    ),
    "lines/eigenvalues": ("eigenvalue of each line's direction", CURVATURE, "(k,)", ""),
    "lines/slopes": ("gradient along each direction", SLOPE, "(k,)", "/lines/eigenvalues"),
    "lines/distances": ("distances from the weights along each direction", "weight", "(k, n)", ""),
    "lines/losses": ("loss at these distances", LOSS, "(k, n)", "/lines/distances"),
    "plane/first": ("distances along the first eigenvector", "weight", "(n,)", ""),
    "plane/second": ("distances along the second eigenvector", "weight", "(n,)", ""),
    "plane/losses": ("loss on the plane, a row for each distance along the second", LOSS, "(n, n)", ""),
    "checks/key": ("short name of each check of the law", "", "(C,)", ""),
    "checks/name": ("what each check compares", "", "(C,)", KEY),
    "checks/measured": ("value that was computed", "as its check/name says", "(C,)", KEY),
    "checks/relation": ("relation of measured to expected that is to hold", "", "(C,)", KEY),
    "checks/expected": ("value that the law gives", "as its check/name says", "(C,)", KEY),
    "checks/tolerance": ("absolute difference that is allowed", "as its check/name says", "(C,)", KEY),
    "checks/held": ("1 where the relation holds within the tolerance, else 0", "1", "(C,)", KEY),
    "panels/title": ("title of each diagram of the figure", "", "(D,)", ""),
    "panels/x_label": ("label of its horizontal axis", "", "(D,)", ""),
    "panels/y_label": ("label of its vertical axis", "", "(D,)", ""),
    "panels/reading": ("how to read it", "", "(D,)", ""),
    "panels/logarithmic": ("its logarithmic axes: x, y, xy or none", "", "(D,)", ""),
    "series/panel": ("diagram of each series, from 0", "1", "(S,)", ""),
    "series/name": ("name of each series", "", "(S,)", ""),
    "series/drawn": ("how it is drawn: line, dashes or points", "", "(S,)", ""),
    "series/offsets": (
        "where the points of each series begin in x and y, and their number",
        "1",
        "(S + 1,)",
        "",
    ),
    "series/x": ("horizontal coordinates of all points", "as its diagram's x_label says", "(n,)", ""),
    "series/y": ("vertical coordinates of all points", "as its diagram's y_label says", "(n,)", ""),
}


def attributes_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The attributes of each of these datasets; an empty coordinate or unit is left out."""
    keys = ("description", "unit", "shape", "coordinate")
    found = {}
    for name in names:
        key = name if name in DATASETS else re.sub(r"^layers/.*/eigenvalues$", "layers/*/eigenvalues", name)
        found[name] = {which: text for which, text in zip(keys, DATASETS[key], strict=True) if text}
    return found
