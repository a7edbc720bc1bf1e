"""Every option of every group composes, instantiates, and is what its file says."""

import inspect
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file

import pipeline.run  # registers the schema
from pipeline.config.schema import Config, check_settings
from pipeline.experiment.instantiate import build
from pipeline.experiment.instantiate import resolved_settings as plain_settings

PROJECT = Path(pipeline.__file__).parents[1]
CONF = PROJECT / "conf"
OPTIONS = [
    path.relative_to(CONF).with_suffix("")
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name != "experiment"
]
GROUPS = sorted({path.parent.name for path in OPTIONS})
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
LIBRARIES = {
    "model/timm": "timm",
    "model/huggingface": "transformers",
}  # of an extra, which need not be there
VIT = [
    "+model.hidden_size=8",
    "+model.num_hidden_layers=1",
    "+model.num_attention_heads=2",
    "+model.patch_size=4",
]
EVERY = pytest.mark.parametrize("option", OPTIONS, ids=str)


@pytest.fixture(autouse=True)
def conf():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture
def files(tmp_path):
    """The overrides of options that read or write a file."""
    np.savez(tmp_path / "mine.npz", x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 4)
    save_file({"weight": torch.zeros(2)}, tmp_path / "mine.safetensors")
    return {
        "data/arrays": [f"data.path={tmp_path / 'mine.npz'}"],
        "training/pretrained": [f"training.path={tmp_path / 'mine.safetensors'}"],
        "tracking/mlflow": [f"tracking.root={tmp_path}"],
        "model/timm": ["model.name=resnet10t", "+model.stem_width=8", "+model.channels=[8,8,8,8]"],
        "model/huggingface": ["model.config=vit", "model.head=ImageClassification", *VIT],
        "model": ["data.input_shape=[1,8,8]", "data.num_outputs=10"],
    }


def composed(*overrides):
    config = compose("config", list(overrides))
    check_settings(plain_settings(config))
    return config


def text_of(option):
    return (CONF / option).with_suffix(".yaml").read_text()


def test_every_group_is_a_room_of_the_package():
    assert all((PROJECT / "pipeline" / group / "__init__.py").exists() for group in GROUPS)
    assert set(GROUPS) <= set(inspect.signature(Config).parameters)


@EVERY
def test_an_option_composes_and_instantiates(option, files):
    group = option.parent.name
    pytest.importorskip(LIBRARIES.get(str(option), "torch"))
    config = composed(f"{group}={option.name}", *files.get(str(option), []), *files.get(group, []))
    if str(option) == "data/own":
        assert OmegaConf.is_missing(config.data, "_target_")
        return
    built = build(config, group)
    if str(option) not in LIBRARIES:
        assert type(built).__module__.startswith(f"pipeline.{group}.")
    if group == "data":
        samples = built.load()
        assert samples.train.num_samples > 0
        assert samples.num_outputs == (4 if option.name == "arrays" else 10)
    elif group == "model":
        outputs = built(torch.zeros(2, 1, 8, 8))
        assert getattr(outputs, "logits", outputs).shape == (2, 10)
    elif group == "device":
        if option.name == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
        assert built.setup().type in ("cpu", "cuda")


@EVERY
def test_an_option_names_a_class_of_its_group_and_has_its_options_with_their_defaults(option):
    options = OmegaConf.to_container(OmegaConf.create(text_of(option)))  # 1e-5 is a number
    if str(option) == "data/own":  # the class is a person's; the options are those of what reads its samples
        options["_target_"] = "pipeline.data.Own"
    module, _, name = options.pop("_target_").rpartition(".")
    assert module == f"pipeline.{option.parent}"
    parameters = inspect.signature(getattr(hydra.utils.get_object(module), name)).parameters
    parameters = {key: each for key, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    assert options.keys() == parameters.keys()
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert options[key] == "???" or options[key].startswith("${"), key
        else:
            assert options[key] == plain(parameter.default), key


def plain(value):
    """As YAML has it."""
    return list(value) if isinstance(value, tuple) else value


@EVERY
def test_the_first_line_says_what_the_option_is(option):
    first = text_of(option).splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert len(first) > 10


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_to_something_else_than_the_default(experiment):
    default, changed = (
        OmegaConf.to_container(composed(*over)) for over in ((), (f"experiment={experiment}",))
    )
    assert changed != default
    assert changed.keys() == default.keys()  # nothing fell beside the keys of the schema


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_the_command_that_runs_it(experiment):
    """After the line that Hydra's parser must find first."""
    package, command, *_ = text_of(Path("experiment") / experiment).splitlines()
    assert package == "# @package _global_"
    assert command == f"# python -m pipeline.run experiment={experiment}"


def test_an_experiment_overrides_and_the_command_line_overrides_it():
    assert composed("experiment=quick").num_batches == 2
    assert composed("experiment=quick", "num_batches=3").num_batches == 3
    assert composed("experiment=quick").data._target_ == "pipeline.data.Blobs"
    assert composed("experiment=quick", "data=digits").data._target_ == "pipeline.data.Digits"


def test_the_defaults_are_those_of_the_schema():
    config, schema = composed(), OmegaConf.structured(Config)
    assert config.stages == schema.stages
    for key in ("seed", "dtype", "num_batches", "checkpoint_steps", "parameters"):
        assert config[key] == schema[key]
