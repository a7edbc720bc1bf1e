"""Numbers that are no numbers: a batch whose matrix has them is named, the batches before it are kept."""

import numpy as np
import pytest
from support.command import SMALL, fail
from support.outcome import complete

from pipeline.data import Arrays
from pipeline.objective.batch import Batch
from pipeline.objective.problem import split

HIS_LOSS = '''
"""A mean loss whose second derivative, and nothing else, is not finite for samples with the label 3."""
import torch


class HisLoss:
    reduction = "mean"

    def __call__(self, outputs, targets):
        marked = (targets == 3)[:, None]
        away = torch.where(marked, outputs - outputs.detach(), 1.0)
        rough = away.abs().pow(1.5).sum(1)  # 0 if marked, its slope is 0, its curvature is infinite
        usual = torch.nn.functional.cross_entropy(outputs, targets.clamp(max=2), reduction="none")
        return torch.where(marked[:, 0], rough, usual).mean()
'''
FREE = [option for option in SMALL if not option.startswith(("data", "training"))]
OPTIONS = [
    *FREE,
    "data=arrays",
    "data.test_fraction=0",
    "data.batch_size=8",
    "training=none",
    "stages=[train,compute]",
]


@pytest.fixture
def arrays(tmp_path):
    """40 samples, 5 batches of 8, and where each sample of the third batch lies."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    labels[:4] = [0, 1, 2, 3]
    inputs[:, 0] = np.arange(40)  # by which a sample is known again
    path = tmp_path / "samples.npz"
    np.savez(path, x=inputs, y=labels)
    training = Arrays(path=str(path), test_fraction=0, batch_size=8).load().train
    third = split(Batch(*training), 8, None, seed=0)[2]
    return path, inputs, labels, [int(number) for number in third.inputs[:, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused_before_anything_is_computed(arrays, tmp_path, value):
    path, inputs, labels, third = arrays
    inputs[third[5], 2] = value
    np.savez(path, x=inputs, y=labels)
    line = fail(tmp_path / "run", *OPTIONS, f"data.path={path}")
    assert "train inputs are NaN or infinite in 1 of 40 samples, the first one number " in line
    assert not list((tmp_path / "run").rglob("*.h5"))


@pytest.mark.parametrize("cluster", [["cluster=threads"], ["cluster=local", "cluster.num_workers=2"]])
def test_a_matrix_that_is_not_finite_stops_at_its_batch(arrays, tmp_path, cluster):
    """In a worker too: it is told here, in the same line."""
    path, inputs, labels, third = arrays
    swap = labels.tolist().index(3)
    labels[swap] = 0
    labels[third[5]] = 3
    np.savez(path, x=inputs, y=labels)
    (tmp_path / "his_loss.py").write_text(HIS_LOSS)
    overrides = [
        *OPTIONS,
        f"data.path={path}",
        "criterion._target_=his_loss.HisLoss",
        *cluster,
    ]
    folder = tmp_path / "run"
    line = fail(folder, *overrides, paths=[tmp_path])
    assert line.startswith("batch 2 at step 0: the matrix has NaN or infinite entries (near row ")
    assert "look at the loss and the weights of this checkpoint" in line
    shards = {path.name for path in folder.glob("shards/step-000000/*")}
    assert "batch-00002.h5" not in shards
    if len(cluster) == 1:
        assert shards == {"batch-00000.h5", "batch-00001.h5"}
    there = complete(folder)
    assert fail(folder, *overrides, paths=[tmp_path]) == line
    assert there.items() <= complete(folder).items()  # workers may have come further
