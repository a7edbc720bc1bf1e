"""The loss along eigenvectors: a quadratic loss in closed form, the quadratic near zero, batches not to be joined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pipeline
from pipeline.compute import loss_landscape
from pipeline.compute.loss_landscape import Landscape, slice_steps
from pipeline.criterion import SquaredError
from pipeline.errors import PipelineError
from pipeline.objective.batch import Batch
from pipeline.objective.checkpoints import save_weights
from pipeline.results.spectra_file import LandscapeFile, LayerBlocks, MeanSpectrum, SpectraFile
from pipeline.system.run_folder import RunFolder


class Spread:
    """A loss in which samples mix: the variance of the outputs within a batch."""

    def __call__(self, outputs, targets):
        return (outputs - targets).var(dim=0).sum()


def problem(model, criterion, num_points=27, sizes=(16, 16, 8), summed=False):
    """A landscape of three ragged batches, and its loss, gradient and Hessian by other means."""
    torch.manual_seed(0)
    model = model.double()
    batches = [Batch(torch.randn(n, 5).double(), torch.randn(n, 3).double()) for n in sizes]
    shares = [1.0 if summed else n / sum(sizes) for n in sizes]
    matrices = [pipeline.hessian(model, criterion, *batch, strategy="autograd").numpy() for batch in batches]
    matrix = sum(share * each for share, each in zip(shares, matrices, strict=True))
    losses = [criterion(model(batch.inputs), batch.targets) for batch in batches]
    loss = sum(share * each for share, each in zip(shares, losses, strict=True))
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    values, vectors = np.linalg.eigh(matrix)
    mean = MeanSpectrum(values, values[::-1][:4], vectors[:, ::-1][:, :4], np.zeros(4), gradient.numpy())
    none = np.zeros(0)
    spectra = SpectraFile(
        7,
        "hessian",
        "exact",
        "one",
        {"loss": float(loss.detach())},
        {},
        mean,
        LayerBlocks((), (), none, none, none, {}),
    )
    return Landscape(model, criterion, batches, None, num_points), spectra


def laid_down(path, landscape, spectra):
    folder = RunFolder(path)
    save_weights(folder.checkpoint(7), landscape.model)
    spectra.write(folder.spectrum(7))
    return folder


def linear():
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def curved():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum"])
def test_a_quadratic_loss_is_its_quadratic_everywhere(tmp_path, summed):
    landscape, spectra = problem(linear(), SquaredError("sum" if summed else "mean"), summed=summed)
    [(step, found)] = slice_steps(laid_down(tmp_path, landscape, spectra), landscape)
    assert step == 7
    file = found
    assert file.lines.losses.shape == (3, 27)
    assert file.lines.losses[0, 13] == pytest.approx(spectra.numbers["loss"], rel=1e-12)
    for line in range(3):
        np.testing.assert_allclose(file.lines.losses[line], found.lines.quadratic(line), rtol=1e-9)
    t1, t2 = np.meshgrid(file.plane.first, file.plane.second)
    slopes, (first, second, _) = file.lines.slopes, file.lines.eigenvalues
    expected = (
        spectra.numbers["loss"] + slopes[0] * t1 + slopes[1] * t2 + (first * t1**2 + second * t2**2) / 2
    )
    np.testing.assert_allclose(file.plane.losses, expected, rtol=1e-9)


def test_near_zero_any_loss_is_its_quadratic(tmp_path):
    """What is left over goes as t³: it vanishes against ½λt², by half where t is halved."""
    landscape, spectra = problem(curved(), SquaredError(), num_points=121)
    [(_, found)] = slice_steps(laid_down(tmp_path, landscape, spectra), landscape)
    for line, eigenvalue in enumerate(found.lines.eigenvalues):
        t, losses = found.lines.distances[line], found.lines.losses[line]
        left = np.abs(losses - found.lines.quadratic(line)) / (eigenvalue * t**2 / 2 + (t == 0))
        near, half = left[[60 - 4, 60 + 4]], left[[60 - 2, 60 + 2]]
        assert near.max() < 0.1
        np.testing.assert_allclose(half, near / 2, rtol=0.2, atol=2e-3)
    assert left[0] > 0.01  # and far from zero it is another


def test_a_line_reaches_where_the_quadratic_gains_what_training_took(tmp_path):
    landscape, spectra = problem(linear(), SquaredError())
    folder = laid_down(tmp_path, landscape, spectra)
    folder.history.write_text("step,train_loss\n0,0.5\n7,\n9,0.25\n")
    gain = max(0.5, spectra.numbers["loss"])
    [(_, found)] = slice_steps(folder, landscape)
    norm = float(torch.cat([w.detach().flatten() for w in landscape.model.parameters()]).norm())
    for line, eigenvalue in enumerate(found.lines.eigenvalues):
        assert found.lines.distances[line, -1] == pytest.approx(min(np.sqrt(2 * gain / eigenvalue), norm))


def test_batches_whose_samples_mix_are_not_joined(tmp_path):
    landscape, spectra = problem(curved(), Spread())
    [(_, found)] = slice_steps(laid_down(tmp_path, landscape, spectra), landscape)
    assert found.lines.losses[0, 13] == pytest.approx(spectra.numbers["loss"], rel=1e-12)
    joined = [torch.cat(parts) for parts in zip(*landscape.batches, strict=True)]
    with torch.no_grad():
        at_once = float(landscape.criterion(landscape.model(joined[0]), joined[1]))
    assert abs(at_once - spectra.numbers["loss"]) > 0.01 * spectra.numbers["loss"]


def test_batches_are_joined_up_to_a_number_of_samples(tmp_path, monkeypatch):
    landscape, spectra = problem(linear(), SquaredError())
    monkeypatch.setattr(
        "pipeline.compute.loss_landscape.NUM_AT_ONCE", 24
    )  # of 16, 16 and 8 samples the last two
    assert [
        batch.num_samples for batch in loss_landscape.joined(landscape.batches, loss_landscape.NUM_AT_ONCE)
    ] == [16, 24]
    [(_, found)] = slice_steps(laid_down(tmp_path, landscape, spectra), landscape)
    np.testing.assert_allclose(found.lines.losses[0], found.lines.quadratic(0), rtol=1e-9)


def test_what_is_there_is_taken_and_what_belongs_to_other_spectra_is_not(tmp_path):
    landscape, spectra = problem(linear(), SquaredError())
    folder = laid_down(tmp_path, landscape, spectra)
    list(slice_steps(folder, landscape))
    before = folder.slices(7).stat().st_mtime_ns
    list(slice_steps(folder, landscape))
    assert folder.slices(7).stat().st_mtime_ns == before
    replace(spectra, inputs_hash="two").write(folder.spectrum(7))
    list(slice_steps(folder, landscape))
    assert folder.slices(7).stat().st_mtime_ns > before
    assert LandscapeFile.read(folder.slices(7)).inputs_hash == "two"


def test_without_spectra_there_is_an_error(tmp_path):
    landscape, _ = problem(linear(), SquaredError())
    with pytest.raises(PipelineError, match="has no eigenvectors: run the stage aggregate before slices"):
        list(slice_steps(RunFolder(tmp_path), landscape))


def test_one_eigenvector_has_a_line_and_no_plane(tmp_path):
    landscape, spectra = problem(linear(), SquaredError())
    mean = replace(
        spectra.mean,
        top_eigenvalues=spectra.mean.top_eigenvalues[:1],
        top_eigenvectors=spectra.mean.top_eigenvectors[:, :1],
    )
    [(_, found)] = slice_steps(laid_down(tmp_path, landscape, replace(spectra, mean=mean)), landscape)
    assert found.lines.losses.shape == (1, 27)
    assert found.plane is None
