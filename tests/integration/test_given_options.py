"""What reaches a person's own class: what the person gave. And keys that nobody reads are told."""

import json

import pytest
import yaml
from support.command import SMALL, fail, succeed

from pipeline.config.schema import settings_of
from pipeline.system.run_folder import RunFolder

HIS_MODULE = """
import json
from pathlib import Path
from types import SimpleNamespace

import torch

import pipeline.cluster
import pipeline.criterion
import pipeline.device
import pipeline.matrix
import pipeline.model
import pipeline.spectrum
import pipeline.storage
import pipeline.strategy
import pipeline.tracking
import pipeline.training


def note(group, **options):
    with Path("handed.jsonl").open("a") as file:
        file.write(json.dumps([group, options]) + "\\n")


class Net(torch.nn.Module):
    def __init__(self, input_shape, num_outputs, activation="relu", bias="his"):
        super().__init__()
        note("model", input_shape=list(input_shape), num_outputs=num_outputs, activation=activation, bias=bias)
        self.only = torch.nn.Linear(*input_shape, num_outputs)

    def forward(self, x):
        return self.only(x)


class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        note("model")
        self.only = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.only(x)


class Sub(pipeline.model.MLP):
    def __init__(self, **options):
        note("model", **{key: options[key] for key in sorted(options) if key not in ("input_shape", "num_outputs")})
        super().__init__(**options)


class Data:
    def __init__(self, batch_size=128, test_fraction=None, num_outputs=None):
        note("data", batch_size=batch_size, test_fraction=test_fraction, num_outputs=num_outputs)
        self.batch_size = batch_size

    def load(self):
        generator = torch.Generator().manual_seed(0)
        return SimpleNamespace(train=(torch.randn(12, 4, generator=generator), torch.arange(12) % 3))


class Loss:
    reduction = "sum"

    def __init__(self, label_smoothing=0.25):
        note("criterion", label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(self, outputs, targets):
        smoothing = self.label_smoothing
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="sum", label_smoothing=smoothing)


def taking(group, base, **defaults):
    def made(**options):
        note(group, **options)
        return base(**{**defaults, **options})

    made.__signature__ = __import__("inspect").signature(base)
    return made


training = taking("training", pipeline.training.GD, num_steps=2)
matrix = taking("matrix", pipeline.matrix.Fisher)
strategy = taking("strategy", pipeline.strategy.HVP)
storage = taking("storage", pipeline.storage.Plain)
spectrum = taking("spectrum", pipeline.spectrum.Exact)
cluster = taking("cluster", pipeline.cluster.Threads)
tracking = taking("tracking", pipeline.tracking.NoTracking)
device = taking("device", pipeline.device.Cpu)
"""
REST = ("device=cpu", "tracking=none", "training.num_steps=2", "strategy=hvp")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "his_options.py").write_text(HIS_MODULE)
    return tmp_path


def handed(root, *overrides, folder="folder", **options):
    """What each group's class was handed, by group."""
    (root / "handed.jsonl").unlink(missing_ok=True)
    succeed(root / folder, *overrides, cwd=root, paths=[root], **options)
    return dict(map(json.loads, (root / "handed.jsonl").read_text().splitlines()))


def test_options_of_the_default_class_do_not_reach_ones_own(root):
    mine = (
        "model._target_=his_options.Net",
        "data._target_=his_options.Data",
        "criterion._target_=his_options.Loss",
    )
    found = handed(root, *mine, *REST, "stages=[train]")
    assert found == {
        "model": {"input_shape": [4], "num_outputs": 3, "activation": "relu", "bias": "his"},
        "data": {"batch_size": 128, "test_fraction": None, "num_outputs": None},
        "criterion": {"label_smoothing": 0.25},
    }
    settings = settings_of(RunFolder(root / "folder"))
    assert settings["criterion"] == {"_target_": "his_options.Loss"}  # config.yaml tells what was handed
    assert settings["model"].keys() == {"_target_", "input_shape", "num_outputs"}
    given = (
        "model.activation=tanh",
        "data.batch_size=256",
        "criterion.label_smoothing=0.0",
        "+data.num_outputs=3",
    )
    given = [option.replace("+data", "data") for option in given]  # digits.yaml has the key
    found = handed(
        root, *mine, *given, *REST, "stages=[train]", folder="other"
    )  # the defaults, but asked for
    assert found == {
        "model": {"input_shape": [4], "num_outputs": 3, "activation": "tanh", "bias": "his"},
        "data": {"batch_size": 256, "test_fraction": None, "num_outputs": 3},
        "criterion": {"label_smoothing": 0.0},
    }


