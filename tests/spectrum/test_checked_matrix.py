"""What `eigenpairs`, `density`, `trace`, `diagonal` and `solve` take as a matrix."""

import numpy as np
import pytest
import torch

import pipeline
from pipeline.errors import PipelineError

H = np.diag([3.0, -1.0, 2.0, 0.5, 7.0])


@pytest.mark.parametrize(
    "matrix",
    [
        H,
        torch.tensor(H),
        torch.tensor(H, requires_grad=True),
        torch.tensor(H).to_sparse(),
        torch.tensor(H).bfloat16(),
        torch.tensor(H * (1 + 0j)).real,
        H.astype(">f8"),
        H.astype(np.float16),
        H.astype(np.longdouble),
        np.ma.masked_array(H),
        np.diag([3, -1, 2, 0, 7]),
    ],
    ids=str,
)
def test_an_array_or_a_tensor_is_a_matrix(matrix):
    pairs = pipeline.eigenpairs(matrix, top=2, bottom=1)
    assert np.sort(pairs.values) == pytest.approx([-1, 3, 7], abs=1e-12)
    assert pipeline.eigenvalues(matrix)[[0, -2, -1]] == pytest.approx([-1, 3, 7], abs=1e-6)


def test_flags_and_small_whole_numbers_are_numbers():
    assert pipeline.trace(np.eye(5, dtype=bool)).trace.value == 5
    with pytest.raises(PipelineError, match="not symmetric"):  # 250 - 3 is not 247 in eight bits
        pipeline.trace(np.array([[1, 3], [250, 1]], np.uint8))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 4)), r"the matrix has shape \(3, 4\), which is not square: give a real matrix"),
        (np.zeros((0, 0)), r"the matrix has shape \(0, 0\), which"),
        (H * (1 + 0j), "the matrix holds complex128, not real numbers"),
        (torch.tensor(H + 1j), "the matrix holds complex128, not real numbers"),
        (np.full((2, 2), "a"), "the matrix holds <U1, not real numbers"),
        (np.ma.masked_greater(H, 5), "entries of the matrix are masked"),
        (torch.zeros(3, 3, device="meta"), "a tensor on the device meta, which has no numbers"),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "the matrix is not symmetric: give a symmetric one"),
        ("shard.h5", "the matrix is of type str: give what curvature_operator or open_shard returns"),
    ],
)
@pytest.mark.parametrize(
    "function", [pipeline.eigenpairs, pipeline.density, pipeline.trace, pipeline.diagonal]
)
def test_anything_else_gets_one_line(function, matrix, message):
    with pytest.raises(PipelineError, match=message):
        function(matrix)


class Squeezing:
    """Products that lose the second dimension, as those of a function of one vector do."""

    num_rows, columns_per_pass = 120, 1

    def matvec(self, vectors):
        return 2 * vectors[:, 0]


@pytest.mark.parametrize(
    "function",
    [
        pipeline.eigenpairs,
        pipeline.density,
        pipeline.trace,
        pipeline.diagonal,
        lambda matrix: pipeline.solve(matrix, np.ones(120)),
    ],
)
def test_products_of_another_shape_are_refused(function):
    with pytest.raises(
        PipelineError, match=r"matvec of Squeezing gives a product of shape \(120,\) for vectors of"
    ):
        function(Squeezing())


def test_a_path_is_not_opened_by_guessing():
    with pytest.raises(PipelineError, match=r"nowhere\.h5 is a path: open it by pipeline.open_run"):
        pipeline.eigenvalues("nowhere.h5")
