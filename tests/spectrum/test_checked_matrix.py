"""What `eigenpairs`, `density`, `trace`, `diagonal` and `solve` take as a matrix."""

import numpy as np
import pytest
import torch

import pipeline
from pipeline.errors import PipelineError

H = np.diag([3.0, -1.0, 2.0, 0.5, 7.0])


@pytest.mark.parametrize("matrix", [H, torch.tensor(H), torch.tensor(H, requires_grad=True)])
def test_an_array_or_a_tensor_is_a_matrix(matrix):
    pairs = pipeline.eigenpairs(matrix, top=2, bottom=1)
    assert np.sort(pairs.values) == pytest.approx([-1, 3, 7], abs=1e-12)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 4)), r"the matrix has shape \(3, 4\): give a square one"),
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


def test_a_path_is_not_opened_by_guessing():
    with pytest.raises(PipelineError, match=r"nowhere\.h5 is a path: open it by pipeline.open_run"):
        pipeline.eigenvalues("nowhere.h5")
