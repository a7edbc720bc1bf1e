from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_cases import CASES, bowl, spectra

from pipeline.chart_batches import top_of_batches
from pipeline.evolution import stability_limit
from pipeline.figure_batches import spread
from pipeline.figure_layers import block_norms
from pipeline.figure_slices import landscape
from pipeline.figure_spectrum import by_rank, density
from pipeline.figure_style import new_figure, save_png, signed_log, style
from pipeline.figure_training import training_curve
from pipeline.figures import OF_A_STEP, figures_of, save_figures
from pipeline.findings import Findings
from pipeline.report_words import short

NO_LIMIT = stability_limit("", {}, "hessian")
EMPTY = np.full(3, np.nan)
HISTORY = {
    "step": np.array([0.0, 60.0, 120.0]),
    "train_loss": np.array([2.3, 0.4, 0.05]),
    "train_accuracy": np.array([0.1, 0.9, 0.99]),
    "test_loss": np.array([2.31, np.nan, 0.11]),
    "test_accuracy": np.array([0.09, 0.88, 0.97]),
}


@pytest.fixture(autouse=True)
def look():
    with style():
        yield


@pytest.fixture(scope="module")
def results():
    return spectra()


def line(axes, label):
    """The data of the line whose label starts so."""
    (found,) = [each for each in axes.get_lines() if str(each.get_label()).startswith(label)]
    return found.get_xdata(), found.get_ydata()


def test_density_draws_the_mean_the_batches_and_the_top_eigenvalues(results):
    axes = density(results).axes[0]
    grid, values = results.arrays["density/grid"], results.arrays["density/values"]
    np.testing.assert_array_equal(line(axes, "spectrum of the mean"), (grid, values))
    np.testing.assert_array_equal(line(axes, "its top 5")[0], results.arrays["mean/top_eigenvalues"])
    (batches,) = [each for each in axes.collections if len(each.get_paths()) == 6]
    low = axes.get_ylim()[0]
    for path, expected in zip(batches.get_paths(), results.arrays["density/batches"], strict=True):
        np.testing.assert_array_equal(path.vertices[:, 0], grid)
        seen = expected > low
        np.testing.assert_array_equal(path.vertices[seen, 1], expected[seen])


def test_a_density_that_was_estimated_has_a_band_of_two_standard_errors(results):
    values = results.arrays["density/values"]
    estimated = type(results)(results.attrs, {**results.arrays, "density/standard_error": 0.1 * values})
    axes = density(estimated).axes[0]
    (band,) = [each for each in axes.collections if each.get_label() == "± 2 standard errors"]
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(1.2 * values.max())
    assert not [each for each in density(results).axes[0].collections if "errors" in str(each.get_label())]


