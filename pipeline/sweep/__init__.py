"""Many runs: jobs, table, page, going on after a stop."""

from pipeline.sweep.hydra_callback import labels, started_sweeps, sweep_folder
from pipeline.sweep.jobs import open_sweep
from pipeline.sweep.slurm.launcher import NAME, LaunchError, Slurm
from pipeline.sweep.summary import exit_status
