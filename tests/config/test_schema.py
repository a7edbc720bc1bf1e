import sys

import pytest
import yaml

from pipeline.config.saved_config import SavedConfig
from pipeline.config.schema import (
    HASHED,
    check_settings,
    checkpoint_steps,
    config_hash,
    differences,
    figure_formats,
    flatten,
    merge_with_saved,
    run_name,
    save_settings,
    settings_of,
)
from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder

SETTINGS = {
    "seed": 0,
    "dtype": "float32",
    "stages": ["train", "compute"],
    "num_batches": None,
    "checkpoint_steps": [],
    "slice_points": 27,
    "figure_formats": ["png"],
    "parameters": None,
    "model": {"_target_": "pipeline.model.MLP", "hidden_sizes": [32]},
    "data": {"_target_": "pipeline.data.Blobs", "batch_size": 256},
    "criterion": {"reduction": "mean"},
    "training": {"num_steps": 1000},
    "matrix": {"_target_": "pipeline.matrix.Hessian"},
    "strategy": {"_target_": "pipeline.strategy.HVP"},
    "device": {"_target_": "pipeline.device.Cpu"},
    "spectrum": {"num_top": 10},
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def changed(**changes):
    return {**SETTINGS, **changes}


def test_good_settings_pass():
    check_settings(SETTINGS)
    check_settings(changed(num_batches=3, checkpoint_steps=[0, 50]))
    check_settings(changed(checkpoint_steps="log"))


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(0, [0]), (1, [0, 1]), (7, [0, 1, 2, 5]), (1000, [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])],
)
def test_log_stands_for_steps_that_crowd_at_the_start(num_steps, expected, folder):
    settings = changed(checkpoint_steps="log", training={"num_steps": num_steps})
    assert checkpoint_steps(settings) == expected
    assert merge_with_saved(folder, settings)["checkpoint_steps"] == expected


def test_a_training_without_steps_has_step_zero_alone():
    assert checkpoint_steps(changed(checkpoint_steps="log", training={"path": "weights.safetensors"})) == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"^seed=-1: give a whole number of at least 0\.$"),
        (
            {"num_batches": 0},
            r"^num_batches=0: give a whole number of at least 1, or null \(all of them\)\.$",
        ),
        ({"checkpoint_steps": [-5]}, r"^checkpoint_steps=\[-5\]: give a list of whole numbers of at least 0"),
        (
            {"checkpoint_steps": "logs"},
            r"^checkpoint_steps='logs': give a list of whole numbers of at least 0, such as \[32\], or log\.$",
        ),
        ({"checkpoint_steps": [1.5]}, r"^checkpoint_steps=\[1\.5\]: give a list"),
        ({"checkpoint_steps": None}, r"^checkpoint_steps=None: give a list"),
        (
            {"stages": []},
            r"^stages=\[\]: choose one of train, compute, aggregate, slices, law, report, or a list of them\.$",
        ),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(PipelineError, match=message):
        check_settings(changed(**changes))


@pytest.mark.parametrize("key", HASHED)
def test_the_hash_changes_with_what_a_shard_depends_on(key):
    assert config_hash(changed(**{key: "something else"})) != config_hash(SETTINGS)


@pytest.mark.parametrize(
    "key", ["stages", "num_batches", "checkpoint_steps", "device", "spectrum", "tracking"]
)
def test_the_hash_stays_with_what_a_shard_does_not_depend_on(key):
    assert config_hash(changed(**{key: "something else"})) == config_hash(SETTINGS)


def test_the_hash_does_not_depend_on_the_order_of_keys():
    assert config_hash(dict(reversed(SETTINGS.items()))) == config_hash(SETTINGS)
    assert len(config_hash(SETTINGS)) == 16


def test_settings_that_compute_are_written_with_the_first_command(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "seed=0", "parameters=['a b']"])
    settled = merge_with_saved(folder, dict(SETTINGS))
    assert not folder.config.exists()
    save_settings(folder, settled)
    assert settled["command"] == "python -m pipeline.run seed=0 'parameters=['\"'\"'a b'\"'\"']'"
    assert settled["config_hash"] == config_hash(SETTINGS)
    assert yaml.safe_load(folder.config.read_text()) == settled
    monkeypatch.setattr(sys, "argv", ["run.py", "device=cpu"])
    again = merge_with_saved(folder, changed(num_batches=2))
    assert again["command"] == settled["command"]
    assert again["num_batches"] == 2


