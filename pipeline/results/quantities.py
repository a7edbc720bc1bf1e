"""The headline numbers of a run, each registered once: key, name, symbol, unit, format, and a sentence.

Tables, tiles, charts, columns of the tracker and of a sweep are made from `QUANTITIES`; what each of them shows, and in
which order, is a tuple of keys below.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Literal

from pipeline.results.number_format import number, percent

Group = Literal["The run", "Training", "The mean matrix", "Between batches"]


@dataclass(frozen=True)
class Quantity:
    """A headline number.

    key: its name in the spectra file, summary.json and MLflow. label: its name where there is little room.
    symbol: HTML, or "". unit: "" of a pure number, "%" of a share that is read in percent.
    format: of plain text, as `str.format` takes it. sentence: the meaning.
    """

    key: str
    group: Group
    name: str
    label: str
    symbol: str
    unit: str
    format: str
    sentence: str

    @property
    def title(self) -> str:
        """The name as the title of a chart."""
        return self.name[0].upper() + self.name[1:]

    def plain(self, value: float) -> str:
        """The value in a terminal."""
        return self.format.format(value)

    def text(self, value: float) -> str:
        """The value on a page, as short as it can be read."""
        if self.unit == "%":
            return percent(value)
        return number(value, 2 if self.format.endswith("e}") else 4)

    def text_with_interval(self, value: float, half_width: float) -> str:
        """An estimate on a page, with the half-width of its interval; without where there is none."""
        return self.text(value) if isnan(half_width) else f"{self.text(value)} ± {number(half_width, 2)}"

    def text_with_deviation(self, mean: float, deviation: float) -> str:
        """A mean and the standard deviation beside it on a page; the mean alone where there is none."""
        return self.text(mean) if isnan(deviation) else f"{self.text(mean)} ± {self.text(deviation)}"


_REGISTERED = (
    Quantity(
        "num_parameters", "The run", "weights", "weights P", "P", "", "{:,.0f}", "Rows and columns of the matrix."
    ),
    Quantity(
        "num_samples", "The run", "samples", "samples N", "N", "", "{:,.0f}", "Samples in all batches together."
    ),
    Quantity(
        "num_batches", "The run", "batches", "batches", "B", "", "{:,.0f}",
        "Each has its own matrix, weighted by the terms of its loss (samples, for most).",
    ),
    Quantity(
        "loss", "The run", "loss", "loss", "L", "", "{:.4g}",
        "Mean of the batches' losses, at the weights of this step.",
    ),
    Quantity(
        "gradient_norm", "The run", "gradient norm", "gradient norm", "‖g‖", "", "{:.4g}",
        "Length of the mean gradient; zero at a stationary point.",
    ),
    Quantity(
        "largest_probe_error", "The run", "certificate: error of H v", "certificate: error of H v",
        "‖Hv − D(v)‖ / ‖D(v)‖", "", "{:.1e}",
        "Largest error of a batch's matrix: products against differences of the gradient.",
    ),
    Quantity(
        "train_loss", "Training", "training loss", "training loss", "", "", "{:.4g}",
        "On all training samples, at the last step of training.",
    ),
    Quantity(
        "train_accuracy", "Training", "training accuracy", "training accuracy", "", "%", "{:.2%}",
        "On all training samples, at the last step of training.",
    ),
    Quantity(
        "test_loss", "Training", "test loss", "test loss", "", "", "{:.4g}",
        "On all test samples, at the last step of training.",
    ),
    Quantity(
        "test_accuracy", "Training", "test accuracy", "test accuracy", "", "%", "{:.2%}",
        "On all test samples, at the last step of training.",
    ),
    Quantity(
        "lambda_max", "The mean matrix", "largest eigenvalue", "λ max", "λ<sub>max</sub>", "", "{:.6g}",
        "The sharpest direction of the loss.",
    ),
    Quantity(
        "lambda_max_preconditioned", "The mean matrix", "preconditioned sharpness",
        "λ max, preconditioned", "λ<sub>max</sub>(P<sup>−½</sup> H P<sup>−½</sup>)", "", "{:.6g}",
        "Largest eigenvalue for Adam: P is the diagonal by which it divides its steps.",
    ),
    Quantity(
        "lambda_min", "The mean matrix", "smallest eigenvalue", "λ min", "λ<sub>min</sub>", "", "{:.6g}",
        "Negative where the loss curves down in a direction.",
    ),
    Quantity(
        "trace", "The mean matrix", "trace", "trace", "tr H", "", "{:.6g}",
        "Sum of all eigenvalues: P times the mean curvature.",
    ),
    Quantity(
        "trace_half_width", "The mean matrix", "half-width of the trace's interval", "trace, ±", "", "", "{:.3g}",
        "Half of the 95 % interval, where the trace is estimated from products.",
    ),
    Quantity(
        "frobenius_norm", "The mean matrix", "Frobenius norm", "Frobenius norm", "‖H‖<sub>F</sub>", "",
        "{:.6g}", "Root of the sum of all squared eigenvalues.",
    ),
    Quantity(
        "frobenius_norm_half_width", "The mean matrix", "half-width of the Frobenius norm's interval",
        "Frobenius norm, ±", "", "", "{:.3g}",
        "Half of the 95 % interval, where the norm is estimated from products.",
    ),
    Quantity(
        "distribution_band_width", "The mean matrix", "width of the distribution's band", "band width", "", "",
        "{:.3g}",
        "How far apart the bounds of the share of eigenvalues up to a point are, on average over the density's grid.",
    ),
    Quantity(
        "num_products", "The mean matrix", "products with the matrix", "products", "", "", "{:,.0f}",
        "Vectors that were multiplied, where no matrix was stored.",
    ),
    Quantity(
        "num_negative_eigenvalues", "The mean matrix", "negative eigenvalues", "negative λ", "", "", "{:,.0f}",
        "Below −10⁻⁵ (float32) or −10⁻⁶ (float64) times the largest size: nearer to zero is rounding error.",
    ),
    Quantity(
        "num_zero_rows", "The mean matrix", "zero rows", "zero rows", "", "", "{:,.0f}",
        "Weights without influence on the loss, as of dead units.",
    ),
    Quantity(
        "effective_rank", "The mean matrix", "effective rank", "effective rank", "exp(−Σ p ln p)", "", "{:.1f}",
        "Over how many directions the curvature is spread.",
    ),
    Quantity(
        "participation_ratio", "The mean matrix", "participation ratio", "participation ratio", "(Σ|λ|)² / Σλ²", "",
        "{:.1f}", "As many eigenvalues of one size have the same sums.",
    ),
    Quantity(
        "stable_rank", "The mean matrix", "stable rank", "stable rank", "‖H‖²<sub>F</sub> / λ²<sub>max</sub>", "",
        "{:.1f}", "The same, counting outliers more.",
    ),
    Quantity(
        "gradient_share_in_top_eigenspace", "The mean matrix", "gradient in top eigenspace",
        "gradient in top eigenspace", "‖Uᵀg‖² / ‖g‖²", "%", "{:.1%}",
        "Share of the squared gradient along the top eigenvectors.",
    ),
    Quantity(
        "mean_distance_between_batch_and_mean", "Between batches", "mean distance to the mean",
        "distance of a batch from the mean", "‖H<sub>b</sub> − H‖<sub>F</sub> / ‖H‖<sub>F</sub>", "", "{:.3f}",
        "How far a batch's matrix is from the mean matrix.",
    ),
    Quantity(
        "mean_overlap_between_batches", "Between batches", "mean overlap of eigenspaces",
        "overlap of two batches' top spaces", "", "", "{:.3f}",
        "1: batches share their sharp directions; 0: orthogonal.",
    ),
)  # fmt: skip
QUANTITIES = {quantity.key: quantity for quantity in _REGISTERED}

TABLE = tuple(  # of the terminal, and the columns of summary.csv
    key
    for key in QUANTITIES
    if key not in ("loss", "gradient_norm", "num_zero_rows", "stable_rank", "frobenius_norm_half_width")
)
TILES = (  # the first things that a reader wants to know, at the top of the page
    "lambda_max",
    "lambda_min",
    "trace",
    "effective_rank",
    "loss",
    "test_accuracy",
    "largest_probe_error",
)
COLUMNS = (  # of the tables of a sweep and of the dashboard, the most telling ones first
    "lambda_max",
    "lambda_min",
    "trace",
    "test_accuracy",
    "num_negative_eigenvalues",
    "effective_rank",
    "train_loss",
    "gradient_share_in_top_eigenspace",
    "mean_overlap_between_batches",
    "num_parameters",
    "largest_probe_error",
)
STEP_CHARTS = (  # drawn against the training step
    "lambda_max",
    "lambda_max_preconditioned",
    "trace",
    "effective_rank",
    "participation_ratio",
    "gradient_share_in_top_eigenspace",
)
FIRST_CHARTS = (*STEP_CHARTS, "lambda_min", "train_loss", "test_accuracy")  # of the tracker
SWEEP_CHARTS = (  # drawn against the choices of a sweep
    "lambda_max",
    "trace",
    "effective_rank",
    "lambda_min",
    "num_negative_eigenvalues",
    "test_accuracy",
    "train_loss",
)
STEP_TABLE = (  # a row a step
    "loss",
    "gradient_norm",
    "lambda_max",
    "lambda_min",
    "trace",
    "effective_rank",
    "num_negative_eigenvalues",
)
BATCH_TABLE = ("loss", "gradient_norm", "trace", "frobenius_norm", "lambda_max")  # a row a batch
