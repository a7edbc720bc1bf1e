"""Whether a run folder holds certified matrices, their spectrum and a report; says what they are."""

import sys
from pathlib import Path

import pipeline

folder = Path(sys.argv[1])
run = pipeline.open_run(folder)
errors = [shard.attrs["probe_error"] for shards in run.shards.values() for shard in shards]
tolerances = [shard.attrs["probe_tolerance"] for shards in run.shards.values() for shard in shards]
spectrum = run.spectra[max(run.spectra)].mean
assert errors
assert all(error <= tolerance for error, tolerance in zip(errors, tolerances, strict=True))
assert (folder / "report.html").stat().st_size > 10_000
print(
    f"          P = {run.summary['num_parameters']:,}, matrices: {len(errors)}, error of H v {max(errors):.1e}, "
    f"λ max {run.summary['lambda_max']:.5g}, {len(spectrum.eigenvalues)} eigenvalues"
)
