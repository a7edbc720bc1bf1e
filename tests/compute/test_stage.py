"""Oracle: torch.autograd.functional.hessian of the plain module; shards as HDF5 sees them."""

import gc
import weakref

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compute.stage import compute_step
from pipeline.config.schema import Blocks, Verify
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import MatrixSpec
from pipeline.matrix import GGN, Hessian
from pipeline.objective.batch import Batch
from pipeline.objective.objective import Objective
from pipeline.objective.problem import Problem, split
from pipeline.shards.hdf5 import attributes
from pipeline.shards.shard import open_shard
from pipeline.storage import Plain
from pipeline.strategy import HVP, Func, Triangular
from pipeline.system.run_folder import RunFolder


def numbered(num_samples):
    return Batch(torch.arange(num_samples * 2.0).reshape(num_samples, 2), torch.arange(num_samples))


def members(batches):
    return [batch.targets.tolist() for batch in batches]


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(2)
    return Batch(
        torch.randn(11, 3, dtype=torch.float64, generator=generator),
        torch.randint(2, (11,), generator=generator),
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def compute(folder, model, batches, criterion=None, strategy=None, matrix=None, **options):
    spec = MatrixSpec(matrix or Hessian(), strategy or HVP(), **options)
    problem = Problem(model, criterion or CrossEntropy(), batches[0], None, None)
    return list(compute_step(folder, 5, problem, batches, spec))


def written(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.shard_paths(5)}


def test_batches_part_the_samples_in_an_order_of_the_seed():
    batches = split(numbered(11), 4, None, seed=3)
    assert [batch.num_samples for batch in batches] == [4, 4, 3]
    flat = [each for batch in members(batches) for each in batch]
    assert sorted(flat) == list(range(11))
    assert flat != list(range(11))
    assert members(split(numbered(11), 4, None, seed=3)) == members(batches)
    assert members(split(numbered(11), 4, None, seed=4)) != members(batches)
    for batch in batches:  # inputs went along with their targets
        assert batch.inputs[:, 0].tolist() == [2.0 * n for n in batch.targets.tolist()]


@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_a_batch_is_the_same_however_many_there_are(num_batches):
    everything = members(split(numbered(11), 4, None, seed=3))
    assert members(split(numbered(11), 4, num_batches, seed=3)) == everything[:num_batches]


def test_splitting_leaves_torchs_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    split(numbered(11), 4, None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [None, 11, 100])
def test_all_samples_can_be_one_batch(batch_size):
    [batch] = split(numbered(11), batch_size, None, seed=0)
    assert batch.num_samples == 11


def test_inputs_may_be_nested():
    inputs = {"a": torch.arange(5.0), "b": (torch.arange(5.0, 10.0),)}
    first, second = split(Batch(inputs, torch.arange(5)), 3, None, seed=0)
    assert first.inputs["a"].tolist() == first.targets.tolist()
    assert second.inputs["b"][0].tolist() == [5.0 + n for n in second.targets.tolist()]


def test_more_batches_than_there_are_are_refused():
    with pytest.raises(
        PipelineError, match=r"^num_batches=4: 11 training samples make 3 batches of 4: lower"
    ):
        split(numbered(11), 4, 4, seed=0)


def test_shards_hold_each_batchs_hessian_gradient_and_loss(folder, model, samples):
    batches = split(samples, 4, None, seed=0)
    attrs = compute(folder, model, batches)
    shapes = [(4, 3), (4,), (2, 4), (2,)]

    def loss(flat, batch):
        w1, b1, w2, b2 = (
            part.reshape(shape) for part, shape in zip(flat.split([12, 4, 8, 2]), shapes, strict=True)
        )
        outputs = torch.tanh(batch.inputs @ w1.T + b1) @ w2.T + b2
        return nn.functional.cross_entropy(outputs, batch.targets)

    flat = torch.cat([value.detach().reshape(-1) for value in model.parameters()])
    whole = torch.autograd.functional.hessian(lambda f: loss(f, samples), flat)
    weighted = torch.zeros_like(whole)
    for index, batch in enumerate(batches):
        shard = open_shard(folder.shard(5, index))
        expected = torch.autograd.functional.hessian(lambda f, batch=batch: loss(f, batch), flat)
        np.testing.assert_allclose(shard.dense(), expected, rtol=0, atol=1e-14)
        gradient = torch.autograd.functional.jacobian(lambda f, batch=batch: loss(f, batch), flat)
        np.testing.assert_allclose(shard.gradient, gradient, rtol=0, atol=1e-15)
        assert shard.attrs["loss"] == pytest.approx(float(loss(flat, batch)), rel=1e-14)
        assert shard.attrs["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12)
        assert shard.attrs["num_samples"] == attrs[index]["num_samples"] == batch.num_samples
        weighted += torch.from_numpy(shard.dense()) * batch.num_samples / 11
    np.testing.assert_allclose(weighted, whole, rtol=0, atol=1e-14)  # the ragged batch weighs less


def test_a_shard_says_what_it_is(folder, model, samples):
    [attrs] = compute(folder, model, split(samples, None, None, seed=0))
    with h5py.File(folder.shard(5, 0)) as file:
        found = attributes(file)
        assert [name.decode() for name in file["parameters/names"][:]] == [
            "0.weight",
            "0.bias",
            "2.weight",
            "2.bias",
        ]
        assert file["parameters/offsets"][:].tolist() == [0, 12, 16, 24, 26]
    expected = {"strategy": "hvp", "matrix": "hessian", "reduction": "mean"}
    assert expected.items() <= found.items()
    expected = {"step": 5, "batch_index": 0, "num_samples": 11, "dtype": "float64", "complete": True}
    assert expected.items() <= found.items()
    assert {"format_version", "torch_version", "weights_hash", "loss"} <= found.keys()
    assert attrs["seconds"] > 0
    assert "seconds" not in found  # a shard that is computed again is the same to the byte


def test_whole_shards_are_taken_as_they_are_and_the_rest_is_computed(folder, model, samples):
    batches = split(samples, 4, None, seed=0)
    compute(folder, model, batches[:2])
    before = written(folder)
    attrs = compute(folder, model, batches)
    after = written(folder)
    assert len(before) == 2
    assert before.items() < after.items()
    assert [each["batch_index"] for each in attrs] == [0, 1, 2]


def test_a_shard_of_other_weights_is_refused(folder, model, samples):
    batches = split(samples, 4, None, seed=0)
    compute(folder, model, batches)
    before = written(folder)
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    with pytest.raises(
        PipelineError, match=r"batch-00000\.h5 has weights_hash='.{16}', this run has '.{16}': one"
    ):
        compute(folder, model, batches)
    assert written(folder) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": {"seed": 1}}, "config_hash='.{16}', this run has '.{16}'"),
        ({"matrix": GGN()}, "matrix='hessian', this run has 'ggn'"),
        ({"strategy": Func()}, "strategy='hvp', this run has 'func'"),
    ],
)
def test_a_shard_of_another_config_is_refused(folder, model, samples, change, told):
    batches = split(samples, 4, None, seed=0)
    compute(folder, model, batches)
    before = written(folder)
    with pytest.raises(PipelineError, match=rf"has {told}: one folder holds one config"):
        compute(folder, model, batches, **change)
    assert written(folder) == before


