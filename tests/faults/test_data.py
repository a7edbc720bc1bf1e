"""Numbers that are no numbers: a batch whose matrix has them is named, the batches before it are kept."""

import numpy as np
import pytest
import torch
from command import SMALL, fail, run, succeed
from outcome import complete

HIS_LOSS = '''
"""A mean loss whose second derivative, and nothing else, is not finite for samples with the label 3."""
import torch


class HisLoss:
    reduction = "mean"

    def __call__(self, outputs, targets):
        rough = (outputs - outputs.detach()).abs().pow(1.5).sum(1)  # 0, its slope is 0, its curvature is infinite
        usual = torch.nn.functional.cross_entropy(outputs, targets.clamp(max=2), reduction="none")
        return torch.where(targets == 3, rough, usual).mean()
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
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    return tmp_path / "samples.npz", inputs, labels, order[16:24].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused_before_anything_is_computed(arrays, tmp_path, value):
    path, inputs, labels, third = arrays
    inputs[third[5], 2] = value
    np.savez(path, x=inputs, y=labels)
    line = fail(tmp_path / "run", *OPTIONS, f"data.path={path}")
    assert f"sample {third[5]}" in line or f"row {third[5]}" in line
    assert not list((tmp_path / "run").rglob("*.h5"))


def test_a_matrix_that_is_not_finite_stops_at_its_batch(arrays, tmp_path):
    path, inputs, labels, third = arrays
    swap = labels.tolist().index(3)
    labels[swap] = 0
    labels[third[5]] = 3
    np.savez(path, x=inputs, y=labels)
    (tmp_path / "his_loss.py").write_text(HIS_LOSS)
    overrides = [*OPTIONS, f"data.path={path}", "criterion._target_=his_loss.HisLoss"]
    folder = tmp_path / "run"
    line = fail(folder, *overrides, paths=[tmp_path])
    assert "batch 2" in line
    assert "step 0" in line
    assert "NaN or infinite" in line
    shards = sorted(path.name for path in folder.glob("shards/step-000000/*"))
    assert shards == ["batch-00000.h5", "batch-00001.h5"]
    there = complete(folder)
    assert fail(folder, *overrides, paths=[tmp_path]) == line
    assert complete(folder) == there
    labels[third[5]] = 0
    np.savez(path, x=inputs, y=labels)
    done = run(folder, *overrides, paths=[tmp_path])
    assert done.returncode in (0, 1)
    succeed(tmp_path / "other", *overrides, paths=[tmp_path])
