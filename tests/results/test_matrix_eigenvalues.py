"""`pipeline.eigenvalues` on whatever holds a matrix, against NumPy."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.report_cases import put, spectra
from support.shard_files import symmetric, write

import pipeline
from pipeline.errors import PipelineError
from pipeline.results import matrix_eigenvalues
from pipeline.system import RunFolder


def test_of_arrays_and_tensors():
    matrix = symmetric(23)
    expected = np.linalg.eigvalsh(matrix)
    for given in (matrix, torch.from_numpy(matrix), torch.tensor(matrix, requires_grad=True)):
        assert pipeline.eigenvalues(given) == pytest.approx(expected, abs=1e-13)
    single = pipeline.eigenvalues(torch.from_numpy(matrix).float())
    assert single.dtype == np.float32
    assert single == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())
    assert pipeline.eigenvalues(np.array([[2, 1], [1, 2]])) == pytest.approx([1, 3], abs=1e-14)
    assert pipeline.eigenvalues(torch.eye(3, dtype=torch.bfloat16)) == pytest.approx([1, 1, 1])


def test_rows_of_zeros_are_eigenvalues_too():
    matrix = symmetric(9)
    matrix[[2, 5]] = matrix[:, [2, 5]] = 0
    found = pipeline.eigenvalues(matrix)
    assert found == pytest.approx(np.linalg.eigvalsh(matrix), abs=1e-13)
    assert (found == 0).sum() == 2


def test_the_matrix_is_left_as_it_was():
    matrix = symmetric(9)
    before = matrix.copy()
    pipeline.eigenvalues(matrix)
    pipeline.eigenvalues(torch.from_numpy(matrix))
    assert np.array_equal(matrix, before)


def test_of_a_shard(tmp_path):
    matrix = symmetric(23)
    shard = pipeline.open_shard(write(tmp_path / "one.h5", matrix))
    assert pipeline.eigenvalues(shard) == pytest.approx(np.linalg.eigvalsh(matrix), abs=1e-13)


def test_of_a_run_they_are_those_of_the_mean_at_the_last_step(tmp_path):
    files = [spectra(step=10), spectra(step=20)]
    put(RunFolder(tmp_path), *files)
    run = pipeline.open_run(tmp_path)
    assert np.array_equal(pipeline.eigenvalues(run), files[1].mean.eigenvalues)
    assert np.array_equal(pipeline.eigenvalues(run.spectra[10]), files[0].mean.eigenvalues)


def test_of_a_run_that_holds_some_alone(tmp_path):
    file = spectra()
    some = replace(file, spectrum="topk", mean=replace(file.mean, eigenvalues=file.mean.eigenvalues[-3:]))
    with pytest.raises(
        PipelineError, match=r"hold 3 of \S+ eigenvalues \(spectrum=topk\): take these by .mean"
    ):
        pipeline.eigenvalues(some)


def test_of_a_run_without_spectra(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(PipelineError, match="holds no spectra: run its stage aggregate, or take a shard"):
        pipeline.eigenvalues(pipeline.open_run(tmp_path))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\), which is not square: give a real matrix \(P, P\)"),
        (np.ones((4, 2, 2)), r"shape \(4, 2, 2\), which is not square"),
        (np.zeros((0, 0)), r"shape \(0, 0\), which"),
        (
            np.array([[1.0, 2.0], [0.0, 1.0]]),
            r"not symmetric: .* by up to 2, the largest is 2; give \(H \+ H.T\) / 2",
        ),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "holds NaN or infinity"),
        ("outputs/2026", "outputs/2026 is a path: open it"),
        (np.eye(2) * 1j, "holds complex128, not real numbers"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(matrix, message):
    with pytest.raises(PipelineError, match=message) as caught:
        pipeline.eigenvalues(matrix)
    assert "\n" not in str(caught.value)


def test_a_shard_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    shard = pipeline.open_shard(write(tmp_path / "one.h5", symmetric(23)))
    monkeypatch.setattr(matrix_eigenvalues, "ROOM_TO_CHECK", 0)
    monkeypatch.setattr(matrix_eigenvalues, "available_memory", lambda: 1000)
    with pytest.raises(
        PipelineError, match=r"P = 23 weights need 8\.\d+ kB of memory, 1 kB are free: take both ends"
    ):
        pipeline.eigenvalues(shard)


def test_example_in_the_docstring():
    outcome = doctest.testmod(matrix_eigenvalues, raise_on_error=True)
    assert outcome.attempted > 0


def test_what_gives_products_alone_is_told_what_takes_it():
    class Products:
        num_rows = 3

        def matvec(self, vectors):
            return vectors

    with pytest.raises(
        PipelineError, match=r"Products gives products alone: pipeline\.eigenpairs gives both ends"
    ):
        pipeline.eigenvalues(Products())
