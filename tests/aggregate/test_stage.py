"""Oracle: the spectra of whole matrices by numpy.linalg.eigh, in one piece from the shards."""

import itertools
import re
import shutil
import time

import h5py
import numpy as np
import pytest
import yaml
from support.command import python, succeed
from support.shard_cases import ATTRS, LAYOUT, NUM_ROWS, NUM_SAMPLES, known, write, write_one
from threadpoolctl import threadpool_info, threadpool_limits

import pipeline
from pipeline.aggregate import decomposition
from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.errors import PipelineError
from pipeline.results.spectra_file import SpectraFile
from pipeline.shards.shard import open_shard
from pipeline.spectrum import SLQ, Auto, Exact, Rates, TopK
from pipeline.system.run_folder import RunFolder

STEP = ATTRS["step"]
SPECTRA = {
    "exact": Exact(num_top=4),
    "topk": TopK(num_top=4, num_bottom=2, tolerance=1e-9),
    "slq": SLQ(num_top=4, num_bottom=2, num_steps=4, tolerance=1e-9),
}
PRECISION = {"float64": 1e-9, "float32": 2e-6}  # of eigenvalues, relative to the largest one
CASES = pytest.mark.parametrize(
    ("name", "reduction", "dtype"),
    [
        ("exact", "mean", "float64"),
        ("exact", "sum", "float64"),
        ("exact", "mean", "float32"),
        ("topk", "mean", "float64"),
        ("topk", "sum", "float32"),
        ("slq", "mean", "float64"),
    ],
)


def of_folder(folder, spectrum=SPECTRA["exact"]):
    [made] = aggregate(folder, spectrum, Threads(2))
    file = SpectraFile.read(folder.spectrum(STEP))
    assert file.attrs == made.attrs
    assert file.arrays.keys() == made.arrays.keys()
    return file


def eigh(matrix):
    """Ascending eigenvalues and eigenvectors in float64."""
    return np.linalg.eigh(np.asarray(matrix, np.float64))


def top_space(matrix, k=4):
    return eigh(matrix)[1][:, -k:]


def overlap(one, other):
    return ((one.T @ other) ** 2).sum() / one.shape[1]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@CASES
def test_the_spectrum_of_the_mean_is_that_of_numpy_in_one_piece(folder, name, reduction, dtype):
    problem = known(reduction, dtype)
    results = of_folder(write(folder, problem), SPECTRA[name])
    dense = np.array([open_shard(path).dense() for path in folder.shard_paths(STEP)], np.float64)
    whole = dense.sum(0) if reduction == "sum" else np.average(dense, 0, weights=NUM_SAMPLES)
    values, vectors = eigh(whole)
    tolerance = PRECISION[dtype] * np.abs(values).max()
    wanted = values if name == "exact" else np.concatenate([values[:2], values[-4:]])
    file = results
    np.testing.assert_allclose(file.mean.eigenvalues, wanted, rtol=0, atol=tolerance)
    np.testing.assert_allclose(file.mean.top_eigenvalues, values[:-5:-1], rtol=0, atol=tolerance)
    cosines = np.abs((file.mean.top_eigenvectors * vectors[:, :-5:-1]).sum(0))
    np.testing.assert_allclose(cosines, 1, rtol=0, atol=1e-5)
    assert file.mean.residuals.max() <= 2 * tolerance
    np.testing.assert_allclose(file.mean.gradient, problem.pooled(problem.gradients), rtol=1e-5)
    stored = open_shard(folder.mean(STEP))
    np.testing.assert_allclose(stored.dense(), whole, rtol=0, atol=tolerance)
    assert stored.attrs["num_samples"] == sum(NUM_SAMPLES)


@CASES
def test_each_batch_has_the_numbers_of_its_own_matrix(folder, name, reduction, dtype):
    problem = known(reduction, dtype)
    file = of_folder(write(folder, problem), SPECTRA[name])
    norm = np.linalg.norm(problem.mean)
    assert file.batches.num_samples.tolist() == list(NUM_SAMPLES)
    np.testing.assert_array_equal(file.batches.loss, problem.losses)
    for index, matrix in enumerate(problem.matrices):
        values = eigh(matrix)[0]
        close = {"rtol": 0, "atol": 1e-5 * np.abs(values).max()}
        np.testing.assert_allclose(file.batches.eigenvalues[index], values[:-5:-1], **close)
        np.testing.assert_allclose(file.batches.lambda_max[index], values[-1], **close)
        np.testing.assert_allclose(file.batches.trace[index], values.sum(), **close)
        np.testing.assert_allclose(file.batches.frobenius_norm[index], np.linalg.norm(values), rtol=1e-6)
        distance = np.linalg.norm(problem.estimates[index] - problem.mean) / norm
        np.testing.assert_allclose(file.batches.distance_to_mean[index], distance, rtol=1e-4)
        with_mean = overlap(top_space(matrix), top_space(problem.mean))
        np.testing.assert_allclose(file.batches.overlap_with_mean[index], with_mean, atol=1e-4)
        for other, its in enumerate(problem.matrices):
            expected = overlap(top_space(matrix), top_space(its))
            np.testing.assert_allclose(file.batches.overlap[index, other], expected, atol=1e-4)
    assert 0.5 < file.batches.overlap[0, 1] < 0.9999  # neither trivial


