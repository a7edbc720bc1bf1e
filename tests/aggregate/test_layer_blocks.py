"""Trace and λmax of each layer's diagonal block, against dense matrices and NumPy."""

import logging

import numpy as np
import pytest
from support.shard_cases import ATTRS, known, write

from pipeline.aggregate import decomposition
from pipeline.aggregate.decomposition import affordable_spans, module_blocks
from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.results.spectra_file import SpectraFile
from pipeline.shards.shard import open_shard
from pipeline.spectrum import SLQ, Exact, TopK
from pipeline.system.run_folder import RunFolder

STEP = ATTRS["step"]
SPECTRA = [Exact(num_top=4), TopK(num_top=4, num_bottom=2), SLQ(num_top=4, num_bottom=2, num_steps=4)]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: type(spectrum).__name__)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_layers_block_holds_its_weight_and_bias(folder, spectrum, dtype):
    problem = known("sum", dtype)
    [file] = aggregate(write(folder, problem), spectrum, Threads(2))
    modules = SpectraFile.read(folder.spectrum(STEP)).modules
    np.testing.assert_array_equal(modules.lambda_max, file.modules.lambda_max)
    # "first" has a weight and a bias, the model itself a scale and a parameter without weights, "second" a weight
    assert modules.names.tolist() == ["first", "nothing", "second"]
    assert modules.sizes.tolist() == [24, 1, 12]
    for index, (start, stop) in enumerate([(0, 24), (24, 25), (25, 37)]):
        block = problem.mean[start:stop, start:stop].astype(np.float64)
        largest = np.linalg.eigvalsh(block)[-1]
        scale = np.abs(np.linalg.eigvalsh(block)).max()
        np.testing.assert_allclose(modules.lambda_max[index], largest, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(modules.trace[index], np.trace(block), rtol=1e-5)
    weight = file.layers.eigenvalues["first.weight"][-1]
    assert (
        modules.lambda_max[0] > weight + 1e-3
    )  # of the weight alone it is smaller: a bias interacts with it


def test_a_layer_without_weights_or_a_decomposition_has_no_largest_eigenvalue():
    layout = Layout(("a.weight", "b.empty", "c.weight", "c.bias"), ((2,), (0,), (3,), (1,)))
    blocks = module_blocks(layout, np.array([1.0, 0.0, 2.0, 0.5]), {"a.weight": np.array([0.2, 0.8])}, {})
    assert blocks.names.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(blocks.trace, [1.0, 0.0, 2.5])
    np.testing.assert_array_equal(blocks.lambda_max, [0.8, np.nan, np.nan])


def test_a_largest_eigenvalue_that_does_not_converge_is_told_and_the_rest_is_there(
    folder, monkeypatch, caplog
):
    def refuse(*_args, **_options):
        raise PipelineError("not converged")

    monkeypatch.setattr(TopK, "decompose", refuse)
    problem = known()
    caplog.set_level(logging.WARNING)
    [file] = aggregate(write(folder, problem), Exact(num_top=4, all_of_batches=True), Threads(1))
    assert np.isnan(file.modules.lambda_max[0])
    assert file.numbers["lambda_max"] == pytest.approx(np.linalg.eigvalsh(problem.mean)[-1])
    assert "no largest eigenvalue of layer-0: not converged" in caplog.messages


def test_a_spectra_file_of_an_earlier_version_is_made_again_from_the_same_mean(folder, monkeypatch):
    [made] = aggregate(write(folder, known()), SPECTRA[0], Threads(1))
    path, mean = folder.spectrum(STEP), folder.mean(STEP)
    before = mean.stat().st_mtime_ns
    object.__setattr__(made, "modules", None)
    made.write(path)
    assert SpectraFile.read(path).modules is None
    [again] = aggregate(folder, SPECTRA[0], Threads(1))
    assert again.modules is not None
    assert again.inputs_hash == made.inputs_hash
    assert mean.stat().st_mtime_ns == before
    written = path.stat().st_mtime_ns
    list(aggregate(folder, SPECTRA[0], Threads(1)))
    assert path.stat().st_mtime_ns == written  # up to date: taken as it is


def test_a_block_that_is_most_of_a_large_matrix_on_disk_is_left_out(folder, monkeypatch):
    mean = open_shard(write(folder, known()).shard(STEP, 0))
    spans = {"most": slice(0, 30), "some": slice(30, 37), "none": slice(37, 37)}
    assert [*affordable_spans(mean, spans, in_memory=False)] == ["most", "some"]
    monkeypatch.setattr(decomposition, "LARGE_BLOCK", 100)
    assert [*affordable_spans(mean, spans, in_memory=False)] == ["some"]
    assert [*affordable_spans(mean, spans, in_memory=True)] == ["most", "some"]
