"""The command line before Hydra reads it: flags anywhere, help from the files of conf/, commands in messages."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import pipeline
from pipeline.config import command_line, help
from pipeline.config.suggestions import CONF, OTHER_NAMES, group_names, top_names
from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder

OPTIONS = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name != "experiment"]
GROUPS = sorted(group_names())


@pytest.mark.parametrize(
    ("given", "arranged"),
    [
        (["seed=0,1", "-m", "model=cnn"], ["-m", "seed=0,1", "model=cnn"]),
        (["seed=0,1", "model=cnn", "--multirun"], ["--multirun", "seed=0,1", "model=cnn"]),
        (
            ["a=1", "--config-dir", "b=c", "d=2", "-cn", "e=f"],
            ["--config-dir", "b=c", "-cn", "e=f", "a=1", "d=2"],
        ),
        (["a=1", "--config-dir=b", "~c", "--cfg", "job"], ["--config-dir=b", "--cfg", "job", "a=1", "~c"]),
        (["+a=1", "++b=-2", "c=-m", "-m"], ["-m", "+a=1", "++b=-2", "c=-m"]),
        (["-sc", "install=bash"], ["-sc", "install=bash"]),
    ],
)
def test_flags_may_stand_anywhere(given, arranged):
    assert command_line.arranged(given) == arranged


@pytest.mark.parametrize("argument", ["--model=mlp", "--training.learning-rate=0.1", "--seed=1"])
def test_an_option_with_dashes_is_told_as_it_is_written(argument):
    bare = argument.removeprefix("--").replace("-", "_")
    with pytest.raises(PipelineError, match=rf"{argument}: options are written without dashes: {bare}\."):
        command_line.arranged([argument])


@pytest.mark.parametrize(
    "value", ["outputs/x", "a b", "50%", "a?b", "(a)", "a,b", "a=b", "it's", "{x}", "a#b", "a'\\b", "[", "ä"]
)
def test_a_folder_that_a_message_names_is_read_as_it_is(value):
    [parsed] = OverridesParser.create().parse_overrides([f"hydra.run.dir={command_line.quoted(value)}"])
    assert parsed.value() == value or str(parsed.value()) == value


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "outputs" / "a b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/bin/curvature", "model=cnn", "hydra.run.dir=old", "parameters=fc1.*"])
    assert command_line.interruption(folder) == " before the run began."
    folder.path.mkdir(parents=True)
    folder.config.write_text("seed: 0\n")
    line = command_line.interruption(folder)
    assert line.endswith("; to go on: curvature model=cnn 'parameters=fc1.*' 'hydra.run.dir=outputs/a b'")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.chdir("/")
    assert command_line.interruption(folder).endswith(
        f": python -m pipeline.run 'hydra.run.dir={folder.path.relative_to('/')}'"
    )


def test_help_shows_every_option_and_every_key_of_the_defaults():
    page = help.page_of([], "curvature")
    for path in OPTIONS:
        assert f"{path.parent.name}={path.stem} " in page
    config = yaml.safe_load((CONF / "config.yaml").read_text())
    for key in config.keys() - {"defaults", "hydra"}:
        assert re.search(rf"^  {key}=", page, re.MULTILINE), key
    chosen = {group: choice for each in config["defaults"][2:] for group, choice in each.items() if choice}
    for group, choice in chosen.items():
        for key in (
            yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) if (CONF / group).is_dir() else []
        ):
            assert key == "_target_" or f"\n  {group}.{key}=" in page


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_shows_the_keys_of_each_option_with_their_comments(group):
    words = " ".join(help.page_of([group], "curvature").split())
    for path in sorted((CONF / group).glob("*.yaml")):
        assert f"{group}={path.stem} " in words
        for line in path.read_text().splitlines():
            if group != "experiment" and "  # " in line:
                assert " ".join(line.partition("  # ")[2].split()) in words


@pytest.mark.parametrize(
    "path", [CONF / "config.yaml", *OPTIONS], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_key_has_a_comment(path):
    text = path.read_text()
    keys = {key.name: key for key in help.keys_of(text)}
    assert keys.keys() - {"_target_"} == {
        key for key in yaml.safe_load(text) if key not in ("_target_", "defaults", "hydra")
    }
    assert [name for name, key in keys.items() if not key.comment] == []


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_value_that_help_shows_is_that_of_the_file(path):
    content = yaml.safe_load(path.read_text())
    for key in help.keys_of(path.read_text()):
        assert yaml.safe_load(key.value) == content[key.name]


def test_help_of_an_experiment_is_a_command_that_composes_to_it():
    page = help.page_of(["experiment=evolution"], "curvature")
    assert page.split("stands for")[1].split() == ["strategy=hvp", "checkpoint_steps=log", "num_batches=2"]


def test_help_of_an_option_of_a_key_and_of_ones_own_files(tmp_path):
    assert "model.kernel_size=3" in help.page_of(["model=cnn"], "curvature")
    assert "model.hidden_sizes" not in help.page_of(["model=cnn"], "curvature")
    assert help.page_of(["training.momentum"], "").splitlines()[0] == "training=sgd"
    assert help.page_of(["seed"], "").startswith("  seed=0 ")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# My net.\n_target_: mine.Net\nwidth: 3  # of a layer\n")
    page = command_line.answer(["--help", "--config-dir", str(tmp_path), "model"])
    assert re.search(r"^model=mine +My net\.\n  model\.width=3 +of a layer$", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "like"),
    [
        ("trainng", "training"),
        ("training.lr", "training.learning_rate"),
        ("sed", "seed"),
        ("model=mpl", "mlp"),
    ],
)
def test_help_of_what_does_not_exist(word, like):
    with pytest.raises(PipelineError, match=rf"^{word}: there is no .*, did you mean {like}\?"):
        help.page_of([word], "curvature")


def test_what_other_programs_call_an_option_leads_to_one_that_exists():
    for name, ours in OTHER_NAMES.items():
        assert name not in top_names()
        for option in re.split(r", or | ", ours):
            key, _, _ = option.partition("=")
            group, _, leaf = key.partition(".")
            files = [yaml.safe_load(path.read_text()) for path in CONF.glob(f"{group}/*.yaml")]
            assert key == "hydra.run.dir" or key in top_names() or any(leaf in file for file in files), (
                name,
                ours,
            )


def test_the_version_is_told():
    assert command_line.answer(["--version"]) == f"curvature-pipeline {pipeline.__version__}"
    assert command_line.answer(["seed=1", "-m"]) is None


def test_the_command_is_written_as_it_was_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(Path("/somewhere/bin/curvature")), "data.path=a b"])
    assert command_line.command() == "curvature 'data.path=a b'"
