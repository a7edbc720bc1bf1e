"""Errors as Hydra, OmegaConf and torch raise them, and the one line that is made of each."""

import re
import shlex
from pathlib import Path

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import pipeline.run
from pipeline.config.messages import one_line_message
from pipeline.errors import PipelineError

CONF = Path(pipeline.__file__).parents[1] / "conf"


def told(*overrides):
    """What is said of a command line that does not compose."""
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(Exception) as caught,  # noqa: PT011 - of whatever class Hydra raises
    ):
        compose("config", list(overrides))
    line = one_line_message(caught.value)
    assert line is not None
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "sed: there is no such option, did you mean seed?"),
        ("modell=mlp", "modell: there is no such option, did you mean model?"),
        ("qqqqqq=1", "qqqqqq: there is no such option: --help lists them."),
        ("model.hiden_sizes=[3]", "model.hiden_sizes: there is no such option, did you mean hidden_sizes?"),
        (
            "model.num_channels=[3]",
            "model.num_channels: the model that was chosen has no such option, model=cnn or resnet has it.",
        ),
        ("model=mlpp", "model=mlpp: there is no such option, did you mean mlp? Choose one of cnn, huggingface, "
         "mlp, resnet, timm, transformer."),
        ("seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer."),
        ("dtype=float16", "dtype=float16: Invalid value 'float16', expected one of [float32, float64]."),
        ("trainng=adam", "trainng: there is no such option, did you mean training?"),
        ("stratgy=hvp", "stratgy: there is no such option, did you mean strategy?"),
        ("modle.hidden_sizes=[3]", "modle: there is no such option, did you mean model?"),
        ("~modle", "modle: there is no such option, did you mean model?"),
        ("model.hiden=[3]", "model.hiden: there is no such option, did you mean hidden_sizes?"),
        ("output_dir=x", "output_dir: there is no such option, did you mean hydra.run.dir=FOLDER?"),
        ("batch_size=3", "batch_size: there is no such option, did you mean data.batch_size, or training.batch_size?"),
        ("training.epochs=3", "training.epochs: there is no such option, did you mean num_steps?"),
        ("hydra.rn.dir=x", "hydra.rn: there is no such option, did you mean run?"),
        ("hydra/launchr=slurm", "hydra/launchr: there is no such group, did you mean hydra/launcher?"),
        ("seed=0,1", "seed=0,1: several values make a sweep, with the flag -m; a list is written seed=[0,1]."),
        ("mlp", "mlp: options are given as KEY=VALUE, did you mean model=mlp?"),
        ("model", "model: options are given as KEY=VALUE, such as model=VALUE; --help lists them."),
        ("seed=[1", "seed=[1: not an option as Hydra reads it (no viable alternative at input '[1'): quote or close "
         "what is open"),
        ("experiment=quik", "experiment=quik: there is no such option, did you mean quick? Choose one of "),
    ],
)  # fmt: skip
def test_a_command_line_that_does_not_compose(override, line):
    assert told(override).startswith(line)


def test_a_text_with_an_equals_sign_is_shown_as_hydra_reads_it():
    line = told("training.path=epoch=3-step=60.ckpt")
    assert line.startswith(
        "training.path=epoch=3-step=60.ckpt: not an option as Hydra reads it (mismatched input '='"
    )
    [shown] = re.findall(r"'training.path=.*'", line)
    [override] = OverridesParser.create().parse_overrides(shlex.split(shown))
    assert override.value() == "epoch=3-step=60.ckpt"


def test_a_value_that_is_missing():
    config = OmegaConf.create({"data": {"_target_": "pipeline.data.Arrays", "path": "???"}})
    with pytest.raises(Exception, match="Missing mandatory value") as caught:
        hydra.utils.instantiate(config.data)
    assert one_line_message(caught.value) == "data.path has no value: give one with data.path=VALUE."


def test_a_refusal_by_a_class_that_hydra_wrapped():
    config = OmegaConf.create({"_target_": "pipeline.model.MLP", "input_shape": [2], "num_outputs": 0})
    with pytest.raises(Exception, match="num_outputs") as caught:
        hydra.utils.instantiate(config, _convert_="all")
    line = one_line_message(caught.value)
    assert line is not None
    assert line.startswith("model.num_outputs=0")


def test_an_error_inside_a_class_that_hydra_wrapped():
    config = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2})
    with pytest.raises(Exception, match="out_features") as caught:
        hydra.utils.instantiate(config)
    line = one_line_message(caught.value)
    assert line is not None
    assert line.startswith("Error in call to target 'torch.nn.modules.linear.Linear'")
    assert "missing 1 required positional argument: 'out_features'" in line
    assert "\n" not in line


def test_memory_that_is_not_there():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    line = one_line_message(caught.value)
    assert line is not None
    assert line.startswith("out of memory (4 PB were asked for): choose fewer weights")
    assert one_line_message(MemoryError()) == line.replace(" (4 PB were asked for)", "")
    on_gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of"
    )
    assert one_line_message(on_gpu) == line.replace("4 PB", "2.68 GB")


def test_a_library_that_fails_without_a_reason():
    error = SystemError("error return without exception set")
    line = one_line_message(error)
    assert line is not None
    assert line.startswith(
        "a library failed without a reason (error return without exception set), as some do where"
    )
    assert line.endswith("strategy=hvp or spectrum=topk.")


def test_a_file_that_cannot_be_used(tmp_path):
    with pytest.raises(NotADirectoryError) as caught:
        (Path(__file__) / "below").mkdir()
    assert one_line_message(caught.value) == (
        f"{Path(__file__) / 'below'}: Not a directory: choose another folder with hydra.run.dir=FOLDER."
    )


def test_a_full_disk_under_files_that_are_not_the_pipelines_own():
    """Hydra's: the error that it raises has the system's as its cause, which need not name a file."""
    outer = ValueError("Unable to configure handler 'file'")
    outer.__cause__ = OSError(28, "No space left on device", "/run/run.log")
    remedy = "No space left on device: make room or choose another folder with hydra.run.dir=FOLDER."
    assert one_line_message(outer) == f"/run/run.log: {remedy}"
    assert one_line_message(OSError(28, "No space left on device")) == f"a file: {remedy}"


def test_the_pipelines_own_errors_are_told_as_they_are_from_whatever_depth():
    outer = RuntimeError("outer")
    outer.__cause__ = ValueError("between")
    outer.__cause__.__cause__ = PipelineError("no such thing: take another.")
    assert one_line_message(outer) == "no such thing: take another."


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("shapes differ"), KeyError("x"), OSError("?")]
)
def test_a_bug_is_not_explained_away(error):
    assert one_line_message(error) is None


def test_threads_that_cannot_start_are_memory_that_ran_out():
    line = one_line_message(RuntimeError("can't start new thread"))
    assert line is not None
    assert line.startswith("out of memory: choose fewer weights")
