"""Sweeps on SLURM as far as no SLURM is needed: what is refused and in which words, and what is read from its commands.

The commands are stand-ins on PATH. What needs the real daemons is in tests/slurm.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from support.command import SMALL, contents, environment, fork, run

from pipeline.errors import PipelineError
from pipeline.sweep import resume
from pipeline.sweep.slurm import launcher, queue
from pipeline.sweep.slurm.settings import check, for_sbatch
from pipeline.system import slurm
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import network_disk

SLURM = ("-m", "hydra/launcher=slurm")
QUICK = (*SMALL, "stages=[train,compute]")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands: `commands(squeue="echo ...")`; all others do nothing, successfully."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(**scripts):
        for name in (*slurm.COMMANDS, "sacct"):
            path = folder / name
            path.write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 0')}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder

    return make


def last_line(tmp_path, *overrides, **options):
    done = run(tmp_path / "unused", *overrides, f"hydra.sweep.dir={tmp_path / 'jobs'}", **options)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    return done.stdout.splitlines()[-1]


def test_without_slurm_a_sweep_is_refused_in_one_line(tmp_path):
    told = last_line(tmp_path, *SLURM, *SMALL, PATH="/nowhere")
    assert told == (
        "hydra/launcher=slurm needs SLURM, but sbatch, squeue, scontrol, sinfo, srun cannot be found: run it on a "
        "login node of a cluster, or start one on this machine with scripts/slurm_local.sh."
    )
    assert not (tmp_path / "jobs" / "0").exists()


def test_without_the_plugin_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(launcher, "SlurmLauncher", None)
    with pytest.raises(PipelineError, match=r"pip install 'curvature-pipeline\[slurm\]'"):
        launcher.Slurm()


def test_a_single_run_is_not_for_the_launcher(tmp_path):
    told = last_line(tmp_path, "hydra/launcher=slurm", *SMALL)
    assert told == "hydra/launcher=slurm is for sweeps: add -m (a sweep may have a single job)."


SETTINGS = {
    "timeout_min=0": "hydra.launcher.timeout_min=0: give a whole number of at least 1.",
    "mem_gb=-1": "hydra.launcher.mem_gb=-1: give a number above 0.",
    "requeue=3": "hydra.launcher.requeue=3: give true or false.",
    "timeout_min=2": "hydra.launcher.signal_delay_s=120 is all of timeout_min=2: give a shorter delay or more time.",
    "time_min=3": "hydra.launcher.time_min: there is no such option, did you mean timeout_min?",
}


@pytest.mark.parametrize(("setting", "refusal"), SETTINGS.items(), ids=SETTINGS)
def test_a_setting_that_sbatch_would_misread_is_refused(tmp_path, setting, refusal):
    assert last_line(tmp_path, *SLURM, f"hydra.launcher.{setting}", *SMALL) == refusal


def test_what_sbatch_refuses_is_told(tmp_path, commands):
    commands(sbatch="echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    told = last_line(tmp_path, *SLURM, "hydra.launcher.partition=nope", *SMALL)
    assert told == (
        "sbatch refuses the sweep (sbatch: error: invalid partition specified: nope): correct hydra.launcher."
    )


def tracked(tmp_path):
    return [*(option for option in SMALL if option != "tracking=none"), f"tracking.root={tmp_path / 'store'}"]


def test_a_sqlite_store_is_refused_where_jobs_run_on_other_machines(tmp_path, commands):
    commands(sinfo="printf 'node1\\nnode2\\nnode3\\nnode4\\n'")
    told = last_line(tmp_path, *SLURM, *tracked(tmp_path))
    assert f"{tmp_path / 'store' / 'mlflow.db'} is a file of " in told
    assert told.endswith(
        "and SLURM may start jobs on node1, node2, node3, …: start `mlflow server` where its disk is local and give "
        "tracking.uri=http://HOST:PORT, or tracking=none."
    )


def test_a_sqlite_store_on_a_network_disk_is_refused(tmp_path, commands):
    commands(sinfo="hostname")
    (tmp_path / "mounts").write_text(f"40 1 0:50 / {tmp_path} rw - nfs4 server:/home rw\n")
    (tmp_path / "sitecustomize.py").write_text(
        "from pathlib import Path\nfrom pipeline.tracking import network_disk\n"
        f"network_disk.MOUNTS = Path({str(tmp_path / 'mounts')!r})\n"
    )
    told = last_line(tmp_path, *SLURM, *tracked(tmp_path), paths=[tmp_path], fresh=True)
    assert told.startswith(
        f"{tmp_path / 'store' / 'mlflow.db'} is on a network disk (nfs4), where SQLite's locks fail: start "
    )


def test_a_server_or_a_local_file_is_shared(tmp_path):
    network_disk.check_shared("http://127.0.0.1:5000", "outputs", ["n1", "n2"], "login")
    network_disk.check_shared(None, str(tmp_path), ["login.cluster.edu"], "login")


MOUNTED = r"""
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:40 / /home rw - autofs systemd-1 rw
31 30 0:41 / /home rw shared:5 - nfs4 server:/home rw
32 31 0:42 / /home/scratch\040one rw - lustre mds:/one rw
33 31 254:1 / /home/scratch\040one/local rw - xfs /dev/sdb rw
34 21 0:43 / /home2 rw - ext4 /dev/sdc rw
"""
PLACES = {
    "/tmp/store/mlflow.db": None,
    "/home/me/mlflow.db": "nfs4",
    "/home/scratch one/mlflow.db": "lustre",
    "/home/scratch one/local/mlflow.db": None,
    "/home2/mlflow.db": None,
}


@pytest.mark.parametrize(("path", "kind"), PLACES.items(), ids=PLACES)
def test_the_mount_that_a_path_is_on_says_whether_it_is_a_network_disk(tmp_path, monkeypatch, path, kind):
    (tmp_path / "mounts").write_text(MOUNTED.lstrip())
    monkeypatch.setattr(network_disk, "MOUNTS", tmp_path / "mounts")
    assert network_disk.network_disk(network_disk.Path(path)) == kind


def test_states_come_from_the_queue_then_from_the_accounts(commands):
    commands(
        squeue="printf '7_0|RUNNING|None\\n7_1|PENDING|JobHeldUser\\n7_5|PENDING|PartitionTimeLimit\\n'",
        sacct="printf '7_2|CANCELLED by 1000|0:0\\n7_3|FAILED|1:0\\n'",
    )
    found = slurm.states({"7_0", "7_1", "7_2", "7_3", "7_4", "7_5"})
    assert found == {
        "7_0": slurm.JobState("RUNNING", "None"),
        "7_1": slurm.JobState("PENDING", "JobHeldUser"),
        "7_2": slurm.JobState("CANCELLED", "by 1000"),
        "7_3": slurm.JobState("FAILED", "exit code 1"),
        "7_4": slurm.JobState("UNKNOWN", "SLURM no longer knows it"),
        "7_5": slurm.JobState("PENDING", "PartitionTimeLimit"),
    }
    assert [name for name in sorted(found) if found[name].ended] == ["7_2", "7_3", "7_4"]
    assert [name for name in sorted(found) if slurm.is_held(found[name])] == ["7_1", "7_5"]


def test_a_cluster_without_accounts_still_answers(commands):
    commands(
        squeue="echo '7|CANCELLED|None'", sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1"
    )
    assert slurm.states({"7"})["7"].state == "CANCELLED"
    assert slurm.states({"8"})["8"].ended


def test_a_controller_that_does_not_answer_is_no_end_of_a_job(commands):
    commands(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(PipelineError, match=r"squeue does not answer .*Unable to contact"):
        slurm.states({"7"})


def test_a_job_that_vanishes_from_the_queue_was_cancelled_there(commands, tmp_path, monkeypatch):
    """SLURM keeps no record of a task of an array that never began: neither squeue nor sacct names it again."""
    monkeypatch.setattr(queue, "GRACE", 0.0)
    seen = tmp_path / "seen"
    commands(squeue=f"[ -e {seen} ] || printf '7_0|PENDING|Resources\\n7_1|RUNNING|None\\n'; touch {seen}")
    jobs = [queue.Job(n, [], RunFolder(tmp_path / str(n)), slurm_id=f"7_{n}") for n in (0, 1)]
    params = {"submitit_folder": str(tmp_path / "%j"), "poll_s": 0.01, "mem_gb": 1, "timeout_min": 1}
    watch = queue.QueueWatcher(params)
    lost = watch.wait(jobs)
    assert lost[0] == "it was cancelled (SLURM job 7_0: CANCELLED, while it waited)."
    assert lost[1].startswith("it ended without a word of its own (SLURM job 7_1: UNKNOWN")
    assert json.loads(jobs[0].folder.status.read_text())["state"] == "cancelled"


def test_what_the_config_says_is_not_overruled_by_the_environment(monkeypatch):
    inherited = {
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_SIGNAL": "USR1@3",
        "SBATCH_PARTITION": "mine",
        "SBATCH_ACCOUNT": "mine",
        "SLURM_CONF": "kept",
        "SLURM_MEM_PER_NODE": "7",
        "SLURM_JOB_ID": "3",
    }
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    with slurm.clean_environment(timeout_min=60, partition="short", account=None):
        left = {name for name in inherited if name in os.environ}
    assert left == {"SBATCH_ACCOUNT", "SLURM_CONF"}
    assert all(os.environ[name] == value for name, value in inherited.items())


def test_settings_become_options_of_sbatch():
    params = {
        **{"partition": "gpu", "account": None, "timeout_min": 30, "cpus_per_task": 2, "mem_gb": 1.5},
        **{"gpus_per_node": 1, "array_parallelism": 3, "requeue": True, "max_num_timeout": 2},
        **{"signal_delay_s": 60, "poll_s": 5},
        **{"name": "mine", "setup": ["module load cuda"], "additional_parameters": {"exclude": "n7"}},
        "submitit_folder": "x/%j",
    }  # fmt: skip
    check(params)
    assert for_sbatch(params) == {
        **{
            "partition": "gpu",
            "time": 30,
            "cpus_per_task": 2,
            "mem": "1536M",
            "gpus_per_node": 1,
            "nodes": 1,
        },
        **{"ntasks_per_node": 1, "array_parallelism": 3, "signal_delay_s": 60, "job_name": "mine"},
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", "module load cuda"],
        "additional_parameters": {"requeue": True, "exclude": "n7"},
    }


def take_up(folder, *changes, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", "resume", folder, *changes],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_local_sweep_that_was_killed_is_taken_up_where_it_was(tmp_path):
    folder = tmp_path / "jobs"
    begin = [sys.executable, "-m", "pipeline.run", "-m", *QUICK, "seed=0,1,2", "hydra.sweep.dir=jobs"]
    server, pid = fork(begin, tmp_path, environment())
    deadline = time.monotonic() + 60
    while not list(folder.glob("1/shards/*/batch-*.h5")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert int(server.stdout.readline()) == -signal.SIGKILL
    before = contents(folder / "0")
    first = (folder / "1" / "shards" / "step-000020" / "batch-00000.h5").stat().st_ino
    done = take_up("../jobs", cwd=tmp_path / "jobs")
    assert done.returncode == 0, done.stdout
    assert "3 of 3 jobs finished." in done.stdout
    assert contents(folder / "0") == before
    assert (folder / "1" / "shards" / "step-000020" / "batch-00000.h5").stat().st_ino == first
    assert (folder / "2" / "summary.json").exists()


def test_a_sweep_is_resumed_by_its_own_command_and_what_is_to_be_different(tmp_path):
    hydra = {
        "runtime": {
            "cwd": str(tmp_path),
            "config_sources": [
                {"path": "conf", "provider": "main"},
                {"path": "/his/conf", "provider": "command-line"},
            ],
        },
        "overrides": {
            "hydra": ["hydra/launcher=slurm", "hydra.sweep.dir=elsewhere", "hydra.mode=MULTIRUN"],
            "task": ["model=mlp,cnn", "seed=0,1"],
        },
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    began, line = resume.command(tmp_path, ["hydra.launcher.mem_gb=3"])
    assert began == tmp_path
    assert line == [
        *("-m", "pipeline.run", "--config-dir", "/his/conf", "-m", "hydra/launcher=slurm"),
        *("model=mlp,cnn", "seed=0,1", f"hydra.sweep.dir={tmp_path}", "hydra.launcher.mem_gb=3"),
    ]


def test_what_is_no_sweep_is_not_resumed(tmp_path):
    done = take_up(tmp_path, cwd="/")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{tmp_path} is not the folder of a sweep (multirun.yaml: FileNotFoundError): give the folder that holds the "
        "jobs' folders 0, 1, 2, …"
    ]
    assert "usage: " in take_up("-h", cwd="/").stdout
