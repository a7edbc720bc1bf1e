"""What does not fit names the ways that would do, by the bytes that they need, and none that does not."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.compute import preflight, ways_out
from pipeline.compute.ways_out import OTHER_DISK, PRODUCTS, bytes_on_disk, ways_in_memory, ways_on_disk
from pipeline.config.schema import Blocks, Keep, Stage
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import Experiment, MatrixSpec
from pipeline.matrix import Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.problem import Problem
from pipeline.spectrum import SLQ, Auto, Exact, TopK
from pipeline.storage import Plain
from pipeline.strategy import HVP, Func
from pipeline.system.run_folder import RunFolder


def experiment(dtype=torch.float32, batch_size=4, **changes):
    """Two layers of 5,100 and 404 weights, and three batches."""
    model = nn.Sequential(nn.Linear(50, 100), nn.Tanh(), nn.Linear(100, 4))
    batch = Batch(torch.zeros(12, 50), torch.arange(12) % 4)
    whole = Experiment(
        problem=Problem.on(torch.device("cpu"), dtype, model, CrossEntropy(), batch, None, batch_size),
        matrix=MatrixSpec(Hessian(), Func(), storage=Plain(tile=64)),
        spectrum=Exact(),
        checkpoint_steps=(),
        last_step=0,
        num_batches=None,
        seed=0,
        slice_points=27,
        stages=frozenset(Stage),
    )
    return replace(whole, **changes)


def with_matrix(whole, **changes):
    return replace(whole, matrix=replace(whole.matrix, **changes))


def ways(whole, there, tmp_path):
    return ways_on_disk(whole, lambda one: preflight._to_make(RunFolder(tmp_path), one)[1], there)


def test_ways_that_fit_are_named_in_order(tmp_path):
    whole = experiment()
    one = bytes_on_disk(whole)
    assert ways(whole, 3 * one, tmp_path)[:2] == ["keep=mean", "num_batches=1"]
    assert ways(whole, 2 * one, tmp_path)[0] == "num_batches=1"  # keep=mean needs three files at a time
    *_, weights, products, last = ways(whole, one // 2, tmp_path)
    assert (products, last) == (PRODUCTS, OTHER_DISK)
    assert weights.startswith("fewer weights (parameters=[...], about ")
    assert weights.endswith(', such as parameters=["2.*"] with 404)')


def test_layers_alone_where_their_blocks_fit(tmp_path):
    model = nn.Sequential(*[nn.Linear(30, 30) for _ in range(8)], nn.Linear(30, 4))
    batch = Batch(torch.zeros(12, 30), torch.arange(12) % 4)
    problem = Problem.on(torch.device("cpu"), torch.float32, model, CrossEntropy(), batch, None, None)
    whole = replace(experiment(), problem=problem)
    layers = with_matrix(whole, blocks=Blocks.layer)
    assert ways(whole, bytes_on_disk(layers), tmp_path)[0] == "blocks=layer"
    assert "blocks=layer" not in ways(layers, 1000, tmp_path)
    assert "blocks=layer" not in ways(whole, bytes_on_disk(layers) - 1, tmp_path)


def test_checkpoints_can_be_left_out(tmp_path):
    whole = experiment(batch_size=None, checkpoint_steps=(5, 10), last_step=20)
    assert ways(whole, bytes_on_disk(whole), tmp_path)[0] == "no checkpoint_steps"


def test_single_precision_is_named_where_it_is_not_there_already(tmp_path):
    double = experiment(torch.float64)
    there = 4 * bytes_on_disk(double, 4)
    assert "dtype=float32, or storage.precision=float32" in ways(double, there, tmp_path)
    assert not [way for way in ways(double, there // 5, tmp_path) if "float32" in way]
    for single in (experiment(), with_matrix(double, storage=Plain(64, "float32"))):
        assert not [way for way in ways(single, there // 5, tmp_path) if "float32" in way]


def test_what_was_chosen_already_is_not_named(tmp_path):
    whole = with_matrix(experiment(num_batches=1), keep=Keep.mean)
    assert not {"keep=mean", "num_batches=1"} & set(ways(whole, 1000, tmp_path))


def test_the_number_of_weights_that_is_named_fits(tmp_path):
    whole = experiment(batch_size=None)
    there = 200 * 2**20 // 100
    [text, *_] = ways(whole, there, tmp_path)
    fits = int(text.split("about ")[1].split(" at most")[0].replace(",", ""))
    assert fits**2 * 4 / 2 <= there < (fits + 1) ** 2 * 4 / 2 + 1


def test_ways_in_memory():
    whole = experiment()
    num_rows = whole.layout().num_parameters
    needed = Exact().memory(num_rows, 4)
    there = SLQ().memory(num_rows, 4)
    assert ways_in_memory(whole, "spectrum=exact", needed, there)[0] == "spectrum=slq"
    few = ways_in_memory(whole, "spectrum=exact", needed, 1000)
    assert not [way for way in few if way.startswith("spectrum=")]
    rows = replace(whole, spectrum=TopK())
    [weights] = ways_in_memory(rows, "spectrum=topk", 10**9, 10**8)  # its vectors, which products need too
    assert weights.startswith("fewer weights (")
    there = HVP().memory(num_rows, 4)
    assert ways_in_memory(whole, "strategy=func", 2 * there, there)[0] == "strategy=hvp"
    rows = with_matrix(whole, strategy=HVP())
    weights, products = ways_in_memory(rows, "strategy=hvp", 2 * there, there)
    assert weights.startswith("fewer weights (")
    assert products == PRODUCTS
    double = experiment(torch.float64)
    assert "dtype=float32" in ways_in_memory(double, "spectrum=exact", 100, 50)
    assert "dtype=float32" not in ways_in_memory(double, "spectrum=exact", 100, 49)
    assert "dtype=float32" not in ways_in_memory(whole, "spectrum=exact", 100, 50)


def test_one_parameter_cannot_be_fewer():
    model = nn.Linear(50, 4, bias=False)
    batch = Batch(torch.zeros(12, 50), torch.arange(12) % 4)
    problem = Problem.on(torch.device("cpu"), torch.float32, model, CrossEntropy(), batch, None, None)
    assert ways_out._fewer_weights(replace(experiment(), problem=problem), 100) == []


def test_a_run_that_fits_no_disk_is_told_so(tmp_path, monkeypatch):
    whole = experiment(spectrum=Auto())
    there = 2 * bytes_on_disk(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, there))
    with pytest.raises(
        PipelineError, match=r"^4 shards of P = 5,504 .*: choose num_batches=1, fewer weights"
    ):
        preflight.check_resources(RunFolder(tmp_path), whole)
