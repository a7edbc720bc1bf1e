"""One folder holds one experiment: other samples, an edited model or criterion under the same config are refused.

Each test edits a person's own module, or a file of samples, between two starts of the same command.
"""

import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.command import contents, fail, succeed

import pipeline
from pipeline.objective.checkpoints import load_state
from pipeline.shards.hdf5 import array_of, attributes, names_in
from pipeline.shards.shard import open_shard
from pipeline.shards.writer import checksum_of
from pipeline.system.evidence import CHECKSUMS
from pipeline.system.run_folder import RunFolder

HIS_MODULE = """
from types import SimpleNamespace

import torch
from torch.nn import functional as F


class Net(torch.nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.first = torch.nn.Linear(*input_shape, 5)
        self.second = torch.nn.Linear(5, num_outputs)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.second(hidden)


class Data:
    batch_size = 10

    def load(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(24, 4, generator=generator)
        y = torch.randint(3, (24,), generator=generator)
        x_test, y_test = x[:6] + 0.1, y[:6]
        return SimpleNamespace(train=(x, y), test=(x_test, y_test))


class Loss:
    reduction = "mean"

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets)
"""
HIS = (
    "model._target_=his_experiment.Net",
    "data._target_=his_experiment.Data",
    "criterion._target_=his_experiment.Loss",
    "training.num_steps=5",
    "training.batch_size=8",
    "strategy=hvp",
    "device=cpu",
    "tracking=none",
)
OWN_SIZES = """def __init__(self, num_outputs=99):
        assert num_outputs == 99  # what the pipeline puts into the config for the model is not handed back

    def load(self):"""
STAGES = "stages=[train,compute,aggregate]"
DATA, MODEL = "with other data than this run has", "with another model than this run has"
CRITERION = "with another criterion than this run has"
ONE = "one folder holds one experiment; choose another with hydra.run.dir=FOLDER."
EDITS = {  # what is edited, into what, and what the line names
    "all samples": ("manual_seed(0)", "manual_seed(1)", f"{DATA} (its training samples differ)"),
    "one number": ("x_test, y_test =", "x[3, 1] += 1e-4; x_test, y_test =", f"{DATA} (its training samples differ)"),
    "one label": ("x_test, y_test =", "y[20] = (y[20] + 1) % 3; x_test, y_test =", DATA),
    "order": ("train=(x, y)", "train=(x.flip(0), y.flip(0))", f"{DATA} (its training samples differ)"),
    "test samples": ("+ 0.1", "+ 0.2", f"{DATA} (its test samples differ)"),
    "no test samples": (", test=(x_test, y_test)", "", f"{DATA} (its test samples differ)"),
    "activation": ("torch.tanh", "torch.sigmoid", MODEL),
    "derivative": ("self.second(hidden)", "self.second(hidden.detach())", MODEL),
    "criterion": ("F.cross_entropy(outputs", "1.001 * F.cross_entropy(outputs", CRITERION),
    "smoothing": ("(outputs, targets)\n", "(outputs, targets, label_smoothing=0.1)\n", CRITERION),
}  # fmt: skip


def write_module(root, old="", new=""):
    (root / "his_experiment.py").write_text(HIS_MODULE.replace(old, new) if old else HIS_MODULE)
    shutil.rmtree(root / "__pycache__", ignore_errors=True)  # two edits in a second look alike to Python


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun")
    write_module(root)
    succeed(root / "folder", *HIS, STAGES, paths=[root])
    return root


@pytest.fixture
def root(begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return tmp_path


def bytes_of(folder):
    """Of all files but config.yaml, which each start writes anew, and may with another num_batches."""
    return {name: content for name, (content, *_) in contents(folder).items() if name != "config.yaml"}


def shard_0(root):
    return RunFolder(root / "folder").shard(5, 0)


@pytest.mark.parametrize("edit", list(EDITS)[1:])  # the tests below have the first
def test_the_same_command_after_an_edit_is_refused_and_nothing_changes(root, edit):
    old, new, told = EDITS[edit]
    assert old in HIS_MODULE
    before = bytes_of(root / "folder")
    write_module(root, old, new)
    line = fail(root / "folder", *HIS, STAGES, paths=[root])
    assert str(root / "folder") in line
    assert told in line
    assert line.endswith(ONE)
    assert bytes_of(root / "folder") == before


def test_without_an_edit_all_is_taken_as_it_is(root):
    before = contents(root / "folder")
    succeed(root / "folder", *HIS, STAGES, paths=[root])
    after = contents(root / "folder")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"config.yaml", "summary.json", "spectra/choice.json"}