def test_settings_of_another_config_are_refused_and_the_file_stays(folder):
    save_settings(folder, merge_with_saved(folder, dict(SETTINGS)))
    before = folder.config.read_bytes()
    model = {"_target_": "pipeline.model.MLP", "hidden_sizes": [64], "bias": False}
    with pytest.raises(PipelineError) as caught:
        merge_with_saved(folder, changed(seed=1, model=model))
    assert str(caught.value) == (
        f"{folder.path} holds another config (model.bias is False, was absent; model.hidden_sizes is [64], was [32]; "
        "seed is 1, was 0): one folder holds one config; choose another with hydra.run.dir=FOLDER."
    )
    assert folder.config.read_bytes() == before


def test_the_settings_of_a_folder_are_those_that_were_kept(folder):
    assert settings_of(folder) == {}
    save_settings(folder, merge_with_saved(folder, dict(SETTINGS)))
    assert settings_of(folder) == merge_with_saved(folder, dict(SETTINGS))


def test_settings_of_speed_alone_are_not_hashed():
    quick = {"_target_": "pipeline.strategy.HVP", "chunk_size": 8}
    slow = {"_target_": "pipeline.strategy.HVP", "chunk_size": 2}
    assert config_hash(changed(strategy=quick)) == config_hash(changed(strategy=slow))
    assert config_hash(changed(strategy={"_target_": "pipeline.strategy.Func"})) != config_hash(
        changed(strategy=slow)
    )


def test_differences_are_those_of_hashed_settings_alone():
    assert differences(changed(seed=4, num_batches=3), SETTINGS) == ["seed is 4, was 0"]
    assert differences(SETTINGS, SETTINGS) == []


def test_a_run_is_named_by_its_choices_and_what_was_asked_for():
    choices = {"model": "mlp", "data": "digits", "matrix": "hessian", "strategy": "hvp", "tracking": "mlflow"}
    overrides = [
        "strategy=hvp",
        "seed=3",
        "+model.width=4",
        "tracking.root=x",
        "hydra.run.dir=y",
        "num_batches=2",
    ]
    assert run_name(choices, overrides, {"seed": 3}) == "mlp digits hessian hvp seed=3 width=4 num_batches=2"


def test_nested_settings_become_dotted_ones():
    nested = {"model": {"bias": True, "inner": {"sizes": [1, 2]}}, "seed": 0, "empty": {}}
    assert flatten(nested) == {"model.bias": True, "model.inner.sizes": [1, 2], "seed": 0, "empty": {}}


def test_each_environment_that_differs_is_kept_once_and_is_no_setting(folder):
    one, other = {"commit": "a", "threads": "1"}, {"commit": "b", "threads": "1"}
    for environment in (one, one, other, one):
        settled = merge_with_saved(folder, dict(SETTINGS), environment=environment)
        save_settings(folder, settled)
    saved = SavedConfig.of(folder)
    assert saved.environments == [one, other]
    assert "commit" not in saved.yaml
    assert settled["config_hash"] == config_hash(SETTINGS)
    save_settings(folder, merge_with_saved(folder, dict(SETTINGS)))  # by an earlier version of the caller
    assert SavedConfig.of(folder).environments == [one, other]


@pytest.mark.parametrize(
    ("value", "formats"), [("pdf", ("pdf",)), (["png", "svg", "png"], ("png", "svg")), ([], ())]
)
def test_formats_of_figures_are_a_word_or_a_list(value, formats):
    assert figure_formats(value) == formats


@pytest.mark.parametrize("value", ["jpg", None, ["png", "eps"], [3]])
def test_other_formats_of_figures_are_refused(value):
    with pytest.raises(
        PipelineError, match=r"figure_formats=.*: give any of png, pdf, svg, such as \[png,pdf\]"
    ):
        check_settings({**SETTINGS, "figure_formats": value})