@CASES
def test_each_parameter_has_the_numbers_of_its_own_block(folder, name, reduction, dtype):
    problem = known(reduction, dtype)
    file = of_folder(write(folder, problem), SPECTRA[name])
    assert file.layers.names == LAYOUT.names
    assert file.layers.offsets.tolist() == [0, 21, 24, 24, 25, 37]
    assert file.layers.shapes == LAYOUT.shapes == ((7, 3), (3,), (0,), (), (4, 3))
    assert "nothing" not in file.layers.eigenvalues
    spans = dict(zip(LAYOUT.names, [(0, 21), (21, 24), (24, 24), (24, 25), (25, 37)], strict=True))
    for index, (layer, (start, stop)) in enumerate(spans.items()):
        block = problem.mean[start:stop, start:stop]
        np.testing.assert_allclose(file.layers.trace[index], np.trace(block), atol=1e-4)
        np.testing.assert_allclose(file.layers.block_norms[index, index], np.linalg.norm(block), rtol=1e-5)
        if stop == start:
            continue
        values = eigh(block)[0]
        if name != "exact" and len(values) > 6:
            values = np.concatenate([values[:2], values[-4:]])
        found = file.layers.eigenvalues[layer]
        np.testing.assert_allclose(
            found, values, rtol=0, atol=PRECISION[dtype] * np.abs(problem.mean).max() * 10
        )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_headline_numbers_are_those_of_numpy(folder, reduction):
    problem = known(reduction, dead=(0, 30))
    attrs = of_folder(write(folder, problem)).attrs
    values, vectors = eigh(problem.mean)
    gradient = problem.pooled(problem.gradients)
    shares = np.abs(values[values != 0]) / np.abs(values).sum()
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = {
        "num_parameters": NUM_ROWS,
        "num_samples": sum(NUM_SAMPLES),
        "num_batches": 3,
        "loss": float(problem.pooled(problem.losses)),
        "gradient_norm": np.linalg.norm(gradient),
        "trace": values.sum(),
        "lambda_max": values[-1],
        "lambda_min": values[0],
        "frobenius_norm": np.sqrt((values**2).sum()),
        "num_negative_eigenvalues": (values < -1e-9).sum(),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "participation_ratio": np.abs(values).sum() ** 2 / (values**2).sum(),
        "stable_rank": (values**2).sum() / values[-1] ** 2,
        "num_zero_rows": 2,
        "gradient_share_in_top_eigenspace": ((vectors[:, -4:].T @ gradient) ** 2).sum()
        / (gradient @ gradient),
        "mean_distance_between_batch_and_mean": problem.shares
        @ np.linalg.norm(problem.estimates - problem.mean, axis=(1, 2))
        / np.linalg.norm(values),
        "mean_overlap_between_batches": np.mean(
            [overlap(top_space(problem.matrices[i]), top_space(problem.matrices[j])) for i, j in pairs]
        ),
        "negative_threshold": 1e-6 * np.abs(values).max(),
    }
    assert {key: attrs[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert attrs["num_negative_eigenvalues"] > 3
    assert attrs["spectrum"] == "exact"


def test_what_topk_does_not_know_is_left_out(folder):
    problem = known()
    attrs = of_folder(write(folder, problem), TopK(num_top=4, num_bottom=0)).attrs
    assert attrs["lambda_max"] == pytest.approx(eigh(problem.mean)[0][-1], rel=1e-6)
    assert attrs["trace"] == pytest.approx(np.trace(problem.mean))
    assert not {"lambda_min", "effective_rank", "num_negative_eigenvalues"} & attrs.keys()


@pytest.mark.parametrize("name", ["topk", "slq"])
def test_passes_over_a_large_file_are_told_with_their_seconds(folder, name, monkeypatch, caplog):
    monkeypatch.setattr(Rates, "of", lambda dtype: Rates(eigenvalues=1.0, products=1e3))
    write(folder, known())
    with caplog.at_level("INFO"):
        of_folder(folder, SPECTRA[name])
        assert not [message for message in caplog.messages if "passes" in message]
        monkeypatch.setattr(decomposition, "MANY_ROWS", NUM_ROWS)
        folder.spectrum(STEP).unlink()
        of_folder(folder, SPECTRA[name])
    [line] = [message for message in caplog.messages if "passes" in message]
    assert re.fullmatch(rf"{name} of the mean, {NUM_ROWS} rows: \d+ passes or more, about [\d.]+ \w+\.", line)


def test_auto_is_settled_and_told(folder, caplog):
    write(folder, known())
    with caplog.at_level("INFO"):
        found = of_folder(folder, Auto(num_top=4))
    assert found.spectrum == "exact"
    assert [message for message in caplog.messages if message.startswith("spectrum=auto takes exact: all ")]
    assert of_folder(folder, Exact(num_top=4)).inputs_hash == found.inputs_hash  # up to date: taken as it is


def test_all_eigenvalues_of_every_batch_on_request(folder):
    problem = known()
    file = of_folder(write(folder, problem), Exact(num_top=4, all_of_batches=True))
    expected = [eigh(matrix)[0] for matrix in problem.matrices]
    np.testing.assert_allclose(file.batches.eigenvalues, expected, rtol=0, atol=1e-12 * 20)


def test_densities_are_of_the_mean_and_of_each_batch(folder):
    problem = known()
    problem.matrices[1] = problem.matrices[0]
    problem.matrices[2] = -problem.matrices[0]
    file = of_folder(write(folder, problem), Exact(num_top=4, all_of_batches=True))
    grid, batches = file.density.grid, file.density.batches
    assert file.density.values.shape == grid.shape
    assert batches.shape == (3, len(grid))
    assert (np.diff(grid) > 0).all()
    assert (batches >= 0).all()
    np.testing.assert_allclose(batches[1], batches[0], rtol=1e-6, atol=1e-9)
    high, low = (np.abs(grid - edge).argmin() for edge in (19, -19))
    assert batches[0][high] > 1e3 * batches[0][low]  # outliers above zero alone
    assert batches[2][low] > 1e3 * batches[2][high]


def test_spectra_that_are_up_to_date_stay_and_others_are_made_again(folder):
    problem = known()
    write(folder, problem)

    def version(spectrum):
        of_folder(folder, spectrum)
        return folder.spectrum(STEP).stat().st_ino, folder.spectrum(STEP).stat().st_mtime_ns

    first = version(Exact(num_top=4))
    assert version(Exact(num_top=4)) == first
    second = version(Exact(num_top=5))
    assert second != first
    assert SpectraFile.read(folder.spectrum(STEP)).num_top == 5
    third = version(TopK(num_top=5))
    assert third != second
    write(folder, problem, weights_hash="0" * 16)
    fourth = version(TopK(num_top=5))
    assert fourth != third
    *_, file = aggregate(folder, TopK(num_top=5), Threads(1), num_batches=2)
    assert file.numbers["num_batches"] == 2
    assert version(TopK(num_top=5)) != fourth


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_batch_is_named(folder, missing):
    write(folder, known())
    folder.shard(STEP, missing).unlink()
    with pytest.raises(
        PipelineError, match=rf"^\S+step-000120 lacks the shards of batches \[{missing}\]: run the stage"
    ):
        of_folder(folder)
    assert not folder.spectra.exists()


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_a_flipped_byte_is_found(folder, spectrum):
    write(folder, known())
    path = folder.shard(STEP, 2)
    with h5py.File(path) as file:
        offset = file["matrix"].id.get_chunk_info_by_coord((16, 0)).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 77] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(
        PipelineError,
        match=r"batch-00002\.h5 is damaged \(tile \(1, 0\) does not match its checksum\): delete",
    ):
        of_folder(folder, spectrum)
    assert not folder.spectra.exists()
    assert not folder.mean(STEP).exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("config_hash", "f" * 16), ("weights_hash", "f" * 16), ("matrix", "ggn"), ("reduction", "sum")],
)
def test_shards_of_two_configs_are_never_mixed(folder, key, value):
    problem = known()
    write(folder, problem)
    write_one(folder, problem, 1, num_samples=16, **{key: value})
    with pytest.raises(PipelineError, match=rf"batch-00001\.h5 holds {key}='{value}', batch-00000\.h5 holds"):
        of_folder(folder)
    assert not folder.spectra.exists()


