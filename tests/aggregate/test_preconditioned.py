"""λmax of the matrix that Adam's steps see, against dense NumPy; the second moments, against Adam written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.shard_cases import ATTRS, LAYOUT, known, write
from torch import nn

from pipeline.aggregate.matrix_views import Scaled
from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.errors import DamagedFile
from pipeline.layout import Layout
from pipeline.results.second_moments import SecondMoments
from pipeline.spectrum import SLQ, DenseMatrix, Exact, TopK
from pipeline.system.run_folder import RunFolder
from pipeline.training.state import second_moments

STEP = ATTRS["step"]
SPECTRA = [Exact(num_top=4), TopK(num_top=4, num_bottom=2), SLQ(num_top=4, num_bottom=2, num_steps=4)]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def moments(layout=LAYOUT, seed=0):
    """Of very different sizes, as those of a net are."""
    rng = np.random.default_rng(seed)
    values = {
        name: 10.0 ** rng.uniform(-9, 0, shape)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    return SecondMoments(values, beta1=0.9, beta2=0.99, epsilon=1e-6, num_updates=7)


def diagonal(told):
    """By hand, weight by weight."""
    flat = [each for values in told.values.values() for each in np.ravel(values)]
    return np.array([(1 - 0.9**7) * (np.sqrt(v / (1 - 0.99**7)) + 1e-6) for v in flat])


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: type(spectrum).__name__)
def test_the_preconditioned_sharpness_is_that_of_dense_numpy(folder, spectrum):
    problem = known()
    moments().write(folder.second_moments(STEP))
    [file] = aggregate(write(folder, problem), spectrum, Threads(2))
    expected = np.linalg.eigvals(
        problem.mean / diagonal(moments())[:, None]
    ).real  # of P⁻¹ H, which is not symmetric
    assert file.numbers["lambda_max_preconditioned"] == pytest.approx(expected.max(), rel=1e-6)
    assert expected.max() > 100 * file.numbers["lambda_max"]


def test_it_is_taken_again_when_the_moments_are_others_and_left_out_without(folder):
    write(folder, known())
    found = {}
    for name, told in {"one": moments(), "other": moments(seed=1), "none": None}.items():
        folder.second_moments(STEP).unlink(missing_ok=True)
        if told is not None:
            told.write(folder.second_moments(STEP))
        [file] = aggregate(folder, SPECTRA[0], Threads(1))
        found[name] = file.numbers.get("lambda_max_preconditioned")
    assert found["none"] is None
    assert found["one"] != pytest.approx(found["other"], rel=0.1)


def test_a_parameter_without_moments_or_a_damaged_file_leaves_it_out(folder, caplog):
    lacking = replace(moments(), values={name: moments().values[name] for name in LAYOUT.names[1:]})
    assert lacking.preconditioner(LAYOUT) is None
    assert f"Adam has no moments of {LAYOUT.names[0]}." in caplog.text
    path = folder.second_moments(STEP)
    moments().write(path)
    content = path.read_bytes()
    one = moments().values["second.weight"]
    path.write_bytes(content.replace(one.tobytes(), (2 * one).tobytes()))
    with pytest.raises(DamagedFile, match="it is not what was written"):
        SecondMoments.read(path)
    [file] = aggregate(write(folder, known()), SPECTRA[0], Threads(1))
    assert "lambda_max_preconditioned" not in file.numbers
    assert "there is no λmax of the preconditioned matrix" in caplog.text


def test_moments_are_read_as_they_were_written_and_follow_the_rows_of_the_matrix(tmp_path):
    moments().write(tmp_path / "m.h5")
    found = SecondMoments.read(tmp_path / "m.h5")
    assert (found.beta1, found.beta2, found.epsilon, found.num_updates) == (0.9, 0.99, 1e-6, 7)
    np.testing.assert_array_equal(found.preconditioner(LAYOUT), moments().preconditioner(LAYOUT))
    np.testing.assert_allclose(found.preconditioner(LAYOUT), diagonal(moments()))
    some = Layout(("second.weight", "first.bias"), ((4, 3), (3,)))
    offsets = LAYOUT.slices()
    expected = np.concatenate([diagonal(moments())[offsets[name]] for name in some.names])
    np.testing.assert_allclose(found.preconditioner(some), expected)
    assert found.fingerprint == moments().fingerprint != moments(seed=1).fingerprint


def test_adams_next_step_is_the_running_gradient_over_the_preconditioner():
    """P from the file against what torch's Adam does: w changes by −η P⁻¹ m."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-5)
    assert second_moments(model, optimizer) is None
    assert second_moments(model, torch.optim.SGD(model.parameters(), lr=0.1)) is None
    inputs, mean = torch.randn(8, 3, dtype=torch.float64), 0.0
    for _ in range(5):
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.zero_grad()
        (model(inputs) ** 2).mean().backward()
        gradient = torch.cat([weight.grad.ravel() for weight in model.parameters()])
        mean = 0.8 * mean + 0.2 * gradient
        optimizer.step()
    layout = Layout.of(dict(model.named_parameters()))
    told = second_moments(model, optimizer)
    assert told.num_updates == 5
    change = (nn.utils.parameters_to_vector(model.parameters()).detach() - before).numpy()
    np.testing.assert_allclose(change, -0.01 * mean.numpy() / told.preconditioner(layout), rtol=1e-9)


def test_a_scaled_matrix_is_the_product_with_both_diagonals():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    matrix, scale, vectors = matrix + matrix.T, rng.uniform(0.1, 9, 6), rng.normal(size=(6, 2))
    expected = np.diag(scale) @ matrix @ np.diag(scale)
    scaled = Scaled(DenseMatrix(matrix), scale)
    np.testing.assert_allclose(scaled.dense(), expected)
    np.testing.assert_allclose(scaled.held().matvec(vectors), expected @ vectors)
    assert scaled.num_rows == 6