@pytest.mark.parametrize(
    ("edit", "options"),
    [
        ("all samples", ()),
        ("activation", ()),
        ("derivative", ()),
        ("criterion", ()),
        ("derivative", ("keep=mean",)),
    ],
)
def test_a_second_process_that_only_computes_refuses_what_was_edited(root, edit, options):
    """A shard is missing, so that it would be made, and averaged with those that are there."""
    old, new, told = EDITS[edit]
    shard_0(root).unlink()
    write_module(root, old, new)
    assert told in fail(root / "folder", *HIS, "stages=[compute]", *options, paths=[root])
    assert not shard_0(root).exists()
    assert not (shard_0(root).parent / "running.h5").exists()


@pytest.mark.parametrize("edit", ["all samples", "activation"])
def test_slices_of_the_loss_refuse_what_was_edited(root, edit):
    old, new, told = EDITS[edit]
    write_module(root, old, new)
    assert told in fail(root / "folder", *HIS, "stages=[slices]", paths=[root])
    assert not (root / "folder" / "slices").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    write_module(root)
    succeed(root / "folder", *HIS, "stages=[train]", paths=[root])
    return root / "folder"


@pytest.mark.parametrize("edit", ["all samples", "activation", "criterion"])
def test_a_training_that_was_cut_short_does_not_go_on_after_an_edit(trained, tmp_path, edit):
    """The second command asks for more checkpoints, for which it would train from the start."""
    shutil.copytree(trained, tmp_path / "folder")
    old, new, told = EDITS[edit]
    write_module(tmp_path, old, new)
    for options in (["checkpoint_steps=[2]"], []):
        (tmp_path / "folder" / "checkpoints" / "state.pt").unlink(missing_ok=not options)
        before = contents(tmp_path / "folder" / "checkpoints")
        assert told in fail(tmp_path / "folder", *HIS, "stages=[train]", *options, paths=[tmp_path])
        assert contents(tmp_path / "folder" / "checkpoints") == before


def test_a_mean_that_is_kept_alone_refuses_what_was_edited(tmp_path):
    write_module(tmp_path)
    options = (*HIS, "keep=mean", "num_batches=2", "stages=[train,compute]")
    succeed(tmp_path / "folder", *options, paths=[tmp_path])
    for edit in ("all samples", "activation", "derivative", "criterion"):
        old, new, told = EDITS[edit]
        write_module(tmp_path, old, new)
        before = bytes_of(tmp_path / "folder")
        more = [option for option in options if not option.startswith("num_batches")]
        assert told in fail(tmp_path / "folder", *more, paths=[tmp_path])
        assert bytes_of(tmp_path / "folder") == before
    write_module(tmp_path)
    succeed(tmp_path / "folder", *more, paths=[tmp_path])


def test_worker_processes_make_shards_of_the_same_experiment(tmp_path):
    """Workers build model and data themselves, and must be handed the options that the run is."""
    write_module(tmp_path, "def load(self):", OWN_SIZES)
    workers = ("cluster=local", "cluster.num_workers=2", "stages=[train,compute]")
    succeed(tmp_path / "folder", *HIS, *workers, paths=[tmp_path])
    [shards] = pipeline.open_run(tmp_path / "folder").shards.values()
    assert len(shards) == 3
    assert len({shard.attrs["train_hash"] for shard in shards}) == 1
    assert len({shard.attrs["data_hash"] for shard in shards}) == 3


@pytest.mark.parametrize("training", ["none", "adam"])
def test_a_file_of_samples_that_was_edited_in_place_is_refused(tmp_path, training):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 3
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    options = ["data=arrays", f"data.path={tmp_path / 'mine.npz'}", "data.batch_size=16", "strategy=hvp",
               "model.hidden_sizes=[3]", f"training={training}", "device=cpu", "tracking=none"]  # fmt: skip
    options += [] if training == "none" else ["training.num_steps=5"]
    succeed(tmp_path / "folder", *options, "stages=[train,compute]")
    x[7, 2] += 0.5
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    for stages in (
        ("stages=[train,compute]", "stages=[compute]") if training == "adam" else ("stages=[slices]",)
    ):
        line = fail(tmp_path / "folder", *options, stages)
        assert line == f"{tmp_path / 'folder'} was made {DATA} (its training samples differ): {ONE}"
    (tmp_path / "folder" / "config.yaml").unlink()  # its checkpoint and its shards know it too
    assert "step-00000" in (line := fail(tmp_path / "folder", *options, "stages=[compute]"))
    assert "(its training samples differ)" in line


