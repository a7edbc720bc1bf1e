"""The headline numbers of a run: their keys in summary.json, in the words and the form in which they are printed."""

from __future__ import annotations

HEADLINE = {
    "num_parameters": ("weights P", "{:,.0f}"),
    "num_samples": ("samples N", "{:,.0f}"),
    "num_batches": ("batches", "{:,.0f}"),
    "train_loss": ("training loss", "{:.4g}"),
    "train_accuracy": ("training accuracy", "{:.2%}"),
    "test_loss": ("test loss", "{:.4g}"),
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "lambda_max": ("λ max", "{:.6g}"),
    "lambda_min": ("λ min", "{:.6g}"),
    "trace": ("trace", "{:.6g}"),
    "frobenius_norm": ("Frobenius norm", "{:.6g}"),
    "num_negative_eigenvalues": ("negative eigenvalues", "{:,.0f}"),
    "effective_rank": ("effective rank", "{:.1f}"),
    "gradient_share_in_top_eigenspace": ("gradient in top eigenspace", "{:.1%}"),
    "mean_distance_between_batch_and_mean": ("distance of a batch from the mean", "{:.3f}"),
    "largest_probe_error": ("certificate: error of H v", "{:.1e}"),
    "mean_overlap_between_batches": ("overlap of two batches' top spaces", "{:.3f}"),
}