def test_a_folder_without_shards_is_refused(folder):
    with pytest.raises(PipelineError, match="holds no shards: run the stage compute first"):
        list(aggregate(folder, Exact(), Threads(1)))


def test_one_batch_is_its_own_mean(folder):
    problem = known()
    write_one(folder, problem, 0, num_samples=16, num_batches=1)
    folder.mean(STEP).write_bytes(b"of more batches, once")
    results = of_folder(folder)
    assert not folder.mean(STEP).exists()  # no copy of the one shard, and none that is of something else
    np.testing.assert_allclose(results.mean.eigenvalues, eigh(problem.matrices[0])[0], atol=1e-12)
    assert results.batches.distance_to_mean.tolist() == [0]
    assert "mean_overlap_between_batches" not in results.attrs


def test_a_matrix_of_zeros_has_zeros(folder):
    problem = known()
    problem.matrices[:] = 0
    results = of_folder(write(folder, problem))
    assert not results.mean.eigenvalues.any()
    assert results.attrs["num_zero_rows"] == NUM_ROWS
    assert not {"effective_rank", "stable_rank"} & results.attrs.keys()


@pytest.mark.integration
def test_a_folder_of_shards_needs_neither_model_nor_data(folder):
    """By the command, with a config whose classes are gone."""
    problem = known()
    write(folder, problem)
    gone = {"model": {"_target_": "gone.Net"}, "data": {"_target_": "gone.Data"}, "config_hash": "0" * 16}
    folder.config.write_text(yaml.safe_dump({**gone, "seed": 3, "command": "python -m pipeline.run"}))
    before = folder.config.read_bytes()
    classes = ("model._target_=gone.Net", "data._target_=gone.Data")
    options = (*classes, "spectrum.num_top=4", "tracking=none", "figure_formats=[]")
    lines = succeed(folder.path, "stages=[aggregate,report]", *options)
    assert lines[-1] == f"report: {folder.report}"
    found = pipeline.open_run(folder.path)
    np.testing.assert_allclose(
        found.spectra[STEP].mean.eigenvalues, eigh(problem.mean)[0], rtol=0, atol=1e-12
    )
    assert found.summary["lambda_max"] == found.spectra[STEP].attrs["lambda_max"]
    assert folder.config.read_bytes() == before
    assert b"gone.Net" in folder.report.read_bytes()


