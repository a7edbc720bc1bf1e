import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.matrices import SPECTRA, Stored, like_a_hessian, with_spectrum

import pipeline.spectrum.exact as module
from pipeline.errors import PipelineError
from pipeline.spectrum import Exact, Rates, eigenvalues


def assert_whole(found, matrix, num_top, rounding=1e-13, eigenvalues=None):
    num_rows = len(matrix)
    k = min(num_top, num_rows)
    expected = np.linalg.eigvalsh(matrix.astype(np.float64)) if eigenvalues is None else eigenvalues
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.eigenvalues, expected, atol=rounding * largest)
    np.testing.assert_array_equal(found.top_eigenvalues, found.eigenvalues[::-1][:k])
    vectors = found.top_eigenvectors
    assert vectors.shape == (num_rows, k)
    tolerance = max(2e-12, 10 * rounding)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=tolerance)
    residuals = np.linalg.norm(matrix @ vectors - vectors * found.top_eigenvalues, axis=0)
    assert (residuals <= tolerance * largest).all()
    np.testing.assert_allclose(found.residuals, residuals, atol=10 * rounding * largest)
    assert found.complete


@pytest.mark.parametrize("small", [0, 10_000], ids=["lanczos", "scipy"])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    matrix = with_spectrum(SPECTRA[name])
    assert_whole(Exact().decompose(Stored(matrix)), matrix, 10, eigenvalues=SPECTRA[name])


def embedded(small, num_rows, seed=0):
    alive = np.sort(np.random.default_rng(seed).permutation(num_rows)[: len(small)])
    matrix = np.zeros((num_rows, num_rows))
    matrix[np.ix_(alive, alive)] = small
    return matrix, alive


def test_dead_rows_are_dropped_and_put_back():
    small = with_spectrum(SPECTRA["wigner"])
    matrix, alive = embedded(small, 600)
    found = Exact().decompose(Stored(matrix))
    assert_whole(found, matrix, 10)
    assert (found.eigenvalues == 0).sum() == 600 - 350
    assert not np.delete(found.top_eigenvectors, alive, axis=0).any()


def test_the_solver_sees_live_rows_only(monkeypatch):
    sizes = []
    monkeypatch.setattr(module, "eigenvalues_of", lambda m, _: sizes.append(m.shape) or np.linalg.eigvalsh(m))
    matrix, _ = embedded(with_spectrum(np.arange(1.0, 31)), 100)
    Exact().decompose(Stored(matrix))
    assert sizes == [(30, 30)]


@pytest.mark.parametrize("num_dead", [1, 4, 40])
def test_dead_rows_among_the_top_ones(num_dead):
    small = with_spectrum([-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3])
    matrix, _ = embedded(small, 12 + num_dead)
    found = Exact().decompose(Stored(matrix))
    assert_whole(found, matrix, 10)
    assert (found.top_eigenvalues == 0).sum() == min(num_dead, 7)


def test_lanczos_that_does_not_converge_is_replaced(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "MAX_PASSES", 1)
    matrix = with_spectrum(SPECTRA["wigner"])
    assert_whole(Exact().decompose(Stored(matrix)), matrix, 10)


def test_lanczos_that_missed_an_eigenvalue_is_replaced(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    honest = module.extremal_eigenpairs

    def misses_the_largest(*args, num_top, **options):
        pairs = honest(*args, num_top=num_top + 1, **options)
        kept = slice(0, num_top)
        return replace(
            pairs, values=pairs.values[kept], vectors=pairs.vectors[:, kept], residuals=pairs.residuals[kept]
        )

    monkeypatch.setattr(module, "extremal_eigenpairs", misses_the_largest)
    matrix = with_spectrum(SPECTRA["hessian"])
    assert_whole(Exact().decompose(Stored(matrix)), matrix, 10)


def test_float32_stays_float32():
    eigenvalues = like_a_hessian(600)
    matrix = with_spectrum(eigenvalues).astype(np.float32)
    found = Exact().decompose(Stored(matrix))
    assert found.eigenvalues.dtype == found.top_eigenvectors.dtype == np.float32
    assert_whole(found, matrix, 10, rounding=1e-6)


def test_a_read_only_matrix_is_left_alone():
    matrix = with_spectrum(np.arange(20.0))
    matrix.flags.writeable = False
    before = matrix.copy()

    class Mapped(Stored):
        def dense(self):
            return self.matrix

    assert_whole(Exact().decompose(Mapped(matrix)), before, 10)
    np.testing.assert_array_equal(matrix, before)


def test_no_dense_copy_that_is_the_callers_is_changed():
    matrix = with_spectrum(np.arange(20.0))
    before = matrix.copy()

    class Cached(Stored):
        def dense(self):
            return self.matrix

    Exact().decompose(Cached(matrix))
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(poison):
    matrix = np.eye(30)
    matrix[4, 2] = poison
    with pytest.raises(PipelineError, match=r"holds NaN or infinity and has no eigenvalues"):
        Exact().decompose(Stored(matrix))


@pytest.mark.parametrize("value", [0, -3, 2.5, "ten", None, True])
def test_num_top_is_checked(value):
    with pytest.raises(PipelineError, match=r"spectrum\.num_top=.*: give a whole number of at least 1"):
        Exact(num_top=value)


@pytest.mark.parametrize(
    "num_rows", [600, 2400]
)  # Lanczos' vectors decide, and the copy that the solver overwrites
def test_memory_bounds_the_arrays_that_are_held(num_rows, monkeypatch):
    """Counted, as an allocation is; what LAPACK takes besides its copy differs from machine to machine."""
    values = np.linspace(-1, 1, num_rows, dtype=np.float32) ** 5

    class Diagonal:
        def dense(self):
            return np.diag(values)

    def solved(matrix, _):
        overwritten = matrix.copy()
        return np.sort(overwritten.diagonal())

    monkeypatch.setattr(module, "eigenvalues_of", solved)
    tracemalloc.start()
    Exact().decompose(Diagonal())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fixed = 16 * 2**20  # for LAPACK and its kind, which is not counted
    assert peak <= Exact().memory(num_rows, 4)
    assert Exact().memory(num_rows, 4) - fixed <= 2 * peak


def gpu(room, device="cpu"):
    """A processor in the place of a GPU with so many bytes free."""
    return lambda: (torch.device(device), room)


def test_eigenvalues_come_from_the_gpu_where_there_is_room(monkeypatch, caplog):
    matrix = with_spectrum(SPECTRA["wigner"])
    expected = module.eigenvalues_of(matrix)
    asked = []
    solve = torch.linalg.eigvalsh
    monkeypatch.setattr(eigenvalues, "gpu_and_room", gpu(3 * matrix.nbytes, "meta"))
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda m: asked.append(m.device.type) or solve(torch.tensor(matrix))
    )
    np.testing.assert_array_equal(module.eigenvalues_of(matrix, "auto"), expected)
    np.testing.assert_array_equal(module.eigenvalues_of(matrix, "cuda"), expected)
    module.eigenvalues_of(matrix, "cpu")
    assert asked == ["meta", "meta", "cpu"]
    assert caplog.text == ""


