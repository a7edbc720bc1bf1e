import h5py
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data import Arrays, Blobs, Digits
from pipeline.errors import PipelineError


def test_digits_are_gray_images_between_0_and_1():
    samples = Digits().load()
    x, y = samples.train
    assert (samples.input_shape, samples.num_outputs) == ((1, 8, 8), 10)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert Digits(input_shape=[64]).load().train.inputs.shape == (1438, 64)


@pytest.mark.parametrize(("num_clusters", "dimension"), [(10, 20), (3, 3), (2, 5)])
def test_centers_of_blobs_have_one_distance(num_clusters, dimension):
    blobs = Blobs(num_clusters=num_clusters, dimension=dimension, separation=4)
    centers = blobs.centers(np.random.default_rng(0))
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    np.testing.assert_allclose(distances + 4 * np.eye(num_clusters), 4, rtol=1e-12)


def test_blobs_are_clusters_of_unit_variance_around_their_centers():
    blobs = Blobs(num_clusters=5, dimension=2, num_samples=5000, test_fraction=0)
    x, y = blobs.load().train
    centers = blobs.centers(np.random.default_rng(0))
    for label in range(5):
        cluster = x[y == label].numpy()
        assert len(cluster) == pytest.approx(1000, abs=1)
        np.testing.assert_allclose(cluster.mean(0), centers[label], atol=4 / np.sqrt(1000))
        np.testing.assert_allclose(np.cov(cluster.T), np.eye(2), atol=0.2)


@pytest.mark.parametrize(("num_samples", "test_fraction"), [(7, 0), (7, 0.9), (100, 0.2), (101, 0.333)])
def test_blobs_have_as_many_training_samples_as_asked_for(num_samples, test_fraction):
    samples = Blobs(num_samples=num_samples, test_fraction=test_fraction, num_outputs=10).load()
    assert samples.train.num_samples == num_samples
    num_test = samples.test.num_samples if samples.test else 0
    assert num_test == pytest.approx(num_samples * test_fraction / (1 - test_fraction), abs=10)


@pytest.mark.parametrize(
    "options", [{"num_clusters": 1}, {"dimension": "2"}, {"separation": -1.0}, {"num_samples": None}]
)
def test_wrong_options_of_blobs_get_one_line(options):
    name, value = next(iter(options.items()))
    with pytest.raises(PipelineError, match=rf"data.{name}={value!r}: give a"):
        Blobs(**options)


def save(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return str(path)


@pytest.fixture(params=["samples.npz", "samples.h5"])
def path(request, tmp_path):
    return tmp_path / request.param


X, Y = np.random.default_rng(0).normal(size=(10, 4)), np.arange(10) % 3


def test_arrays_come_back_in_the_order_of_the_split(path):
    samples = Arrays(path=save(path, x=X, y=Y, more=X), test_fraction=0.3).load()
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(samples.test.inputs, X[order[:3]])
    np.testing.assert_array_equal(samples.train.inputs, X[order[3:]])
    np.testing.assert_array_equal(samples.train.targets, Y[order[3:]])
    assert samples.num_outputs == 3


@pytest.mark.parametrize(
    ("x", "y", "shapes", "dtypes", "num_outputs"),
    [
        (X.astype("f4"), Y[:, None].astype("u1"), [(10, 4), (10,)], ["float32", "int64"], 3),
        (Y, Y > 1, [(10, 1), (10,)], ["int64", "int64"], 2),
        (X.reshape(10, 2, 2), X[:, 0], [(10, 2, 2), (10, 1)], ["float64", "float64"], 1),
        (X.astype("f2"), X.astype("f4"), [(10, 4), (10, 4)], ["float32", "float32"], 4),
    ],
)
def test_integers_are_labels_and_floats_are_values(path, x, y, shapes, dtypes, num_outputs):
    samples = Arrays(path=save(path, a=x, b=y), inputs="a", targets="b", test_fraction=0).load()
    assert [tuple(part.shape) for part in samples.train] == shapes
    assert [str(part.dtype) for part in samples.train] == [f"torch.{dtype}" for dtype in dtypes]
    assert samples.num_outputs == num_outputs


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"has no array 'y': it has x\.$"),
        ({"x": X, "y": Y[:9]}, r"lengths differ \(10 inputs, 9 targets\)"),
        (
            {"x": np.where(X > 2, np.nan, X * np.nan), "y": Y},
            r"train inputs are NaN or infinite in 8 of 8 samples",
        ),
        ({"x": X, "y": Y - 1}, r"labels run from -1 to 1"),
        ({"x": X, "y": np.float64(3)}, r"array 'y' has dtype float64 and shape \(\): give numbers, one row"),
        (
            {"x": X, "y": np.array([b"cat"] * 10)},
            r"texts \(cat, …\): data.map_labels=true|'y' has dtype object",
        ),
        ({"x": np.array([b"cat"] * 10), "y": Y}, r"array 'x' has dtype .*: give numbers"),
        ({"x": X[:0], "y": Y[:0]}, r"0 samples .* leave 0 for training"),
    ],
)
def test_files_that_do_not_fit_get_one_line(path, arrays, message):
    with pytest.raises(PipelineError, match=message):
        Arrays(path=save(path, **arrays)).load()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_file_that_cannot_be_read_gets_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"samples\.(npz|h5).*(cannot be read|cannot open)"):
        Arrays(path=str(path)).load()


def test_damaged_and_pickled_archives_get_one_line(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    with pytest.raises(PipelineError, match="cannot be read"):
        Arrays(path=str(path)).load()
    np.savez(path, x=X, y=np.array([{}] * 10))
    with pytest.raises(PipelineError, match=r"cannot be read \(Object arrays cannot be loaded"):
        Arrays(path=str(path)).load()


def test_a_missing_file_and_a_strange_one_get_one_line(tmp_path):
    with pytest.raises(PipelineError, match=r"nowhere\.npz: no such file; relative paths start at"):
        Arrays(path="nowhere.npz").load()
    (tmp_path / "samples.csv").write_text("1,2")
    with pytest.raises(PipelineError, match=r"give a file that ends in \.npz, \.h5 or \.hdf5"):
        Arrays(path=str(tmp_path / "samples.csv")).load()
    with pytest.raises(PipelineError, match=r"data.path=7: give a text such as"):
        Arrays(path=7)
    with pytest.raises(PipelineError, match=r"data.num_outputs=2, but a target has 4 numbers"):
        Arrays(path=save(tmp_path / "samples.npz", x=X, y=X), num_outputs=2).load()


def test_digits_of_another_size_are_the_same_images():
    small, large = Digits(test_fraction=0).load(), Digits(size=28, test_fraction=0).load()
    assert large.input_shape == (1, 28, 28)
    assert torch.equal(large.train.targets, small.train.targets)
    assert 0 <= large.train.inputs.min() < large.train.inputs.max() <= 1
    again = nn.functional.interpolate(large.train.inputs, size=(8, 8), mode="area")
    assert (again - small.train.inputs).abs().mean() < 0.1
    assert (again - small.train.inputs.roll(1, 0)).abs().mean() > 0.2
    with pytest.raises(PipelineError, match=r"^data\.size=0: give a whole number of at least 1"):
        Digits(size=0)