def test_no_group_hands_its_defaults_to_ones_own_class(root):
    names = ("training", "matrix", "strategy", "storage", "spectrum", "cluster", "tracking", "device")
    mine = [f"{name}._target_=his_options.{name}" for name in names]
    small = [
        option for option in SMALL if not option.startswith(("training.", "device", "tracking", "strategy"))
    ]
    found = handed(root, *small, *mine, "stages=[train,compute,aggregate]")
    assert found == {name: {} for name in names}
    given = ("training.weight_decay=0.5", "+matrix.num_draws=2", "+strategy.chunk_size=7", "storage.tile=9",
             "spectrum.num_top=3", "cluster.num_workers=1", "training.num_steps=1",
             "+device.num_threads=1")  # fmt: skip
    found = handed(root, *small, *mine, *given, "stages=[train,compute,aggregate]", folder="other")
    assert found == {
        "training": {"weight_decay": 0.5, "num_steps": 1},
        "matrix": {"num_draws": 2},
        "strategy": {"chunk_size": 7},
        "storage": {"tile": 9},
        "spectrum": {"num_top": 3},
        "cluster": {"num_workers": 1},
        "tracking": {},
        "device": {"num_threads": 1},
    }


def test_a_class_of_the_pipeline_that_is_named_takes_its_own_defaults(root):
    small = [option for option in SMALL if not option.startswith("model.")]
    succeed(
        root / "folder",
        *small,
        "model._target_=pipeline.model.CNN",
        "data.input_shape=[1,2,2]",
        "stages=[train]",
    )
    settings = settings_of(RunFolder(root / "folder"))
    assert settings["model"].keys() == {"_target_", "input_shape", "num_outputs"}


@pytest.mark.parametrize("where", ["option", "experiment", "primary", "included", "value"])
def test_what_stands_in_ones_own_yaml_reaches_the_class(root, where):
    """In an option file, an experiment, a main config of one's own, a file that it includes, or a value on the line."""
    conf = root / "conf"
    mine = {"_target_": "his_options.Net", "activation": "tanh"}  # the default's own value
    files = {
        "option": ("model/mine.yaml", "", mine, ["model=mine"]),
        "experiment": ("experiment/mine.yaml", "# @package _global_\n", {"model": mine}, ["experiment=mine"]),
        "primary": (
            "mine.yaml",
            "",
            {"defaults": ["config", "_self_"], "model": mine},
            ["--config-name=mine"],
        ),
        "included": ("mine.yaml", "", {"defaults": ["config", "base", "_self_"]}, ["--config-name=mine"]),
        "value": ("unused.yaml", "", {}, ["model={_target_:his_options.Net,activation:tanh}"]),
    }
    name, head, content, options = files[where]
    (conf / name).parent.mkdir(parents=True)
    (conf / name).write_text(head + yaml.safe_dump(content))
    (conf / "base.yaml").write_text(yaml.safe_dump({"model": mine}))
    small = [option for option in SMALL if not option.startswith("model.")]
    found = handed(root, f"--config-dir={conf}", *options, *small, "stages=[train]")
    assert found["model"] == {"input_shape": [4], "num_outputs": 3, "activation": "tanh", "bias": "his"}


def test_a_class_without_sizes_gets_none_and_one_that_takes_anything_gets_them(root):
    small = [option for option in SMALL if not option.startswith("model.")]
    assert handed(root, *small, "model._target_=his_options.Bare", "stages=[train]") == {"model": {}}
    options = ("model._target_=his_options.Sub", "model.hidden_sizes=[2]", "stages=[train]")
    assert handed(root, *small, *options, folder="other") == {"model": {"hidden_sizes": [2]}}


