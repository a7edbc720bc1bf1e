"""The command from outside: what it prints, what it leaves behind, what it refuses and in which words."""

import fcntl
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support.command import SMALL, contents, fail, python, run, succeed

import pipeline

TWO_STEPS = "checkpoint_steps=[0]"
HIS_PACKAGE = '''
"""What a person has who never saw this repository."""
import torch


class HisNet(torch.nn.Module):
    def __init__(self, input_shape, num_outputs, width=3):
        super().__init__()
        self.first = torch.nn.Linear(*input_shape, width)
        self.second = torch.nn.Linear(width, num_outputs, bias=False)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))


class HisData:
    batch_size = 10

    def __init__(self, num_rows):
        self.num_rows = num_rows

    def load(self):
        x = torch.linspace(-1, 1, self.num_rows * 2, dtype=torch.float64).reshape(-1, 2)
        self.train = (x, torch.stack([x.prod(1), x.sum(1).sin()], 1))
        return self


class HisLoss:
    reduction = "sum"

    def __init__(self, power=2):
        self.power = power

    def __call__(self, outputs, targets):
        return (outputs - targets).abs().pow(self.power).sum()
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, and the lines it printed."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    return folder, succeed(folder, *SMALL, TWO_STEPS, fresh=True)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run's folder, to be spoilt."""
    return shutil.copytree(finished[0], tmp_path / "copied")


@pytest.fixture(scope="module")
def his(tmp_path_factory):
    """A run of model, data and criterion that live outside the package, tracked by MLflow."""
    root = tmp_path_factory.mktemp("his")
    (root / "his_package.py").write_text(HIS_PACKAGE)
    names = [f"{group}._target_=his_package.His{name}" for group, name in
             (("model", "Net"), ("data", "Data"), ("criterion", "Loss"))]  # fmt: skip
    options = ["+data.num_rows=25", "+model.width=4", "strategy=func", "training.num_steps=30", TWO_STEPS]
    options += ["dtype=float64", f"tracking.root={root}", "model=mlp", "figure_formats=[]"]
    lines = succeed(root / "folder", *names, *options, paths=[root])
    return root, lines


def test_a_run_ends_with_the_table_and_the_path_of_the_report(finished):
    folder, lines = finished
    assert lines[0].startswith("data: 40 training and 10 test samples; inputs float64 (4,), ")
    assert lines[1].startswith("MLP: P = 43 weights, a matrix of 14.8 kB; ")
    table = "\n".join(lines[1:-1])
    for told in ("weights P", "test accuracy", "λ max", "trace", "gradient in top eigenspace", "aggregate "):
        assert told in table
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['lambda_max']:.6g}" in table
    assert lines[-1] == f"report: {folder / 'report.html'}"


def test_a_run_folder_has_what_was_promised_and_nothing_else(finished):
    folder, _ = finished
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    steps = ("step-000000", "step-000020")
    assert found == {
        *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
        *(".lock", "config.yaml", "run.log", "report.html", "status.json", "summary.json", "spectra/choice.json"),
        *("checkpoints/history.csv", "checkpoints/state.pt", "checkpoints/step-000020.adam.h5"),
        *(f"checkpoints/{step}.safetensors" for step in steps),
        *(f"shards/{step}/{name}.h5" for step in steps for name in ("batch-00000", "batch-00001", "batch-00002")),
        *(f"shards/{step}/mean.h5" for step in steps),
        *(f"{kind}/{step}.h5" for kind in ("spectra", "slices") for step in steps),
    }  # fmt: skip


def test_the_summary_is_flat_and_says_what_the_files_say(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    found = pipeline.open_run(folder)
    assert all(isinstance(value, int | float) for value in summary.values())
    assert (summary["step"], summary["num_samples"], summary["num_batches"]) == (20, 40, 3)
    assert summary["lambda_max"] == found.spectra[20].mean.eigenvalues[-1]
    last_row = (folder / "checkpoints" / "history.csv").read_text().splitlines()[-1].split(",")
    assert [summary["train_loss"], summary["test_accuracy"]] == [float(last_row[1]), float(last_row[4])]
    assert {key for key in summary if key.startswith("seconds_")} == {
        f"seconds_{stage}" for stage in ("train", "compute", "aggregate", "slices", "report")
    }
    assert summary == found.summary


def test_the_config_in_the_folder_is_resolved_and_names_the_command(finished):
    folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["input_shape"] == [4]
    assert config["model"]["num_outputs"] == config["data"]["num_outputs"] == 3
    shard = pipeline.open_run(folder).shards[20][1]
    assert shard.attrs["config_hash"] == config["config_hash"]
    assert config["command"].startswith("python -m pipeline.run data=blobs data.num_samples=40 ")


def test_the_same_command_again_does_nothing_twice(finished):
    folder, before = finished[0], contents(finished[0])
    lines = succeed(folder, *SMALL, TWO_STEPS)
    after = contents(folder)
    assert after.keys() == before.keys()
    rewritten = {name for name in after if after[name] != before[name]}
    drawn_again = {"config.yaml", "summary.json", "report.html", "spectra/choice.json"}
    assert rewritten <= drawn_again
    assert after["config.yaml"][0] == before["config.yaml"][0]
    assert [line for line in lines if "shards are there" in line] == [
        "step 0: 3 of 3 shards are there already.",
        "step 20: 3 of 3 shards are there already.",
    ]
    assert sum("is up to date: taken as it is." in line for line in lines) == 2


def test_another_config_in_the_same_folder_is_refused_and_nothing_is_overwritten(finished):
    folder, before = finished[0], contents(finished[0])
    line = fail(folder, *SMALL, TWO_STEPS, "seed=7")
    assert line == (
        f"{folder} holds another config (seed is 7, was 0): one folder holds one config; "
        "choose another with hydra.run.dir=FOLDER."
    )
    assert contents(folder) == before


def test_a_truncated_shard_is_set_aside_and_computed_again(finished, copied):
    path = copied / "shards" / "step-000020" / "batch-00001.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    before = contents(copied)
    told = run(copied, *SMALL, TWO_STEPS, "stages=[compute]")
    assert told.returncode == 0
    line = f"{path} is damaged (HDF5 cannot open it): it is now batch-00001.h5.damaged; it is computed again."
    assert line in told.stdout
    assert path.with_name(path.name + ".damaged").read_bytes() == whole[: len(whole) // 2]
    after = contents(copied)
    name = str(path.relative_to(copied))
    changed = {each for each in after if after[each] != before.get(each)}
    assert changed - {"config.yaml", "summary.json", "status.json"} == {name, name + ".damaged"}
    again, first = pipeline.open_shard(path), pipeline.open_run(finished[0]).shards[20][1]
    np.testing.assert_array_equal(again.dense(), first.dense())
    assert again.attrs == first.attrs


def test_a_folder_in_which_another_run_is_at_work_is_left_alone(finished):
    folder, before = finished[0], contents(finished[0])
    notes = {path: path.read_bytes() for path in (folder / ".hydra").iterdir()}
    with (folder / ".lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        line = fail(folder, *SMALL, "stages=[report]")
    assert line.startswith(f"another run is at work in {folder}: wait for it to end")
    assert contents(folder) == before
    assert {path: path.read_bytes() for path in (folder / ".hydra").iterdir()} == notes


def test_a_persons_own_model_data_and_criterion_need_no_change_here(his):
    root, lines = his
    config = yaml.safe_load((root / "folder" / "config.yaml").read_text())
    assert config["model"] == {
        "_target_": "his_package.HisNet",
        "input_shape": [2],
        "num_outputs": 2,
        "width": 4,
    }
    assert config["criterion"] == {"_target_": "his_package.HisLoss"}
    assert not any("hidden_sizes" in line for line in lines)  # of the default class: none of his business
    shards = pipeline.open_run(root / "folder").shards[30]
    assert [shard.attrs["num_samples"] for shard in shards] == [10, 10, 5]  # by the class's own batch_size
    assert {shard.attrs["reduction"] for shard in shards} == {"sum"}
    assert shards[0].parameters.names == ("first.weight", "first.bias", "second.weight")


def test_the_gradient_and_hessian_of_a_persons_own_loss_are_those_of_numpy(his):
    """Central differences, in NumPy, of the sum over all samples: the sum of the batches' matrices."""
    root, _ = his
    found = pipeline.open_run(root / "folder")
    shards = found.shards[30]
    weights = load_file(root / "folder" / "checkpoints" / "step-000030.safetensors")
    names = shards[0].parameters.names
    flat = np.concatenate([weights[name].ravel() for name in names])
    x = np.linspace(-1, 1, 50).reshape(-1, 2)
    y = np.stack([x.prod(1), np.sin(x.sum(1))], 1)

    def loss(vector):
        at = {
            name: vector[span].reshape(weights[name].shape)
            for name, span in shards[0].parameters.slices().items()
        }
        hidden = 1 / (1 + np.exp(-(x @ at["first.weight"].T + at["first.bias"])))
        return ((hidden @ at["second.weight"].T - y) ** 2).sum()

    h = 1e-4
    steps = h * np.eye(len(flat))
    hessian = np.array([
        [(loss(flat + a + b) - loss(flat + a - b) - loss(flat - a + b) + loss(flat - a - b)) / (4 * h * h)
         for b in steps]
        for a in steps
    ])  # fmt: skip
    summed = sum(shard.dense() for shard in shards)
    np.testing.assert_allclose(summed, hessian, atol=2e-6 * np.abs(hessian).max())
    spectra = found.spectra[30]
    np.testing.assert_allclose(
        spectra.mean.eigenvalues, np.linalg.eigvalsh(summed), atol=1e-12 * np.abs(hessian).max()
    )
    assert spectra.attrs["loss"] == pytest.approx(loss(flat))


def test_every_number_of_the_page_is_that_of_the_summary(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    page = (folder / "report.html").read_text(encoding="utf-8")
    shown = dict(re.findall(r'data-key="(\w+)" title="([^"]+)"', page))
    assert {key: float(value) for key, value in shown.items()} == {key: summary[key] for key in shown}
    assert {"lambda_max", "trace", "largest_probe_error", "train_loss", "test_accuracy"} <= shown.keys()


def test_mlflow_holds_the_run_with_the_numbers_of_the_summary_each_at_its_training_step(his):
    root, _ = his
    found = pipeline.open_run(root / "folder")
    summary, spectra = found.summary, found.spectra
    with sqlite3.connect(root / "mlflow.db") as store:
        [(status, name)] = store.execute("select status, name from runs").fetchall()
        metrics = dict(store.execute("select key, value from latest_metrics where step = 30"))
        query = "select step, value from metrics where key = ? order by step"
        largest = store.execute(query, ["lambda_max"]).fetchall()
        per_batch = store.execute(query, ["per_batch/gradient_norm"]).fetchall()
    store.close()
    assert status == "FINISHED"
    assert name.startswith("mlp digits hessian func seed=0")
    assert metrics["lambda_max"] == pytest.approx(summary["lambda_max"])
    assert metrics["train_loss"] == pytest.approx(summary["train_loss"])
    assert largest == [(step, spectra[step].attrs["lambda_max"]) for step in (0, 30)]
    assert len(per_batch) == 6


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "jobs"
    overrides = ["strategy=autograd,hvp", "seed=0,1"]
    kept = [option for option in SMALL if option != "strategy=hvp"]
    lines = succeed(
        folder.parent / "unused",
        "-m",
        *kept,
        *overrides,
        "stages=[train,compute,aggregate]",
        f"hydra.sweep.dir={folder}",
    )
    return folder, lines


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own(sweep):
    folder, lines = sweep
    runs = {}
    for job in range(4):
        found = pipeline.open_run(folder / str(job))
        config = yaml.safe_load((folder / str(job) / "config.yaml").read_text())
        shard = found.shards[20][2]
        assert shard.attrs["strategy"] == config["strategy"]["_target_"].rpartition(".")[2].lower()
        runs[shard.attrs["strategy"], config["seed"]] = shard.dense()
    assert len(runs) == 4
    assert lines[-3:] == [
        "4 of 4 jobs finished.",
        f"table: {folder / 'summary.csv'}",
        f"report: {folder / 'report.html'}",
    ]
    for (_, seed), matrix in runs.items():
        np.testing.assert_allclose(matrix, runs["autograd", seed], atol=1e-12)
    assert np.abs(runs["hvp", 0] - runs["hvp", 1]).max() > 1e-3


def test_a_failing_job_of_a_sweep_leaves_the_others_going(tmp_path):
    options = [
        "-m",
        *SMALL,
        "num_batches=1,9,2",
        "stages=[train,compute]",
        f"hydra.sweep.dir={tmp_path / 'jobs'}",
    ]
    done = run(tmp_path / "unused", *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    refusal = "num_batches=9: 40 training samples make 3 batches of 16: lower num_batches or data.batch_size."
    lines = done.stdout.splitlines()
    assert lines.count(refusal) == 1  # where it happened, and once more at the end
    assert f"job 1 (num_batches=9) failed: {refusal}" in lines
    assert "2 of 3 jobs finished." in lines
    shards = [len(list((tmp_path / "jobs" / str(job)).glob("shards/*/*.h5"))) for job in range(3)]
    assert shards == [1, 0, 2]


def test_help_answers_with_groups_and_options(tmp_path):
    lines = succeed(tmp_path, "--help")
    assert "exact Hessians of a neural network's loss" in lines[0]
    assert any(line.startswith("model=transformer  ") for line in lines)
    assert any(line.startswith("  model.hidden_sizes=[32]  ") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_help_waits_for_no_heavy_library():
    heavy = ["torch", "mlflow", "matplotlib", "scipy", "sklearn", "dask", "distributed", "h5py"]
    code = f"import sys, pipeline.run; print([name for name in {heavy} if name in sys.modules])"
    done = python("-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_it_runs_from_any_folder_once_it_is_installed(tmp_path):
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pipeline.run", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_target_: pipeline.model.MLP" in done.stdout
