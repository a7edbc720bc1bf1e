"""Mistakes at the command line: one line says what is wrong, the value and the remedy, and nothing is lost."""

import pytest
from support.command import SMALL, fail, run

MISTAKES = {
    "misspelled key": (["sed=1"], "sed: there is no such option, did you mean seed?"),
    "misspelled option": (
        ["model.hiden_sizes=[3]"],
        "model.hiden_sizes: there is no such option, did you mean hidden_sizes?",
    ),
    "misspelled choice": (
        ["strategy=fun"],
        "strategy=fun: there is no such option, did you mean func? Choose one of auto, autograd, ",
    ),
    "wrong type": (["seed=abc"], "seed=abc: Value 'abc' of type 'str' could not be converted to Integer."),
    "bad stage": (
        ["stages=[trian]"],
        "stages=trian: choose one of train, compute, aggregate, slices, law, report, or a list of them.",
    ),
    "no stage": (
        ["stages=[]"],
        "stages=[]: choose one of train, compute, aggregate, slices, law, report, or a list of them.",
    ),
    "names that are none": (
        ["parameters=[1,2]"],
        "parameters=[1, 2]: give a name such as fc1.*, a list of them, or null (all that require grad).",
    ),
    "a later stage alone": (["stages=report"], "stages=report goes on with what a run left, and "),
    "dashes": (["--model=mlp"], "--model=mlp: options are written without dashes: model=mlp."),
    "no value": (["data=arrays"], "data.path has no value: give one with data.path=VALUE."),
    "option of another choice": (
        ["training=none", "training.num_steps=3"],
        "training.num_steps: the training that was chosen has no such option, training=adam",
    ),
    "wrong type in a group": (
        ["model.hidden_sizes=abc"],
        "model.hidden_sizes='abc': give a list of whole numbers of at least 1, such as [32].",
    ),
    "model that does not fit the data": (
        ["model=cnn", "data=blobs"],
        "model=cnn needs images (channels, height, width); the data has samples of shape (20,): choose",
    ),
    "no such class": (
        ["model._target_=nowhere.Net"],
        "model._target_=nowhere.Net cannot be imported (No module named 'nowhere'): check its name, and",
    ),
    "matrix that fits no disk": (
        ["model.hidden_sizes=[40000]", "strategy=hvp"],
        "7 shards of P = 3,000,010 weights need 126 TB of disk, ",
    ),
    "matrix that fits no memory": (
        ["model.hidden_sizes=[400000]", "stages=[train,aggregate]"],
        "spectrum=slq with P = 30,000,010 weights needs 104 GB of memory, ",
    ),
    "model that fits no memory": (
        ["model.hidden_sizes=[100000000000]"],
        "out of memory (25.6 TB were asked for): choose fewer weights",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake, tmp_path):
    overrides, message = MISTAKES[mistake]
    line = fail(tmp_path / "folder", *overrides, "tracking=none", "device=cpu")
    assert line.startswith(message)
    assert list(tmp_path.iterdir()) == []  # no run folder of a run that never began


def test_a_sweep_that_never_began_leaves_no_folder(tmp_path):
    line = fail(tmp_path / "folder", "-m", "model=mlp,foo", "tracking=none", "hydra.sweep.dir=sweeps/one")
    assert line.startswith("model=foo: there is no such option.")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_is_told_in_one_line_and_checkpoints_are_kept(tmp_path):
    folder = tmp_path / "folder"
    steep = ["model.activation=relu", "training.learning_rate=1e200", "checkpoint_steps=[0]"]
    line = fail(folder, *SMALL, *steep)
    assert line.startswith("training: at step ")
    assert "lower training.learning_rate" in line
    assert [path.name for path in (folder / "checkpoints").glob("*.safetensors")] == [
        "step-000000.safetensors"
    ]
    assert not (folder / "shards").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("here")
    line = fail(tmp_path / "file" / "below", *SMALL, cwd=tmp_path)
    assert (
        line
        == f"{tmp_path / 'file' / 'below'}: Not a directory: choose another folder with hydra.run.dir=FOLDER."
    )
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("overrides", [["sed=1"], ["stages=[aggregate]"]])
def test_tracebacks_are_shown_to_those_who_ask(overrides, tmp_path):
    """One mistake that Hydra finds, one that a stage finds."""
    done = run(tmp_path / "folder", *overrides, "tracking=none", HYDRA_FULL_ERROR="1", fresh=True)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stdout
