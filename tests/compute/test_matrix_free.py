"""Runs without matrices, against runs that store them; and what becomes of one that is cut short."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.command import SMALL, fail, succeed
from torch import nn

import pipeline
from pipeline.compute import matrix_free, strategy_choice
from pipeline.compute.matrix_free import estimate_spectra
from pipeline.compute.strategy_choice import settle_strategy
from pipeline.config import Blocks, Stage
from pipeline.criterion import CrossEntropy
from pipeline.errors import PipelineError
from pipeline.experiment.experiment import Experiment, MatrixSpec
from pipeline.matrix import GGN, Hessian
from pipeline.objective import Batch, Problem, save_weights
from pipeline.operator import CurvatureOperator, selection
from pipeline.results import SpectraFile
from pipeline.spectrum import SLQ, Exact, TopK
from pipeline.strategy import HVP, Auto, Gram, MatrixFree
from pipeline.system import RunFolder

FREE = "strategy=matrix_free"
UNEQUAL = (*SMALL, "checkpoint_steps=[0]", "spectrum.num_top=5")  # batches of 16, 16 and 8 samples

ESTIMATED = (*UNEQUAL, FREE, "spectrum=slq", "spectrum.tolerance=1e-9", "strategy.each_batch=true")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "run"
    succeed(folder, *UNEQUAL, "spectrum=exact")
    return pipeline.open_run(folder)


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimated") / "run"
    figures = "figure_formats=[png]"
    lines = succeed(folder, *ESTIMATED, figures)
    return pipeline.open_run(folder), lines


@pytest.mark.parametrize("step", [0, 20])
def test_it_estimates_what_a_stored_matrix_tells(stored, estimated, step):
    exact, found = stored.spectra[step], estimated[0].spectra[step]
    assert found.without_matrix
    assert not exact.without_matrix
    scale = exact.mean.top_eigenvalues[0]
    np.testing.assert_allclose(found.mean.top_eigenvalues, exact.mean.top_eigenvalues, atol=1e-8 * scale)
    overlaps = np.abs((found.mean.top_eigenvectors * exact.mean.top_eigenvectors).sum(axis=0))
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)
    np.testing.assert_allclose(found.mean.gradient, exact.mean.gradient, atol=1e-12)
    for key in ("loss", "gradient_norm", "lambda_min", "num_samples", "num_batches", "num_parameters"):
        assert found.numbers[key] == pytest.approx(exact.numbers[key], rel=1e-7, abs=1e-8 * scale), key
    for key in ("trace", "frobenius_norm"):
        half = found.numbers[f"{key}_half_width"]
        assert 0 < half < 0.5 * exact.numbers["frobenius_norm"], key
        assert abs(found.numbers[key] - exact.numbers[key]) <= half, key
    traces = np.abs(found.layers.trace - exact.layers.trace) <= found.layers.trace_half_width
    assert traces.mean() >= 0.75
    shares = np.searchsorted(exact.mean.eigenvalues, found.distribution.points + 1e-9, side="right")
    shares = shares / exact.numbers["num_parameters"]
    assert (found.distribution.low <= shares).all()
    assert (shares <= found.distribution.high + 1e-9).all()


@pytest.mark.parametrize("step", [0, 20])
def test_it_estimates_what_the_stored_matrices_of_batches_tell(stored, estimated, step):
    exact, file = stored.spectra[step].batches, estimated[0].spectra[step]
    found, scale = file.batches, exact.lambda_max.max()
    top = found.eigenvalues.shape[1]
    np.testing.assert_allclose(found.eigenvalues, exact.top(top), atol=1e-7 * scale)
    for key in ("num_samples", "loss", "gradient_norm", "lambda_max", "overlap_with_mean", "overlap"):
        np.testing.assert_allclose(
            getattr(found, key), getattr(exact, key), rtol=1e-6, atol=1e-7, err_msg=key
        )
    for key in ("trace", "frobenius_norm", "distance_to_mean"):
        widths, values = getattr(found, f"{key}_half_width"), getattr(exact, key)
        assert (widths < 0.5 * (1.0 if key == "distance_to_mean" else exact.frobenius_norm)).all(), key
        assert (np.abs(getattr(found, key) - values) <= 1.5 * widths).all(), key
    exact_mean = stored.spectra[step].numbers["mean_overlap_between_batches"]
    assert file.numbers["mean_overlap_between_batches"] == pytest.approx(exact_mean, abs=1e-6)


def test_the_report_says_what_is_estimated_and_how_well(estimated):
    run, lines = estimated
    page = run.folder.report.read_text()
    assert "What is estimated, and how well" in page
    assert "the matrix itself was never formed" in page
    assert "A stored matrix would have told besides" in page
    assert not run.folder.shards.exists()
    assert (run.folder.figures / "distribution.png").exists()
    assert any("products" in line for line in lines)
    assert run.summary["num_products"] == run.spectra[20].numbers["num_products"]
    assert "trace_half_width" in run.table


def test_stages_go_on_with_what_is_there(estimated, tmp_path):
    folder = estimated[0].folder
    before = folder.spectrum(20).stat().st_mtime_ns
    succeed(folder.path, *ESTIMATED)
    succeed(
        folder.path, *UNEQUAL, FREE, "stages=[aggregate,report]", "spectrum=slq", "spectrum.tolerance=1e-9"
    )
    assert folder.spectrum(20).stat().st_mtime_ns == before


def test_topk_has_no_density(tmp_path):
    succeed(tmp_path / "run", *SMALL, FREE, "spectrum=topk", "spectrum.num_top=2", "matrix=ggn")
    (file,) = pipeline.open_run(tmp_path / "run").spectra.values()
    assert file.density is None
    assert file.distribution is None
    assert len(file.mean.top_eigenvalues) == 2


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher"])
def test_a_gram_matrix_tells_all_eigenvalues_of_a_run(tmp_path, matrix):
    options = (*SMALL, f"matrix={matrix}", "spectrum.num_top=4", "stages=[train,compute,aggregate]")
    stored, found = tmp_path / "stored", tmp_path / "gram"
    succeed(stored, *options, "spectrum=exact")
    succeed(found, *options, "strategy=gram")
    ((exact,), (gram,)) = (pipeline.open_run(path).spectra.values() for path in (stored, found))
    scale = exact.mean.top_eigenvalues[0]
    np.testing.assert_allclose(gram.mean.eigenvalues, exact.mean.eigenvalues, atol=1e-10 * scale)
    overlaps = np.abs((gram.mean.top_eigenvectors * exact.mean.top_eigenvectors).sum(axis=0))
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)
    np.testing.assert_allclose(gram.layers.trace, exact.layers.trace, atol=1e-10 * scale)
    np.testing.assert_allclose(gram.modules.trace, exact.modules.trace, atol=1e-10 * scale)
    assert (gram.mean.residuals <= 1e-8 * scale).all()
    for key in ("trace", "frobenius_norm", "effective_rank", "loss", "gradient_share_in_top_eigenspace"):
        assert gram.numbers[key] == pytest.approx(exact.numbers[key], rel=1e-8), key
    assert gram.layers.trace_half_width is None


def test_the_report_of_a_gram_matrix(tmp_path):
    succeed(tmp_path / "run", *SMALL, "matrix=ggn", "strategy=gram")
    page = RunFolder(tmp_path / "run").report.read_text()
    assert "the matrix itself was never formed" in page
    assert "What is estimated" not in page


def test_a_wrong_gram_matrix_is_found_out_by_products(tmp_path, experiment, monkeypatch):
    made = matrix_free.gram_spectrum
    monkeypatch.setattr(
        matrix_free,
        "gram_spectrum",
        lambda *args, **options: replace(
            found := made(*args, **options), eigenvalues=1.01 * found.eigenvalues
        ),
    )
    spec = replace(experiment.matrix, matrix=GGN(), strategy=Gram())
    folder = checkpoints(tmp_path / "run")
    with pytest.raises(
        PipelineError, match=r"eigenpairs of the Gram matrix are .* off products with the matrix"
    ):
        estimate_spectra(folder, replace(experiment, matrix=spec, spectrum=Exact(num_top=3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["spectrum=slq"], "strategy=gram with spectrum=slq: it gives every eigenvalue"),
        (
            ["matrix=hessian"],
            "strategy=gram with matrix=hessian: a Gram matrix is that of a Gauss-Newton matrix",
        ),
    ],
)
def test_options_that_a_gram_matrix_has_no_use_for_are_refused(tmp_path, options, message):
    assert message in fail(tmp_path / "run", *SMALL, "strategy=gram", "matrix=ggn", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["blocks=layer"], "strategy=matrix_free with blocks=layer: it takes the whole matrix"),
        (
            ["spectrum=exact"],
            "strategy=matrix_free with spectrum=exact: products do not give every eigenvalue",
        ),
        (
            ["strategy.num_trace_products=3"],
            "strategy.num_trace_products=3: give a whole number of at least 12",
        ),
    ],
)
def test_options_that_need_a_matrix_are_refused(tmp_path, options, message):
    assert message in fail(tmp_path / "run", *SMALL, FREE, *options)
    assert not (tmp_path / "run" / "spectra").exists()


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 14), nn.Tanh(), nn.Linear(14, 4)).double()


@pytest.fixture(scope="module")
def experiment():
    """A net of 167 weights on 30 samples in batches of 8, the last one of 6, at two checkpoints."""
    model = net()
    samples = Batch(torch.randn(30, 6), torch.randint(0, 4, (30,)))
    return Experiment(
        problem=Problem.on(torch.device("cpu"), torch.float64, model, CrossEntropy(), samples, None, 8),
        matrix=MatrixSpec(Hessian(), MatrixFree(num_density_steps=8, each_batch=True)),
        spectrum=SLQ(num_top=3, num_bottom=2, tolerance=1e-4),
        checkpoint_steps=[0],
        last_step=40,
        num_batches=None,
        seed=0,
        slice_points=None,
        stages=frozenset(Stage),
    )


def checkpoints(path, steps=(0, 40)):
    """A folder with checkpoints, the weights of which are not far apart."""
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    model = net()
    for step in steps:
        save_weights(folder.checkpoint(step), model)
        with torch.no_grad():
            for index, weight in enumerate(model.parameters()):
                weight += 0.003 * (index + 1)
    return folder


class Cut(Exception):
    """The process ends here."""


def same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_a_run_that_is_cut_short_goes_on_to_the_same_bits(tmp_path, experiment, monkeypatch):
    monkeypatch.setattr(matrix_free, "SHARE_OF_WRITING", 0.0)  # every product is worth a file
    monkeypatch.setattr(selection, "CLEARLY", 1e9)  # a busy machine may make another way faster
    whole = checkpoints(tmp_path / "whole")
    calls, multiply = [], CurvatureOperator.matvec
    monkeypatch.setattr(CurvatureOperator, "matvec", lambda self, v: (calls.append(0), multiply(self, v))[1])
    estimate_spectra(whole, experiment)
    number = len(calls)
    assert number > 60

    cut = checkpoints(tmp_path / "cut")
    monkeypatch.setattr(matrix_free, "available_memory", lambda: 10**9)  # another choice than before
    moments = [1, 5, number // 4, number // 2, number - number // 4, -1]
    made = []

    def fused(self, vectors):
        if len(made) == moments[0]:
            raise Cut
        made.append(0)
        return multiply(self, vectors)

    monkeypatch.setattr(CurvatureOperator, "matvec", fused)
    while len(moments) > 1:
        with pytest.raises(Cut):
            estimate_spectra(cut, experiment)
        moments.pop(0)
    estimate_spectra(cut, experiment)
    assert len(made) == number  # none twice
    for step in (0, 40):
        one, other = (SpectraFile.read(folder.spectrum(step)) for folder in (whole, cut))
        same(one.arrays, other.arrays)
        assert one.attrs == other.attrs
        assert not cut.unfinished(step).exists()


def test_products_of_other_weights_are_not_taken(tmp_path, experiment, monkeypatch):
    monkeypatch.setattr(matrix_free, "SHARE_OF_WRITING", 0.0)
    folder = checkpoints(tmp_path / "run", [0])
    monkeypatch.setattr(SpectraFile, "write", lambda self, path: (_ for _ in ()).throw(Cut()))
    with pytest.raises(Cut):
        estimate_spectra(folder, experiment)
    monkeypatch.undo()
    model = net()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.5
    save_weights(folder.checkpoint(0), model)
    estimate_spectra(folder, experiment)
    fresh = checkpoints(tmp_path / "fresh", [0])
    shutil.copy(folder.checkpoint(0), fresh.checkpoint(0))
    estimate_spectra(fresh, experiment)
    same(SpectraFile.read(folder.spectrum(0)).arrays, SpectraFile.read(fresh.spectrum(0)).arrays)


def test_auto_takes_products_where_no_matrix_fits_and_stays_with_it(
    tmp_path, experiment, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    auto = replace(experiment, matrix=replace(experiment.matrix, strategy=Auto()))
    folder = RunFolder(tmp_path)
    assert settle_strategy(folder, auto) is auto
    monkeypatch.setattr(strategy_choice, "available_memory", lambda: 100_000)
    assert settle_strategy(folder, auto) is auto  # it fits on the disk
    monkeypatch.setattr(strategy_choice, "bytes_on_disk", lambda experiment: 10**18)
    taken = settle_strategy(folder, auto)
    assert isinstance(taken.matrix.strategy, MatrixFree)
    assert (
        "strategy=auto takes matrix_free, products in place of the matrix: the matrix of P = 158"
        in caplog.text
    )
    assert json.loads(folder.strategy_choice.read_text())["strategy"] == "matrix_free"
    monkeypatch.undo()
    assert isinstance(settle_strategy(folder, auto).matrix.strategy, MatrixFree)


@pytest.mark.parametrize(
    "changes",
    [
        {"spectrum": Exact()},
        {"matrix": MatrixSpec(Hessian(), HVP())},
        {"matrix": MatrixSpec(Hessian(), Auto(), blocks=Blocks.layer)},
    ],
)
def test_what_asks_for_a_matrix_is_not_given_products(tmp_path, experiment, monkeypatch, changes):
    monkeypatch.setattr(strategy_choice, "available_memory", lambda: 0)
    monkeypatch.setattr(strategy_choice, "bytes_on_disk", lambda experiment: 10**18)
    auto = replace(experiment, matrix=replace(experiment.matrix, strategy=Auto()))
    asked = replace(auto, **changes)
    assert settle_strategy(RunFolder(tmp_path), asked) is asked


def test_where_autograd_is_wrong_differences_are_taken(tmp_path, experiment):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.detach().cos()  # right, and its derivative is lost

    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](Wrong.apply(self[0](x)))

    problem = experiment.problem
    wrong = Net(*net())
    changed = replace(experiment, problem=replace(problem, model=wrong), spectrum=TopK(num_top=2))
    folder = checkpoints(tmp_path / "run", [0])
    estimate_spectra(folder, changed)  # by differences of the gradient
    assert SpectraFile.read(folder.spectrum(0)).origin["way"] == "central differences of the gradient"