UNREAD = {
    "abbreviation": (["+lr=3"], "lr: there is no such option, did you mean training.learning_rate?"),
    "near a group": (["+experiment_name=x"], "experiment_name: there is no such option, did you mean experiment?"),
    "near a key": (["+num_batchs=2"], "num_batchs: there is no such option, did you mean num_batches?"),
    "of a group": (["+num_steps=2"], "num_steps: there is no such option, did you mean training.num_steps?"),
    "near one of a group": (["+hiden_sizes=[2]"], "hiden_sizes: there is no such option, did you mean model.hidden"),
    "nothing near": (["+zzz=1"], "zzz: there is no such option: --help lists them."),
    "in a group": (["+model.foo=3"], "model.foo: pipeline.model.MLP takes no such option: it takes input_shape, "),
    "near in a group": (
        ["+model.hiden_sizes=[3]"],
        "model.hiden_sizes: pipeline.model.MLP takes no such option, did you mean hidden_sizes?",
    ),
    "of another choice": (
        ["training=none", "+training.num_steps=3"],
        "training.num_steps: pipeline.training.Untrained takes no such option: it takes none.",
    ),
    "nested": (["+model.optimizer.lr=3"], "model.optimizer: pipeline.model.MLP takes no such option"),
    "a group that is not built": (["stages=[aggregate]", "+model.foo=3"], "model.foo: pipeline.model.MLP takes no"),
    "spectrum": (["+spectrum.num_tops=3"], "spectrum.num_tops: pipeline.spectrum.Auto takes no such option, did"),
    "of one's own class": (
        ["model._target_=his_options.Net", "+model.activations=relu"],
        "model.activations: his_options.Net takes no such option, did you mean activation?",
    ),
    "of the default class": (
        ["model._target_=his_options.Net", "model.hidden_sizes=[3]"],
        "model.hidden_sizes: his_options.Net takes no such option: it takes input_shape, num_outputs, activation, bias",
    ),
    "abbreviation in a group": (
        ["+training.lr=3"],
        "training.lr: pipeline.training.Adam takes no such option, did you mean learning_rate?",
    ),
    "without a plus": (
        ["model._target_=his_options.Net", "model.act=relu"],
        "model.act: there is no such option; one that a class of your own takes is given as +model.act=VALUE.",
    ),
    "hydra without a plus": (["hydra.sweep.dirs=x"], "hydra.sweep.dirs: there is no such option, did you mean dir?"),
    "left half done": (["+model._partial_=true"], "model._partial_: pipeline.model.MLP takes no such option"),
    "a module": (["model._target_=his_options"], "model._target_=his_options is no class: give one, such as"),
    "hydra": (["+hydra.run.dri=x"], "hydra.run.dri: there is no such option, did you mean dir?"),
    "hydra's launcher": (["+hydra.launcher.timeout=1"], "hydra.launcher.timeout: "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", UNREAD)
def test_a_key_that_nobody_reads_is_told_with_the_nearest(root, mistake):
    overrides, message = UNREAD[mistake]
    line = fail(root / "folder", "data=blobs", *overrides, "tracking=none", "device=cpu", paths=[root])
    assert line.startswith(message)
    assert not list((root / "folder").rglob("*.safetensors"))
    assert not (root / "folder" / "config.yaml").exists()


def test_a_key_that_another_option_takes_its_value_from_is_read(root):
    small = [option for option in SMALL if not option.startswith("model.")]
    succeed(root / "folder", *small, "+width=5", "model.hidden_sizes=[${width},3]", "stages=[train]")
    assert settings_of(RunFolder(root / "folder"))["model"]["hidden_sizes"] == [5, 3]


def test_a_misspelt_key_in_ones_own_yaml_is_told(root):
    (root / "conf" / "experiment").mkdir(parents=True)
    experiment = root / "conf" / "experiment" / "mine.yaml"
    for content, message in {
        "modle: {bias: false}": "modle: there is no such option, did you mean model?",
        "model: {bais: false}": "model.bais: ",
    }.items():
        experiment.write_text(f"# @package _global_\n{content}\n")
        line = fail(root / "folder", f"--config-dir={root / 'conf'}", "experiment=mine", "tracking=none")
        assert line.startswith(message)
        assert "did you mean" in line
