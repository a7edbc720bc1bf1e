"""Samples of other libraries' own classes, where they are installed."""

import numpy as np
import pytest
import torch

from pipeline.data import Own
from pipeline.errors import PipelineError

IDS = np.random.default_rng(0).integers(0, 9, (20, 6))
KINDS = np.arange(20) % 3
ORDER = np.random.default_rng(0).permutation(20)


@pytest.fixture
def table():
    """Of Hugging Face's library, with a feature that knows its classes."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    columns = {
        "input_ids": IDS.tolist(),
        "attention_mask": np.ones_like(IDS).tolist(),
        "label": KINDS.tolist(),
    }
    columns["text"] = ["a b"] * 20
    return datasets.Dataset.from_dict(columns).cast_column("label", datasets.ClassLabel(names=list("abcde")))


@pytest.mark.filterwarnings("ignore")
def test_a_table_of_hugging_face(table):
    own = Own(inputs=["input_ids", "attention_mask"], test_fraction=0)
    samples = own.of(table)
    np.testing.assert_array_equal(samples.train.inputs["input_ids"], IDS[ORDER])
    np.testing.assert_array_equal(samples.train.targets, KINDS[ORDER])
    assert samples.num_outputs == 5
    assert torch.equal(
        own.of(table.with_format("torch")).train.inputs["input_ids"], samples.train.inputs["input_ids"]
    )
    doubled = table.with_transform(
        lambda rows: {"x": [2.0 * each[0] for each in rows["input_ids"]], "y": rows["label"]}
    )
    np.testing.assert_array_equal(Own(test_fraction=0).of(doubled).train.inputs[:, 0], 2.0 * IDS[ORDER, 0])
    streamed = Own(inputs="input_ids", num_samples=6, test_fraction=0).of(table.to_iterable_dataset())
    assert {tuple(row) for row in streamed.train.inputs.tolist()} == {tuple(row) for row in IDS[:6].tolist()}
    with pytest.raises(PipelineError, match=r"inputs 'text' hold texts|inputs hold texts"):
        Own().of(table)
    with pytest.raises(
        PipelineError, match=r"data.inputs=input_id: Dataset has no column .* did you mean input_ids\?"
    ):
        Own(inputs="input_id").of(table)


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_table_of_hugging_face(table):
    samples = Own(inputs="input_ids").of(table.train_test_split(0.25, shuffle=False))
    np.testing.assert_array_equal(samples.test.inputs, IDS[15:])
    assert samples.train.num_samples == 15


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_torchvision():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    fake = torchvision.datasets.FakeData(12, (3, 8, 6), 4)
    samples = Own(test_fraction=0, channels_last=True, scale=True, split_seed=3).of(fake)
    assert samples.input_shape == (3, 8, 6)
    as_tensors = torchvision.datasets.FakeData(12, (3, 8, 6), 4, torchvision.transforms.ToTensor())
    same = Own(test_fraction=0, split_seed=3).of(as_tensors)
    torch.testing.assert_close(samples.train.inputs, same.train.inputs)
    assert torch.equal(samples.train.targets, same.train.targets)
    loader = torch.utils.data.DataLoader(as_tensors, batch_size=5, shuffle=True)
    assert torch.equal(Own(test_fraction=0, split_seed=3).of(loader).train.inputs, same.train.inputs)