def test_topk_aggregates_where_torch_is_not_installed(folder):
    write(folder, known())
    shutil.copytree(folder.path, folder.path.parent / "with")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.aggregate.stage import aggregate\n"
        "from pipeline.cluster import Threads\n"
        "from pipeline.system.run_folder import RunFolder\n"
        "from pipeline.spectrum import TopK\n"
        "list(aggregate(RunFolder(Path(sys.argv[1])), TopK(num_top=4), Threads(1)))\n"
    )
    assert python("-c", code, folder.path).returncode == 0
    other = RunFolder(folder.path.parent / "with")
    expected = of_folder(other, TopK(num_top=4)).mean.eigenvalues
    found = SpectraFile.read(folder.spectrum(STEP)).mean.eigenvalues
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_whole_matrix_gets_all_threads_though_the_parts_had_one_each(folder, monkeypatch):
    """Tasks that overlap: the first begins, the second begins, the first ends, the second ends."""
    calls, counts = itertools.count(), {}

    def decompose(self, matrix):
        time.sleep(0.03 * (1 + next(calls) % 2))
        counts[matrix.num_rows] = {
            pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        }
        return of_exact(self, matrix)

    of_exact = Exact.decompose
    monkeypatch.setattr(Exact, "decompose", decompose)
    write(folder, known())
    with threadpool_limits(2, "blas"):
        if not any(pool["num_threads"] == 2 for pool in threadpool_info()):
            pytest.skip("a BLAS that has one thread alone")
        of_folder(folder)
    assert counts == {37: {2}, 21: {1}, 3: {1}, 1: {1}, 12: {1}}


def test_a_batch_that_is_there_twice_is_not_counted_twice(tmp_path):
    folder = write(RunFolder(tmp_path), known())
    shutil.copy(folder.shard(120, 0), folder.shard(120, 3))
    with pytest.raises(
        PipelineError, match=r"batch-00003\.h5 holds batch 0: one shard a batch; delete it and"
    ):
        list(aggregate(folder, Exact(), Threads()))
