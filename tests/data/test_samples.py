from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data import Digits, Samples, as_samples
from pipeline.errors import PipelineError
from pipeline.objective.batch import Batch

X, Y = torch.rand(6, 2, 3), torch.tensor([0, 1, 2, 0, 1, 2])


def loaded(inputs=X, targets=Y, **rest):
    return SimpleNamespace(train=(inputs, targets), **rest)


def test_pairs_of_tensors_become_samples():
    samples = as_samples(loaded(test=(X[:2], torch.tensor([4, 0]))))
    assert isinstance(samples, Samples)
    assert isinstance(samples.train, Batch)
    assert (samples.input_shape, samples.num_outputs) == ((2, 3), 5)
    assert samples.test.num_samples == 2


def test_values_are_counted_by_their_width_and_dicts_by_their_first_entry():
    samples = as_samples(loaded({"a": X, "b": X[:, 0]}, torch.rand(6, 4)))
    assert (samples.input_shape, samples.num_outputs, samples.test) == ((2, 3), 4, None)


def test_what_is_given_is_not_counted():
    samples = as_samples(loaded(input_shape=(6,), num_outputs=7))
    assert (samples.input_shape, samples.num_outputs) == ((6,), 7)
    assert as_samples(loaded(targets=Y % 2, num_outputs=1)).num_outputs == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"load\(\) gave NoneType, which has no 'train'"),
        (SimpleNamespace(train=X), r"train is Tensor: give a pair"),
        (loaded(X.numpy()), r"train inputs hold ndarray: give tensors"),
        (loaded(targets=[0, 1]), r"train targets hold int: give tensors"),
        (loaded(X[:0], Y[:0]), r"train has no samples"),
        (loaded({}, Y), r"train has no samples"),
        (loaded(X[:5]), r"lengths differ \(5 train inputs, 6 train targets\)"),
        (
            loaded(X / (Y - 1)[:, None, None]),
            r"train inputs are NaN or infinite in 2 of 6 samples, .* number 1:",
        ),
        (loaded(targets=Y - 1), r"labels run from -1 to 1, but data.num_outputs=2 allows 0 to 1"),
        (loaded(num_outputs=2), r"labels run from 0 to 2, but data.num_outputs=2 allows 0 to 1"),
        (loaded(num_outputs="3"), r"data.num_outputs='3': give a whole number"),
        (loaded(targets=Y - 1, num_outputs=3), r"labels run from -1"),
        (
            loaded(test=(X[:, 0], Y)),
            r"test samples have shapes \[\(3,\), \(\)\], training samples \[\(2, 3\)",
        ),
        (loaded(test=(X, Y + 3), num_outputs=3), r"labels run from 3 to 5"),
        (loaded(targets={"a": Y}), r"targets are not one tensor"),
    ],
)
def test_what_a_user_may_get_wrong_gets_one_line(given, message):
    with pytest.raises(PipelineError, match=message):
        as_samples(given)


def test_the_split_is_a_seeded_partition_and_test_samples_do_not_depend_on_num_samples():
    whole, few = Digits().load(), Digits(num_samples=100).load()
    assert (whole.train.num_samples, whole.test.num_samples) == (1438, 359)
    torch.testing.assert_close(few.train.inputs, whole.train.inputs[:100])
    torch.testing.assert_close(few.test.inputs, whole.test.inputs)
    rows = torch.cat([whole.train.inputs, whole.test.inputs]).flatten(1).numpy()
    both = np.unique(rows, axis=0)
    everything = np.unique(Digits(test_fraction=0).load().train.inputs.flatten(1).numpy(), axis=0)
    np.testing.assert_array_equal(both, everything)
    assert not torch.equal(Digits(split_seed=1).load().train.targets, whole.train.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "abc"}, r"data.batch_size='abc': give a whole number of at least 1, or null \(all"),
        ({"batch_size": 0}, r"data.batch_size=0"),
        ({"test_fraction": 1.0}, r"data.test_fraction=1.0: give a number of at least 0 and below 1\.$"),
        ({"test_fraction": float("nan")}, r"data.test_fraction=nan"),
        ({"split_seed": -1}, r"data.split_seed=-1: give a whole number of at least 0\.$"),
        ({"num_samples": 1.5}, r"data.num_samples=1.5"),
        ({"input_shape": 64}, r"data.input_shape=64: give a list"),
        ({"num_outputs": 0}, r"data.num_outputs=0"),
    ],
)
def test_wrong_options_get_one_line(options, message):
    with pytest.raises(PipelineError, match=message):
        Digits(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_samples": 1500},
            r"1797 samples with data.test_fraction=0.2 leave 1438 .*data.num_samples=1500",
        ),
        ({"input_shape": [1, 8, 9]}, r"data.input_shape=\[1, 8, 9\] has 72 numbers, but a sample has 64"),
        ({"num_outputs": 5}, r"labels run from 0 to 9, but data.num_outputs=5 allows 0 to 4"),
    ],
)
def test_options_that_do_not_fit_the_data_get_one_line(options, message):
    with pytest.raises(PipelineError, match=message):
        Digits(**options).load()
