"""Samples of a person's own class, from the command line to a matrix, also in workers; mistakes in a line."""

import numpy as np
import pytest
from support.command import SMALL, fail, succeed

import pipeline

MODULE = """
import numpy as np
from torch.utils.data import Dataset

X = np.random.default_rng(0).normal(size=(24, 4))
Y = np.arange(24) % 3


class Rows(Dataset):
    def __init__(self, shift=0):
        self.shift = shift

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "kind": int(Y[i]) + self.shift}


class Unreadable(Rows):
    def __getitem__(self, i):
        raise OSError(f"cannot open image {i}")


def rows(**options):
    return Rows(**options)
"""
OWN = [option for option in SMALL if not option.startswith(("data", "training."))]
OWN += ["training.num_steps=5", "stages=[train,compute]"]


@pytest.fixture
def his(tmp_path):
    (tmp_path / "his.py").write_text(MODULE)
    return tmp_path


def matrix(folder):
    return pipeline.open_shard(next(folder.rglob("batch-00000.h5"))).dense()


def test_a_dataset_gives_the_matrix_of_its_arrays_in_workers_too(his):
    rng = np.random.default_rng(0)
    np.savez(his / "mine.npz", x=rng.normal(size=(24, 4)), kind=np.arange(24) % 3)
    options = ["data._target_=his.rows", "+data.shift=5", "+data.targets=kind", "+data.map_labels=true"]
    lines = succeed(
        his / "own", *OWN, *options, "cluster=local", "cluster.num_workers=1", cwd=his, paths=[his]
    )
    assert "data.map_labels=true: the classes 5, 6, 7 become 0 to 2." in lines
    assert any(line.startswith("data: 19 training and 5 test samples; inputs float64 (4,)") for line in lines)
    succeed(his / "arrays", *OWN, "data=arrays", "data.path=mine.npz", "data.targets=kind", cwd=his)
    np.testing.assert_array_equal(matrix(his / "own"), matrix(his / "arrays"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=own"], "data._target_ has no value: give the class with data._target_=package.Class."),
        (["data._target_=his.Unreadable"], "data: Unreadable["),
        (
            ["data._target_=his.Rows", "+data.input=x"],
            "data.input: his.Rows takes no such option, did you mean inputs?",
        ),
        (
            ["data._target_=his.Rows", "+data.targets=kind", "+data.shift=-1"],
            "data: labels run from -1 to 1: ",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(his, options, message):
    line = fail(his / "run", *OWN, *options, cwd=his, paths=[his])
    assert line.startswith(message)
