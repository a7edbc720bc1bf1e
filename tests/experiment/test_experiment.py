"""A config becomes an experiment in one place: the same in a run and in its workers, with the hash that it had."""

import ast
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from torch.utils._python_dispatch import TorchDispatchMode

import pipeline.run  # registers the schema
from pipeline.config.schema import Blocks, Keep, Stage, Verify, config_hash
from pipeline.config.suggestions import CONF
from pipeline.experiment.experiment import MatrixSpec
from pipeline.experiment.instantiate import as_config, build_experiment
from pipeline.layout import Layout
from pipeline.matrix import GGN, Hessian
from pipeline.objective.objective import objective_of
from pipeline.spectrum import TopK
from pipeline.storage import Plain
from pipeline.strategy import HVP, Func

PACKAGE = Path(pipeline.__file__).parent
READERS = (
    "config/schema.py",
    "config/saved_config.py",
    "config/given.py",
    "experiment/instantiate.py",
)  # of a config's keys and classes
DIGITS = (
    "seed=3",
    "training.num_steps=20",
    "num_batches=3",
    "data.batch_size=64",
    "device=cpu",
    "tracking=none",
)
HASHES = {  # as folders of earlier versions hold them
    "89f0e2afa5e282d2": ("strategy=func", "model.hidden_sizes=[16]", "checkpoint_steps=[0,10]"),
    "cac710c66fb87869": (
        "matrix=ggn",
        "dtype=float64",
        "model.hidden_sizes=[8]",
        "keep=mean",
        "spectrum=slq",
    ),
    "a988e63239e6e982": (
        "strategy=triangular",
        "model.hidden_sizes=[8]",
        "blocks=layer",
        "checkpoint_steps=log",
    ),
    "cda1e16de4991741": ("matrix=fisher", "model.hidden_sizes=[8]", "cluster=local", "cluster.num_workers=2"),
}


class Idle(TorchDispatchMode):
    """Within it no tensor is made or copied."""

    def __torch_dispatch__(self, function, *args):
        raise AssertionError(function)


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def built(*overrides):
    return build_experiment(composed(*DIGITS, *overrides))


@pytest.mark.parametrize(("expected", "overrides"), HASHES.items())
def test_a_config_has_the_hash_that_it_had(expected, overrides):
    assert built(*overrides).matrix.hash() == expected


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("pipeline.criterion.CrossEntropy", {"classes_last": (False, True)}),
        ("pipeline.data.Arrays", {"channels_last": (False, True), "map_labels": (False, True)}),
        ("pipeline.training.Pretrained", {"prefix": (None, "net")}),
        ("his.Class", {"scale": (None, False), "classes_last": (None, False)}),
    ],
)
def test_options_of_later_versions_change_the_hash_only_where_they_are_used(target, options):
    group = "criterion" if "Entropy" in target else "training" if "training" in target else "data"
    before = config_hash({group: {"_target_": target}})
    for key, (unused, used) in options.items():
        hashes = [config_hash({group: {"_target_": target, key: value}}) for value in (unused, used)]
        assert hashes[1] != hashes[0]
        assert (hashes[0] == before) == target.startswith("pipeline.")
        assert hashes[1] != before


def test_settings_have_the_hash_that_they_had():
    settings = {
        "seed": 0,
        "dtype": "float64",
        "stages": ["train", "compute"],
        "parameters": ["hidden.*"],
        "blocks": "layer",
        "model": {"_target_": "pipeline.model.MLP", "hidden_sizes": [32]},
        "data": {"_target_": "pipeline.data.Blobs", "batch_size": 256},
        "criterion": {"reduction": "mean"},
        "training": {"num_steps": 1000},
        "matrix": {"_target_": "pipeline.matrix.Hessian"},
        "strategy": {"_target_": "pipeline.strategy.Auto", "few_weights": 3},
        "storage": {"_target_": "pipeline.storage.Plain", "tile": 256, "precision": "float32"},
    }
    assert config_hash(settings) == "51e6250f87680c86"
    assert MatrixSpec(Hessian(), HVP(), settings=settings).hash() == "51e6250f87680c86"


def test_everything_that_was_chosen_is_there():
    found = built(
        "matrix=ggn",
        "strategy=func",
        "strategy.chunk_size=5",
        "blocks=layer",
        "keep=mean",
        "verify=warn",
        "storage.tile=64",
        "parameters=[fc1.*]",
        "spectrum=topk",
        "checkpoint_steps=log",
        "slice_points=null",
        "stages=[compute,aggregate]",
    )
    assert found.matrix == MatrixSpec(
        GGN(), Func(5), ["fc1.*"], Verify.warn, Blocks.layer, Plain(64), Keep.mean, found.matrix.settings
    )
    assert found.spectrum == TopK()
    assert (found.checkpoint_steps, found.last_step) == ([0, 1, 2, 5, 10, 20], 20)
    assert (found.num_batches, found.seed, found.slice_points) == (3, 3, None)
    assert found.stages == {Stage.compute, Stage.aggregate}
    assert [batch.num_samples for batch in found.batches()] == [64, 64, 64]


def test_a_worker_builds_the_same_experiment():
    run = built("model.hidden_sizes=[8]")
    worker = build_experiment(as_config(yaml.safe_load(yaml.safe_dump(dict(run.recipe)))), worker=0)
    assert worker.matrix == run.matrix
    assert worker.recipe == run.recipe
    assert worker.problem.hashes == run.problem.hashes
    for one, other in zip(worker.problem.model.parameters(), run.problem.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(worker.batches(), run.batches(), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("parameters", [None, ["fc2.*"]])
def test_the_layout_is_that_of_the_objective_and_computes_nothing(parameters):
    problem = built("model.hidden_sizes=[8]").problem
    expected = Layout.of(objective_of(problem.model, problem.criterion, parameters)[1])
    with Idle():
        assert problem.layout(parameters) == expected


def test_one_place_reads_settings_and_targets():
    """Elsewhere an experiment has attributes; a class may be compared with a name, and is never taken apart."""
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in READERS
        for line in readings(ast.parse(path.read_text()))
    }
    assert found == set()


def readings(module):
    """Lines that look a key up in `settings`, or use `_target_` otherwise than to compare it with a name."""
    compared = {
        id(side)
        for node in ast.walk(module)
        if isinstance(node, ast.Compare) and all(isinstance(operator, ast.Eq) for operator in node.ops)
        for side in (node.left, *node.comparators)
    }
    for node in ast.walk(module):
        match node:
            case ast.Subscript(value=ast.Name("settings") | ast.Attribute(attr="settings")):
                yield node.lineno
            case ast.Attribute(value=ast.Name("settings") | ast.Attribute(attr="settings"), attr="get"):
                yield node.lineno
            case ast.Constant("_target_"):
                yield node.lineno
            case ast.Attribute(attr="_target_") if id(node) not in compared:
                yield node.lineno
