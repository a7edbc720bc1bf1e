"""Many runs: jobs, table, page, going on after a stop."""

from pipeline.sweep.hydra_callback import sweep_folder, tracking_labels
from pipeline.sweep.hydra_job import carry_out, conclude
from pipeline.sweep.jobs import open_sweep
from pipeline.sweep.slurm.launcher import LAUNCHER, Slurm