def test_density_has_both_signs_and_a_logarithm_on_both_axes(results):
    axes = density(results).axes[0]
    low, high = axes.get_xlim()
    assert low < results.attrs["lambda_min"] < 0 < results.attrs["lambda_max"] < high
    assert (axes.get_xscale(), axes.get_yscale()) == ("asinh", "log")
    width = axes.xaxis.get_transform().linear_width
    assert width == pytest.approx(1e-3, rel=0.05)  # the coordinate in which the file's grid has even steps
    assert {"$10^{1}$", "0", "$-10^{-2}$"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_one_eigenvalue_of_all_is_above_the_floor_of_the_density():
    results = spectra(num_layers=40)
    axes = density(results).axes[0]
    grid, values = results.arrays["density/grid"], results.arrays["density/values"]
    assert np.interp(results.attrs["lambda_max"], grid, values) > 3 * axes.get_ylim()[0]


def test_by_rank_splits_the_signs(results):
    axes = by_rank(results).axes[0]
    eigenvalues, threshold = results.arrays["mean/eigenvalues"], results.attrs["negative_threshold"]
    num_positive, num_negative = (eigenvalues > threshold).sum(), (eigenvalues < -threshold).sum()
    ranks, positive = line(axes, f"{num_positive} positive")
    np.testing.assert_array_equal(positive, np.sort(eigenvalues[eigenvalues > 0])[::-1])
    np.testing.assert_array_equal(ranks, 1 + np.arange(len(positive)))
    negative = line(axes, f"{num_negative} negative")[1]
    np.testing.assert_array_equal(negative, np.sort(-eigenvalues[eigenvalues < 0])[::-1])
    np.testing.assert_array_equal(line(axes, "noise floor")[1], threshold)


def test_by_rank_does_not_pass_some_eigenvalues_off_as_all():
    axes = by_rank(spectra(spectrum="topk")).axes[0]
    assert len(line(axes, "5 positive computed")[1]) == 5
    assert len(line(axes, "1 negative computed")[1]) == 1


def test_block_norms_are_those_of_the_file_and_readable(results):
    axes, bar = block_norms(results).axes
    image = axes.get_images()[0]
    np.testing.assert_array_equal(image.get_array(), results.arrays["layers/block_norms"])
    assert isinstance(image.norm, matplotlib.colors.LogNorm)
    names = list(results.arrays["parameters/names"])
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert len(axes.texts) == 16
    assert "H_{ij}" in bar.get_ylabel()


def test_zero_blocks_have_no_color_and_many_blocks_no_numbers():
    results = spectra(num_layers=40)
    results.arrays["layers/block_norms"][3, 5] = 0.0
    axes = block_norms(results).axes[0]
    assert np.argwhere(np.ma.getmaskarray(axes.get_images()[0].get_array())).tolist() == [[3, 5]]
    assert not axes.texts


def test_spread_shows_batches_beside_the_mean(results):
    eigenvalues, distances, overlap, _ = spread(results).axes
    np.testing.assert_array_equal(
        line(eigenvalues, "each batch")[1], results.arrays["batches/eigenvalues"].ravel()
    )
    (mean,) = eigenvalues.collections
    drawn = [segment[0, 1] for segment in mean.get_segments()]
    np.testing.assert_array_equal(drawn, results.arrays["mean/top_eigenvalues"])
    np.testing.assert_array_equal(
        distances.get_lines()[0].get_ydata(), results.arrays["batches/distance_to_mean"]
    )
    np.testing.assert_array_equal(overlap.get_images()[0].get_array(), results.arrays["batches/overlap"])
    assert overlap.get_images()[0].get_clim() == (0.0, 1.0)


def test_all_eigenvalues_of_a_batch_give_the_same_top(results):
    top = results.arrays["batches/eigenvalues"]
    every = np.sort(np.concatenate([top, top - 100], axis=1), axis=1)
    arrays = {**results.arrays, "batches/eigenvalues": every}
    np.testing.assert_array_equal(top_of_batches(type(results)(results.attrs, arrays)), top)
    np.testing.assert_array_equal(top_of_batches(results), top)


def test_the_landscape_is_the_loss_with_its_quadratic_and_the_plane(results):
    lines, plane, _ = landscape(results, bowl()).axes
    arrays = bowl().arrays
    solid, dotted = lines.get_lines()[:2]
    np.testing.assert_allclose(
        solid.get_xydata().T, [arrays["lines/distances"][0], arrays["lines/losses"][0]]
    )
    np.testing.assert_allclose(dotted.get_ydata(), arrays["lines/losses"][0])
    assert plane.get_xlim() == (-1, 1)
    assert plane.get_ylim() == (-2, 2)
    assert landscape(results, None) is None


def test_training_curve_draws_what_is_known_and_marks_the_steps():
    loss, accuracy = training_curve(HISTORY, [0, 120]).axes
    np.testing.assert_array_equal(line(loss, "training")[1], HISTORY["train_loss"])
    np.testing.assert_array_equal(line(loss, "test"), ([0, 120], [2.31, 0.11]))
    np.testing.assert_array_equal(line(accuracy, "test")[1], HISTORY["test_accuracy"])
    assert [mark.get_xdata()[0] for mark in loss.get_lines() if mark.get_linestyle() == ":"] == [0, 120]
    assert loss.get_yscale() == "log"


def test_training_curve_without_accuracies_or_without_anything():
    (loss,) = training_curve(HISTORY | {"train_accuracy": EMPTY, "test_accuracy": EMPTY}, [120]).axes
    assert loss.get_title(loc="left") == "loss"
    assert training_curve({}, [120]) is None


def inside(figure, text):
    """Whether a text lies within the figure."""
    box, page = text.get_window_extent(), figure.bbox
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1


def apart(labels):
    """Whether tick labels along one axis keep off one another."""
    boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
    boxes.sort(key=lambda box: (box.x0 + box.x1, box.y0 + box.y1))
    return not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("draw", OF_A_STEP.values(), ids=OF_A_STEP)
@pytest.mark.parametrize("case", CASES)
def test_texts_of_odd_cases_neither_overlap_nor_leave_the_figure(case, draw):
    figure = draw(spectra(**CASES[case]))
    if case == "one batch" and draw is spread:
        assert figure is None
        return
    figure.draw_without_rendering()
    assert inside(figure, figure._suptitle)
    for axes in figure.axes:
        assert axes.get_label() == "<colorbar>" or axes.bbox.width > 0.12 * figure.bbox.width
        assert axes.bbox.height > 0.3 * figure.bbox.height
        for text in [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]:
            assert not text.get_text() or inside(figure, text)
        if axes.get_legend():
            assert all(inside(figure, text) for text in axes.get_legend().get_texts())
        if all(label.get_rotation() in {0, 90} for label in axes.get_xticklabels()):
            assert apart(axes.get_xticklabels())
        assert apart(axes.get_yticklabels())


def test_an_all_zero_matrix_says_so():
    results = spectra(zero=True)
    assert by_rank(results).axes[0].texts[0].get_text() == "all 48 eigenvalues are zero"
    assert block_norms(results).axes[0].texts[0].get_text() == "all blocks are zero"


def test_names_with_dollars_and_of_any_length_are_no_formulas(tmp_path):
    names = ["$x", "a$b$", "_", "w" * 200]
    axes = block_norms(spectra(names=names)).axes[0]
    assert axes.get_yticklabels()[0].get_text() == r"\$x"
    save_png(axes.figure, tmp_path / "figure.png")


def test_short_keeps_both_ends():
    assert short("fc1.weight") == "fc1.weight"
    assert short("encoder.layers.11.attention.in_proj.weight", 20) == "encode…n_proj.weight"


@pytest.mark.parametrize(("low", "high"), [(-1e-3, 30.0), (0.0, 1e-7), (-1e6, 2e6), (-4.0, 1e-9)])
def test_signed_log_has_zero_and_a_few_powers_of_ten(low, high):
    axes = new_figure().add_subplot()
    signed_log(axes, "x", low, high, max(-low, high) * 1e-8)
    ticks = axes.xaxis.get_majorticklocs()
    assert 0 in ticks
    assert 2 <= len(ticks) <= 12
    powers = np.log10(np.abs(ticks[ticks != 0]))
    np.testing.assert_allclose(powers, np.round(powers), atol=1e-9)


def test_pngs_are_whole_have_their_names_and_a_resolution(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.figure_style.DPI", 100)
    results = {60: spectra(step=60, num_layers=2), 120: spectra(step=120, num_layers=2)}
    figures = figures_of(Findings(results, HISTORY, NO_LIMIT, {}))
    paths = list(save_figures(figures, tmp_path))
    of_a_step = {"density.png", "eigenvalues.png", "block_norms.png", "batches.png"}
    of_all = {"training.png", "steps.png", "density_steps.png", "overlap_steps.png"}
    assert {path.name for path in tmp_path.iterdir()} == of_a_step | of_all
    assert {path.name for path in paths} == of_a_step | of_all | {"landscape.png"}  # which is not drawn here
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.info["dpi"] == pytest.approx((100, 100), abs=0.1)
            assert image.convert("L").getextrema()[0] < 100  # something dark is drawn


def test_a_png_is_made_for_slides(results, tmp_path):
    assert save_png(by_rank(results), tmp_path / "figure.png") == (1600, 900)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (1600, 900)


def test_a_figure_that_is_not_drawn_leaves_none_of_an_earlier_report(tmp_path):
    (tmp_path / "training.png").write_bytes(b"old")
    results = spectra(num_layers=1)
    for name in ("grid", "values", "batches"):
        del results.arrays[f"density/{name}"]
    list(save_figures(figures_of(Findings({120: results}, {}, NO_LIMIT, {})), tmp_path))
    assert {path.stem for path in tmp_path.iterdir()} == {"eigenvalues", "block_norms", "batches"}
    assert not (tmp_path / "training.png").exists()


def test_the_users_settings_come_back_and_play_no_part():
    with matplotlib.rc_context({"font.size": 33}):
        with style():
            assert matplotlib.rcParams["font.size"] == 11
        assert matplotlib.rcParams["font.size"] == 33
