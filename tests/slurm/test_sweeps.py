"""Sweeps on real SLURM daemons: undisturbed, preempted, out of time, cancelled, and without their launcher."""

import os
import random
import time

import h5py
import numpy as np
import pytest
from support.command import contents
from support.slurm_cases import DATA, LAUNCHER, NEEDS_SLURM, WORDS, Started, resumed, slurm

import pipeline
from pipeline.system.run_folder import RunFolder
from pipeline.tracking import store

pytestmark = NEEDS_SLURM
CHOICES = ("model=mlp,cnn", "strategy=khatri_rao,func", "seed=0,1,2")
LENGTH = ("training.num_steps=1500", "training.save_every=100", "training.evaluate_every=500")
MINUTE = ("hydra.launcher.timeout_min=1",)
STAGES = "stages=[train,compute,aggregate]"


def spectra(sweep, number):
    """Every array of the last spectra file of a job, and its weights."""
    folder = RunFolder(sweep / str(number))
    arrays = {}
    with h5py.File(folder.spectrum(folder.spectrum_steps()[-1])) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return arrays


def assert_same(sweep, other, numbers):
    for number in numbers:
        mine, its = spectra(sweep, number), spectra(other, number)
        assert mine.keys() == its.keys()
        assert mine
        for name, values in its.items():
            np.testing.assert_array_equal(mine[name], values, err_msg=f"job {number}: {name}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The twelve jobs one after the other in one process, with neither SLURM nor MLflow."""
    folder = tmp_path_factory.mktemp("undisturbed") / "jobs"
    with Started(folder, *DATA, *CHOICES, *LENGTH, STAGES, "tracking=none") as sweep:
        status, printed = sweep.finish()
    assert status == 0, printed
    return folder


def preempt(sweep, chance):
    """At a random moment let a job that takes the whole machine take the place of those that run; which had to go."""
    asked = [sweep.log(number).count(WORDS) for number in range(12)]

    def at_work():
        begun = [number for number in range(12) if "run folder: " in sweep.log(number)]
        return [number for number in begun if not (sweep.folder / str(number) / "summary.json").exists()]

    def gone():
        return [number for number in range(12) if sweep.log(number).count(WORDS) > asked[number]]

    while not gone():
        sweep.until(at_work, "a job at work")
        time.sleep(chance.uniform(0, 5))
        other = slurm(
            "sbatch",
            "--parsable",
            "-p",
            "high",
            "-c",
            "2",
            "--mem=100",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 1",
        )
        sweep.until(
            lambda other=other: slurm("squeue", "-h", "-t", "all", "-j", other, "-o", "%T") == "COMPLETED",
            "it",
        )
    return gone()


def test_twelve_jobs_of_which_some_are_preempted_end_as_if_undisturbed(tmp_path, undisturbed):
    """Under one MLflow run, each job in one run of its own."""
    seed = int(os.environ.get("PREEMPT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"repeat these moments with PREEMPT_SEED={seed}")
    chance = random.Random(seed)
    root = f"tracking.root={tmp_path / 'store'}"
    with Started(tmp_path / "jobs", *LAUNCHER, *DATA, *CHOICES, *LENGTH, STAGES, root) as sweep:
        preempted = {number for _ in range(2) for number in preempt(sweep, chance)}
        status, printed = sweep.finish()
    assert status == 0, printed
    print(f"preempted: {sorted(preempted)}")
    assert len(preempted) >= 2
    assert "12 of 12 jobs finished." in printed
    assert_same(tmp_path / "jobs", undisturbed, range(12))
    _check_tracked(tmp_path, preempted)


def _check_tracked(tmp_path, preempted):
    client, experiment = store.connect(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}", "curvature")
    runs = client.search_runs([experiment], max_results=100)
    parents = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    jobs = [found for found in runs if "mlflow.parentRunId" in found.data.tags]
    assert len(parents) == 1
    assert {found.data.tags["mlflow.parentRunId"] for found in jobs} == {parents[0].info.run_id}
    assert len(jobs) == 12
    assert {found.info.status for found in jobs} == {"FINISHED"}
    folders = {found.data.tags["folder"]: found for found in jobs}
    assert set(folders) == {str(tmp_path / "jobs" / str(number)) for number in range(12)}
    for number in preempted:
        summary = pipeline.open_run(tmp_path / "jobs" / str(number)).summary
        metrics = folders[str(tmp_path / "jobs" / str(number))].data.metrics
        assert metrics["lambda_max"] == summary["lambda_max"]


SLOW = """
import time
from pipeline.criterion import CrossEntropy


class Slow:
    reduction = "mean"

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, outputs, targets):
        time.sleep(self.seconds)
        return CrossEntropy()(outputs, targets)
"""


def test_a_job_that_comes_to_its_time_limit_goes_on_where_it_was(tmp_path):
    """A sweep of one job of half a minute; at each start SLURM sends the signal after less than that."""
    (tmp_path / "his_slow.py").write_text(SLOW)
    long = ("training.num_steps=3000", "training.save_every=50", "training.evaluate_every=1000")
    options = (
        *DATA,
        *long,
        STAGES,
        "model=mlp",
        "strategy=func",
        "tracking=none",
        "criterion._target_=his_slow.Slow",
    )
    limits = (*MINUTE, "hydra.launcher.signal_delay_s=35", "hydra.launcher.max_num_timeout=200")
    slow, fast = (f"+criterion.seconds={seconds}" for seconds in (0.01, 0.0))
    with Started(tmp_path / "jobs", *LAUNCHER, *limits, *options, slow, paths=[tmp_path]) as sweep:
        status, printed = sweep.finish()
    assert status == 0, printed
    print(f"signals: {sweep.log(0).count(WORDS)}")
    assert sweep.log(0).count(WORDS) >= 1
    assert sweep.log(0).count("job 0: ") == sweep.log(0).count(WORDS) + 1
    with Started(tmp_path / "other", *options, fast, paths=[tmp_path]) as undisturbed:
        status, printed = undisturbed.finish()
    assert status == 0, printed
    assert_same(tmp_path / "jobs", tmp_path / "other", [0])


def test_a_job_that_has_come_to_its_limit_too_often_says_so(tmp_path):
    options = (*DATA, "training.num_steps=100000", STAGES, "model=mlp", "tracking=none", "strategy=func")
    limits = (*MINUTE, "hydra.launcher.signal_delay_s=50", "hydra.launcher.max_num_timeout=0")
    with Started(tmp_path / "jobs", *LAUNCHER, *limits, *options) as sweep:
        status, printed = sweep.finish()
    assert status == 1
    assert (
        "its time limit of 1 min came once more than hydra.launcher.max_num_timeout=0: give it more"
        in printed
    )
    assert "0 of 1 job finished." in printed


def test_cancelled_and_failed_jobs_are_named_the_others_finish_and_only_the_missing_are_resumed(tmp_path):
    """Jobs 0 to 2 ask for too many batches; job 3 is cancelled while it runs, and job 5 while it waits."""
    folder = tmp_path / "jobs"
    (tmp_path / "her_slow.py").write_text(SLOW)
    slow = ("criterion._target_=her_slow.Slow", "+criterion.seconds=0.1", "training.num_steps=100")
    options = (*DATA, *slow, STAGES, "tracking=none", "model=mlp", "strategy=func")
    options = (*options, "num_batches=9,1", "seed=0,1,2")
    with Started(folder, *LAUNCHER, *options, paths=(tmp_path,)) as sweep:
        sweep.until(lambda: "run folder: " in sweep.log(3), "job 3 at work")
        slurm("scancel", sweep.ids()[3], sweep.ids()[5])
        status, printed = sweep.finish()
    assert status == 1
    assert "Traceback" not in printed
    refusal = "num_batches=9: 32 training samples make 2 batches of 16"
    assert printed.count(refusal) >= 3
    for number in (3, 5):
        assert (
            f"seed={number - 3}) cancelled: it was cancelled (SLURM job {sweep.ids()[number]}: CANCELLED"
            in printed
        )
    assert "1 of 6 jobs finished." in printed
    before, ids = contents(folder / "4"), sweep.ids()
    with resumed(folder, paths=(tmp_path,)) as sweep:
        status, printed = sweep.finish()
    assert status == 1  # 0, 1 and 2 fail again
    assert "3 of 6 jobs finished." in printed
    assert contents(folder / "4") == before
    assert sweep.ids()[4] == ids[4]  # it was not submitted again
    assert all(sweep.ids()[number] != ids[number] for number in (0, 1, 2, 3, 5))


def test_a_launcher_that_was_killed_is_replaced_and_its_jobs_are_waited_for(tmp_path):
    folder = tmp_path / "jobs"
    options = (*DATA, *LENGTH, STAGES, "tracking=none", "model=cnn", "strategy=khatri_rao", "seed=0,1,2")
    with Started(folder, *LAUNCHER, *options) as sweep:
        sweep.until(lambda: "run folder: " in sweep.log(0), "job 0 at work")
        sweep.process.kill()
        sweep.process.wait()
        ids = sweep.ids()
        with resumed(folder) as second:
            status, printed = second.finish()
    assert status == 0, printed
    assert "jobs are in SLURM's queue already: waiting for them." in printed
    assert "3 of 3 jobs finished." in printed
    assert second.ids() == ids
