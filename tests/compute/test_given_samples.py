"""Samples as a person has them: NumPy arrays, and batches of a DataLoader, against one batch of tensors."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pipeline
from pipeline.errors import PipelineError

IGNORED = -100


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (11,), generator=generator)


def loader(x, y, batch_size=4, **options):
    return DataLoader(TensorDataset(x, y), batch_size, **options)


def close(found, expected):
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("labels", [np.int64, np.int32, np.uint8, ">i4"])
def test_numpy_arrays(net, samples, labels):
    x, y = samples
    expected = pipeline.hessian(net, nn.CrossEntropyLoss(), x, y)
    arrays = x.numpy(), y.numpy().astype(labels)
    close(pipeline.hessian(net, nn.CrossEntropyLoss(), *arrays), expected)
    close(pipeline.sample_hessians(net, nn.CrossEntropyLoss(), *arrays).mean(0), expected)
    blocks = pipeline.layer_hessians(net, nn.CrossEntropyLoss(), *arrays, parameters="2.*")
    close(blocks["2"], expected[16:, 16:])


def test_numpy_arrays_take_the_dtype_of_the_computation(net, samples):
    x, y = samples[0].numpy(), np.random.default_rng(0).normal(size=(11, 3))
    single = pipeline.hessian(net.float(), nn.MSELoss(), x, y)
    assert single.dtype == torch.float32
    double = pipeline.hessian(net, nn.MSELoss(), x, y, dtype=torch.float64)
    close(double, pipeline.hessian(net.double(), nn.MSELoss(), torch.tensor(x), torch.tensor(y)))


def test_numpy_arrays_are_left_as_they_were_and_may_be_read_only_or_reversed(net, samples):
    x, y = samples[0].numpy().copy(), samples[1].numpy().copy()
    expected = pipeline.hessian(net, nn.CrossEntropyLoss(), x, y)
    before = x.copy()
    x.setflags(write=False)
    close(pipeline.hessian(net, nn.CrossEntropyLoss(), x[::-1], y[::-1]), expected)
    assert np.array_equal(x, before)


def test_arrays_inside_tuples_and_mappings(samples):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

        def forward(self, a, b):
            return self.left(a) * self.right(b)

    x, y = samples[0], samples[0][:, :2]
    expected = pipeline.hessian(model := Product(), nn.MSELoss(), (x, 2 * x), y)
    a, b = x.numpy(), 2 * x.numpy()
    close(pipeline.hessian(model, nn.MSELoss(), (a, b), y.numpy()), expected)
    close(pipeline.hessian(model, nn.MSELoss(), {"b": b, "a": a}, y.numpy()), expected)


def test_an_array_of_texts_is_refused(net, samples):
    with pytest.raises(PipelineError, match="an array of inputs or targets has dtype <U3: give numbers"):
        pipeline.hessian(net, nn.CrossEntropyLoss(), samples[0], np.array(["cat"] * 11))


def class_weights():
    return nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "criterion",
    [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), class_weights()],
    ids=["mean", "sum", "class weights"],
)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}], ids=["in order", "shuffled"])
def test_a_loader_gives_the_matrix_of_all_of_its_samples(net, samples, criterion, matrix, options):
    """The last batch has 3 samples of 11, and the batches different sums of class weights."""
    expected = pipeline.hessian(net, criterion, *samples, matrix=matrix)
    close(pipeline.hessian(net, criterion, loader(*samples, **options), matrix=matrix), expected)


def test_labels_that_do_not_count(net, samples):
    x, y = samples[0], samples[1].clone()
    y[[0, 5, 6]] = IGNORED
    y[8:] = IGNORED  # all of the last batch
    expected = pipeline.hessian(net, nn.CrossEntropyLoss(), x, y)
    close(pipeline.hessian(net, nn.CrossEntropyLoss(), loader(x, y)), expected)
    with pytest.raises(
        PipelineError, match="no sample of the DataLoader counts in the loss: look at its targets"
    ):
        pipeline.hessian(net, nn.CrossEntropyLoss(), loader(x, torch.full_like(y, IGNORED)))


def test_a_loss_of_ones_own(net, samples):
    def loss(outputs, targets):
        return (outputs.logsumexp(1) - outputs.gather(1, targets[:, None])[:, 0]).mean()

    expected = pipeline.hessian(net, loss, *samples)
    close(pipeline.hessian(net, loss, loader(*samples)), expected)
    with pytest.raises(PipelineError, match="neither the sum nor the mean over samples"):
        pipeline.hessian(
            net, lambda outputs, targets: loss(outputs, targets) ** 2 * len(targets) ** 0.5, loader(*samples)
        )


def test_blocks_layers_and_samples_of_a_loader(net, samples):
    whole = pipeline.hessian(net, nn.CrossEntropyLoss(), *samples)
    blocks = pipeline.hessian(net, nn.CrossEntropyLoss(), loader(*samples), as_blocks=True)
    close(blocks["2.bias"]["0.bias"], whole[28:, 12:16])
    layers = pipeline.layer_hessians(net, nn.CrossEntropyLoss(), loader(*samples))
    close(layers["0"], whole[:16, :16])
    each = pipeline.sample_hessians(net, nn.CrossEntropyLoss(), loader(*samples))
    close(each, pipeline.sample_hessians(net, nn.CrossEntropyLoss(), *samples))


def test_single_precision_is_summed_in_double(net, samples):
    found = pipeline.hessian(net, nn.CrossEntropyLoss(), loader(*samples, batch_size=1), dtype=torch.float32)
    expected = pipeline.hessian(net, nn.CrossEntropyLoss(), *samples)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-7 * expected.abs().max() * 10


def test_what_a_loader_gives_that_is_no_pair(net, samples):
    x, y = samples
    with pytest.raises(PipelineError, match="a DataLoader gives its targets itself: leave targets out"):
        pipeline.hessian(net, nn.CrossEntropyLoss(), loader(x, y), y)
    with pytest.raises(PipelineError, match="a batch is 3 values, not a pair"):
        pipeline.hessian(net, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y, y), 4))
    with pytest.raises(PipelineError, match="batches is empty"):
        pipeline.hessian(net, nn.CrossEntropyLoss(), loader(x[:2], y[:2], drop_last=True))