def test_weights_that_were_given_by_a_file_are_still_those_of_the_file(tmp_path):
    options = ["data=blobs", "data.num_samples=20", "data.dimension=3", "data.num_clusters=2", "strategy=hvp",
               "model.hidden_sizes=[2]", "device=cpu", "tracking=none"]  # fmt: skip
    for seed in (0, 1):
        succeed(tmp_path / str(seed), *options, "training=none", f"seed={seed}", "stages=[train]")
    given, name = tmp_path / "given.safetensors", "checkpoints/step-000000.safetensors"
    mine = [*options, "training=pretrained", f"training.path={given}", "stages=[train]"]
    shutil.copy(tmp_path / "0" / name, given)
    succeed(tmp_path / "folder", *mine)
    succeed(tmp_path / "folder", *mine)
    shutil.copy(tmp_path / "1" / name, given)
    line = fail(tmp_path / "folder", *mine)
    assert line.startswith(f"{tmp_path / 'folder' / name} holds other weights than {given} does now: ")
    given.unlink()  # what the folder has is enough
    succeed(tmp_path / "folder", *mine)


def of_fresh_weights(folder, *edit):
    write_module(folder.parent, *edit)
    options = [option for option in HIS if not option.startswith("training.")]
    more = ["training=none", "verify=off", "stages=[train,compute]"]
    succeed(folder, *options, *more, paths=[folder.parent])


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "folder"
    of_fresh_weights(folder)
    return folder


@pytest.mark.parametrize("edit", ["all samples", "activation", "derivative", "criterion"])
def test_shards_of_two_experiments_are_not_averaged(fresh, tmp_path, edit):
    """One from another folder, of the same weights, put there by hand; the aggregation knows the shards alone."""
    old, new, told = EDITS[edit]
    shutil.copytree(fresh, tmp_path / "folder")
    of_fresh_weights(tmp_path / "other", old, new)
    mine, other = (RunFolder(tmp_path / name).shard(0, 1) for name in ("folder", "other"))
    assert open_shard(mine).attrs["weights_hash"] == open_shard(other).attrs["weights_hash"]
    shutil.copy(other, mine)
    line = fail(tmp_path / "folder", "stages=[aggregate]", "tracking=none")
    what = told.partition(" than ")[0]
    assert line.startswith(f"{mine} was made {what} than batch-00000.h5 (")
    assert line.endswith(" differ): one folder holds one experiment; move one of them away.")
    assert not RunFolder(tmp_path / "folder").mean(0).exists()


def test_shards_of_before_there_was_evidence_are_taken_as_they_are(root):
    """So are checkpoints, and a folder whose config.yaml says nothing of samples."""
    folder = RunFolder(root / "folder")
    for path in folder.shard_paths(5):
        _without_evidence(path)
    weights = load_state(folder.checkpoint(5))
    save_file(weights, folder.checkpoint(5))
    state = torch.load(folder.checkpoints / "state.pt", weights_only=True)
    old = {key: value for key, value in state.items() if key not in ("evidence", "sha256")}
    torch.save(old, folder.checkpoints / "state.pt")
    settings = yaml.safe_load(folder.config.read_text())
    folder.config.write_text(yaml.safe_dump({k: v for k, v in settings.items() if k not in CHECKSUMS}))
    before = {path: path.stat().st_mtime_ns for path in folder.shard_paths(5)}
    shard_0(root).unlink()
    succeed(root / "folder", *HIS, STAGES, paths=[root])
    first, *others = folder.shard_paths(5)
    assert {path: path.stat().st_mtime_ns for path in others} == {path: before[path] for path in others}
    assert "train_hash" in open_shard(first).attrs
    assert "train_hash" not in open_shard(others[0]).attrs
    assert yaml.safe_load(folder.config.read_text())["train_hash"] == open_shard(first).attrs["train_hash"]
    write_module(root, *EDITS["activation"][:2])
    assert MODEL in fail(root / "folder", *HIS, STAGES, paths=[root])  # by what the new shard tells


def _without_evidence(path):
    kinds = [f"{kind}_{what}" for kind in ("first", "batch") for what in ("outputs", "slope", "losses")]
    told = ("data_hash", "train_hash", "agreement", *kinds)
    with h5py.File(path, "r+") as file:
        for name in told:
            del file.attrs[name]
        arrays = {
            name: array_of(file, name) for name in names_in(file) if name not in ("matrix", "parameters")
        }
        file.attrs["checksum"] = checksum_of(attributes(file), arrays)