def test_without_room_on_the_gpu_the_cpu_takes_them_and_says_so(monkeypatch, caplog):
    matrix = with_spectrum(SPECTRA["wigner"])
    expected = module.eigenvalues_of(matrix)
    monkeypatch.setattr(eigenvalues, "gpu_and_room", gpu(3 * matrix.nbytes - 1))
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(module.eigenvalues_of(matrix, "auto"), expected)
    assert "eigenvalues on the CPU, as the GPU has" in caplog.text
    with pytest.raises(
        PipelineError, match=r"^spectrum\.device=cuda: the GPU has .* free, and .*: choose spectrum\.dev"
    ):
        module.eigenvalues_of(matrix, "cuda")


def test_a_gpu_that_runs_out_of_memory_all_the_same_leaves_it_to_the_cpu(monkeypatch):
    matrix = with_spectrum(SPECTRA["wigner"])
    expected = module.eigenvalues_of(matrix)
    solve, calls = torch.linalg.eigvalsh, []

    def out_of_memory(m):
        calls.append(m)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return solve(m)

    monkeypatch.setattr(eigenvalues, "gpu_and_room", gpu(3 * matrix.nbytes))
    monkeypatch.setattr(torch.linalg, "eigvalsh", out_of_memory)
    np.testing.assert_array_equal(module.eigenvalues_of(matrix, "auto"), expected)
    assert len(calls) == 2


def test_a_gpu_that_is_not_there(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matrix = with_spectrum(SPECTRA["wigner"])
    with caplog.at_level("INFO"):
        module.eigenvalues_of(matrix, "auto")
    assert caplog.text == ""
    with pytest.raises(
        PipelineError, match=r"^spectrum\.device=cuda: torch finds no GPU: choose spectrum\.device=cpu"
    ):
        module.eigenvalues_of(matrix, "cuda")
    with pytest.raises(PipelineError, match=r"^spectrum\.device='gpu'"):
        Exact(device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_finds_the_same():
    matrix = with_spectrum(SPECTRA["wigner"])
    expected = module.eigenvalues_of(matrix)
    np.testing.assert_allclose(
        module.eigenvalues_of(matrix, "cuda"), expected, atol=1e-13 * np.abs(expected).max()
    )


def test_where_they_are_computed_does_not_make_spectra_stale():
    assert repr(Exact(device="cpu")) == repr(Exact(device="cuda"))


def test_a_long_call_says_first_how_long_it_will_take(monkeypatch, caplog):
    matrix, told = with_spectrum(SPECTRA["wigner"]), []
    monkeypatch.setattr(Rates, "of", lambda dtype: Rates(eigenvalues=1e6, products=1.0))
    monkeypatch.setattr(
        module, "eigenvalues_of", lambda m, _: told.append(caplog.messages[:]) or np.linalg.eigvalsh(m)
    )
    with caplog.at_level("INFO"):
        Exact().decompose(Stored(matrix))
        assert caplog.messages == []
        monkeypatch.setattr(module, "MANY_ROWS", len(matrix))
        Exact().decompose(Stored(matrix))
    [line] = caplog.messages
    assert re.fullmatch(rf"all eigenvalues of {len(matrix)} rows: about 18\.1 h\.", line)
    assert told == [[], [line]]