def test_a_shard_of_other_batch_sizes_is_refused(folder, model, samples):
    compute(folder, model, split(samples, 4, None, seed=0))
    with pytest.raises(PipelineError, match="has num_samples=4, this run has 5"):
        compute(folder, model, split(samples, 5, None, seed=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(folder, model, samples, value):
    def criterion(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * value

    with pytest.raises(
        PipelineError, match=rf"^the loss of batch 0 at step 5 is {value}: look at the weights"
    ):
        compute(folder, model, split(samples, 4, None, seed=0), criterion)
    assert not list(folder.path.rglob("*.h5*"))


def test_a_matrix_that_holds_nan_is_refused_though_its_loss_is_finite(folder, model, samples):
    def criterion(outputs, targets):  # |x|^1.5 has no second derivative at zero
        return ((outputs - outputs.detach()).abs() + 1e-300).pow(0.5).sum()

    with pytest.raises(PipelineError, match=r"batch 0 at step \d+: the matrix has NaN or infinite entries"):
        compute(folder, model, split(samples, 4, None, seed=0), criterion)
    assert not list(folder.path.rglob("*.h5*"))


@pytest.mark.parametrize("strategy", [HVP(), Triangular()])
def test_only_the_weights_asked_for_are_rows(folder, model, samples, strategy):
    compute(folder, model, split(samples, 4, 1, seed=0), parameters=["2.*"], strategy=strategy)
    shard = open_shard(folder.shard(5, 0))
    assert shard.parameters.names == ("2.weight", "2.bias")
    assert shard.num_rows == 10


@pytest.mark.parametrize("blocks", list(Blocks))
def test_a_shard_that_was_cut_short_is_taken_up_inside(folder, model, samples, blocks, monkeypatch, caplog):
    """Rows that are there are not computed again, and the shard and its certificate have the same bits."""
    batches, rows = split(samples, None, None, seed=0), []

    class Interrupted(Triangular):
        def blocks(self, *arguments):
            for block in super().blocks(*arguments):
                if len(rows) == self.stop:
                    raise KeyboardInterrupt
                rows.append(block.rows)
                yield block

    def run(where, stop):
        Interrupted.stop = stop
        return compute(where, model, batches, strategy=Interrupted(), blocks=blocks, storage=Plain(tile=4))

    monkeypatch.setattr("pipeline.strategy.triangular.ROWS_PER_BLOCK", 3)
    [whole] = run(RunFolder(folder.path / "whole"), -1)
    num_blocks = len(rows)
    rows.clear()
    with pytest.raises(KeyboardInterrupt):
        run(folder, num_blocks // 2)
    caplog.set_level("INFO")
    rows.clear()
    [attrs] = run(folder, -1)
    assert 0 < len(rows) < num_blocks
    assert "tiles are there already" in caplog.text
    assert {**attrs, "seconds": 0} == {**whole, "seconds": 0}
    with h5py.File(folder.shard(5, 0)) as one, h5py.File(RunFolder(folder.path / "whole").shard(5, 0)) as two:
        assert attributes(one) == attributes(two)
        for name in ("matrix", "checksums", "gradient"):
            np.testing.assert_array_equal(one[name][:], two[name][:])


def test_no_gradient_stays_in_memory_when_its_shard_is_written(folder, model, samples, monkeypatch):
    """They are P numbers a batch: with many batches more than all else."""
    made, real = [], Objective.gradient

    def gradient(*args):
        found = real(*args)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Objective, "gradient", gradient)
    spec = MatrixSpec(Hessian(), HVP(), verify=Verify.off)
    problem, alive = Problem(model, CrossEntropy(), samples, None, 2), []
    for _ in compute_step(folder, 5, problem, problem.batches(None, 0), spec):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
    assert len(made) == 6
    assert max(alive) <= 1
