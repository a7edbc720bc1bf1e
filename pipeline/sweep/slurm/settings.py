"""The settings of sweeps on SLURM: checked before anything is submitted, and as sbatch takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import PipelineError
from pipeline.validation import check_bool, check_count, check_number, check_text

OURS = ("submitit_folder", "requeue", "max_num_timeout", "poll_s", "setup", "additional_parameters", "mem_gb")
# srun does not take the cores of a task from sbatch any more
SETUP = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"


def check(params: Mapping[str, Any]) -> None:
    """Refuse settings that sbatch would refuse later, or take for something else."""
    for key in ("timeout_min", "cpus_per_task", "array_parallelism"):
        check_count(f"hydra.launcher.{key}", params[key])
    check_count("hydra.launcher.max_num_timeout", params["max_num_timeout"], minimum=0)
    check_count("hydra.launcher.signal_delay_s", params["signal_delay_s"])
    check_count("hydra.launcher.gpus_per_node", params["gpus_per_node"], or_null="no GPU")
    check_number("hydra.launcher.mem_gb", params["mem_gb"], above=0)
    check_number("hydra.launcher.poll_s", params["poll_s"], above=0)
    check_bool("hydra.launcher.requeue", params["requeue"])
    check_text("hydra.launcher.submitit_folder", params["submitit_folder"], "${hydra.sweep.dir}/.submitit/%j")
    if params["signal_delay_s"] >= 60 * params["timeout_min"]:
        raise PipelineError(
            f"hydra.launcher.signal_delay_s={params['signal_delay_s']} is all of timeout_min={params['timeout_min']}: "
            "give a shorter delay or more time."
        )


def for_sbatch(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as submitit's executor for SLURM calls them."""
    names = {"timeout_min": "time", "name": "job_name"}
    given = {
        names.get(key, key): value for key, value in params.items() if value is not None and key not in OURS
    }
    return {
        **given,
        "mem": f"{round(params['mem_gb'] * 1024)}M",
        "nodes": 1,
        "ntasks_per_node": 1,
        "setup": [SETUP, *params["setup"]],
        "additional_parameters": {
            "requeue" if params["requeue"] else "no-requeue": True,
            **params["additional_parameters"],
        },
    }
