"""Charts as PNG files: the numbers of the charts, texts that keep off one another, files that are whole."""

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_rgba
from PIL import Image
from support.report_cases import CASES, bowl, estimated, spectra

from pipeline.report.charts import charts_of
from pipeline.report.data import ReportData
from pipeline.report.figure_style import new_figure, save_png, signed_log, style
from pipeline.report.figures import PICTURES, _color, _text, draw_pictures, picture
from pipeline.report.page.page import THEMES, Arrays, Chart
from pipeline.results.evolution import StabilityLimit, common_densities, stability_limit
from pipeline.results.number_format import short

LIMITS = {
    "lambda_max": stability_limit("GD", {"learning_rate": 0.1}, "hessian"),
    "lambda_max_preconditioned": StabilityLimit(38.0, "2(1+β₁)/((1−β₁)η)", "Dashed."),
}
HISTORY = {
    "step": np.array([0.0, 60.0, 120.0]),
    "train_loss": np.array([2.3, 0.4, 0.05]),
    "train_accuracy": np.array([0.1, 0.9, 0.99]),
    "test_loss": np.array([2.31, np.nan, 0.11]),
    "test_accuracy": np.array([0.09, 0.88, 0.97]),
}
CONTEXT = "Hessian at step 120  ·  P = 48 weights  ·  317 samples  ·  6 batches"
STEP = {"step": "120"}


@pytest.fixture(autouse=True)
def look():
    with style():
        yield


def described(*files, history=HISTORY, slices=None):
    """The charts of these spectra by name, and their arrays."""
    arrays, results = Arrays(), {file.step: file for file in files}
    found = ReportData(results, history, LIMITS, {120: bowl()} if slices is None else slices)
    sections = charts_of(found, arrays)
    return {chart.name: chart for charts in sections.values() for chart in charts}, arrays


def drawn(name, *files, **options):
    """The axes of a picture, those of color bars among them."""
    charts, arrays = described(*files, **options)
    return picture([charts[part] for part in PICTURES[name] if part in charts], arrays, STEP, CONTEXT).axes


@pytest.fixture(scope="module")
def several():
    return [spectra(step=step, num_layers=3) for step in (60, 120)]


def line(axes, label):
    """The data of the line of that label."""
    (found,) = [each for each in axes.get_lines() if str(each.get_label()) == label]
    return found.get_xdata(), found.get_ydata()


def near(actual, expected):
    """To the five digits that a page keeps."""
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-30)


def test_the_density_has_the_numbers_of_the_file_and_a_logarithm_on_both_sides_of_zero(several):
    file, (axes,) = several[-1], drawn("density", *several)
    grid, values = line(axes, "the mean matrix")
    near(grid, file.density.grid)
    seen = file.density.values > axes.get_ylim()[0]
    near(values[seen], file.density.values[seen])
    near(line(axes, "its top 5 eigenvalues")[0], file.mean.top_eigenvalues)
    assert len([each for each in axes.get_lines() if each.get_linewidth() < 1]) == 6  # batches
    assert (axes.get_xscale(), axes.get_yscale()) == ("asinh", "log")
    low, high = axes.get_xlim()
    assert low < file.numbers["lambda_min"] < 0 < file.numbers["lambda_max"] < high
    assert {"$10^{1}$", "0", "$-10^{-2}$"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_a_density_that_was_estimated_has_a_band_of_two_standard_errors():
    file = spectra()
    estimated = replace(file, density=replace(file.density, standard_error=0.1 * file.density.values))
    (axes,) = drawn("density", estimated)
    (band,) = [each for each in axes.collections if each.get_label() == "± 2 standard errors"]
    path = band.get_paths()[0].vertices
    assert path[:, 1].max() == pytest.approx(1.2 * file.density.values.max(), rel=1e-4)
    highest = file.density.grid[file.density.values.argmax()]
    ends = path[np.isclose(path[:, 0], highest, rtol=1e-4), 1]
    near(sorted(ends), file.density.values.max() * np.array([0.8, 1.2]))
    assert not [each for each in drawn("density", file)[0].collections if "errors" in str(each.get_label())]


def test_eigenvalues_are_split_by_sign(several):
    (axes,) = drawn("eigenvalues", *several)
    values = several[-1].mean.eigenvalues
    ranks, positive = line(axes, "positive")
    near(positive, np.sort(values[values > 0])[::-1])
    np.testing.assert_array_equal(ranks, 1 + np.arange(len(positive)))
    near(line(axes, "negative")[1], np.sort(-values[values < 0])[::-1])
    near(line(axes, "noise floor")[1], several[-1].numbers["negative_threshold"])


def test_block_norms_have_numbers_names_and_colors_by_the_logarithm(several):
    axes, bar = drawn("block_norms", *several)
    (image,) = axes.get_images()
    layers = several[-1].layers
    near(image.get_array(), layers.block_norms)
    assert isinstance(image.norm, LogNorm)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(layers.names)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(layers.names)
    assert len(axes.texts) == 9
    assert bar.get_ylabel() == "norm of the block"


def test_zero_blocks_have_no_color_and_many_blocks_no_numbers():
    file = spectra(num_layers=40)
    file.layers.block_norms[3, 5] = 0.0
    axes = drawn("block_norms", file)[0]
    assert np.argwhere(np.ma.getmaskarray(axes.get_images()[0].get_array())).tolist() == [[3, 5]]
    assert not axes.texts


def test_batches_stand_beside_the_mean():
    file = spectra()
    eigenvalues, distances, overlap, _ = drawn("batches", file)
    near(np.sort(line(eigenvalues, "each batch")[1]), np.sort(file.batches.eigenvalues.ravel()))
    near(line(eigenvalues, "the mean matrix")[1], file.mean.top_eigenvalues)
    near([bar.get_height() for bar in distances.patches], file.batches.distance_to_mean)
    (image,) = overlap.get_images()
    near(image.get_array(), file.batches.overlap)
    assert image.get_clim() == (0.0, 1.0)


def test_the_landscape_is_the_loss_with_its_quadratic_and_the_plane(several):
    lines, plane, _ = drawn("landscape", *several)
    solid, dotted = lines.get_lines()[:2]
    np.testing.assert_allclose(
        solid.get_xydata().T, [bowl().lines.distances[0], bowl().lines.losses[0]], rtol=2e-5, atol=1e-5
    )
    near(dotted.get_ydata(), bowl().lines.losses[0])
    assert (plane.get_xlim(), plane.get_ylim()) == ((-1, 1), (-2, 2))
    assert plane.get_xlabel() == r"distance t$_{\mathrm{1}}$ along v$_{\mathrm{1}}$"


def test_training_curves_are_what_is_known_and_the_steps_are_marked(several):
    loss, accuracy = drawn("training", *several)
    near(line(loss, "training samples")[1], HISTORY["train_loss"])
    near(line(loss, "test samples"), ([0, 120], [2.31, 0.11]))
    near(line(accuracy, "test samples")[1], HISTORY["test_accuracy"])
    assert [mark.get_xdata()[0] for mark in loss.get_lines() if mark.get_linestyle() == ":"] == [60, 120]
    assert loss.get_yscale() == "log"
    unknown = HISTORY | dict.fromkeys(("train_accuracy", "test_accuracy"), np.full(3, np.nan))
    assert len(drawn("training", *several, history=unknown)) == 1


def test_along_the_steps_there_is_a_point_each_and_the_limit(several):
    ranked = [replace(file, numbers=file.numbers | {"effective_rank": 3.0 + file.step}) for file in several]
    largest, trace, rank = drawn("steps", *ranked)
    for axes, key in ((largest, "lambda_max"), (trace, "trace"), (rank, "effective_rank")):
        near(axes.get_lines()[0].get_xydata().T, ([60, 120], [file.numbers[key] for file in ranked]))
    near(line(largest, "2/η = 20.0")[1], [20.0, 20.0])
    assert rank.get_title(loc="left") == "Effective rank"


def test_the_preconditioned_sharpness_has_a_limit_of_its_own(several):
    files = [replace(file, numbers=file.numbers | {"lambda_max_preconditioned": 30.0}) for file in several]
    (axes,) = drawn("sharpness_steps", *files)
    near(axes.get_lines()[0].get_ydata(), [30.0, 30.0])
    near(line(axes, "2(1+β₁)/((1−β₁)η) = 38.0")[1], [38.0, 38.0])


def test_layers_have_a_line_each_along_training_and_a_bar_each_at_a_step(several):
    modules = [file.modules for file in several]
    for axes, key in zip(drawn("layer_steps", *several), ("lambda_max", "trace"), strict=True):
        for layer, name in enumerate(modules[0].names):
            near(line(axes, name), ([60, 120], [getattr(each, key)[layer] for each in modules]))
    for axes, key in zip(drawn("layers", *several), ("lambda_max", "trace"), strict=True):
        near([bar.get_height() for bar in axes.patches], getattr(modules[-1], key))
        assert [label.get_text() for label in axes.get_xticklabels()] == list(modules[-1].names)


def test_of_many_layers_those_with_the_largest_numbers_have_lines():
    files = [spectra(step=step, num_layers=40, num_batches=1) for step in (60, 120)]
    charts, arrays = described(*files, slices={})
    chart = charts["layers_along_lambda_max"]
    last = np.array([arrays.get(trace["y"])[-1] for trace in chart.traces])
    near(np.sort(last), np.sort(files[-1].modules.lambda_max)[-15:])
    assert "The 15 layers where it is largest" in chart.reading


def test_the_gradient_has_a_cosine_with_each_top_eigenvector(several):
    vectors, gradient = several[-1].mean.top_eigenvectors, several[-1].mean.gradient
    cosines = np.abs(vectors.T @ gradient) / np.linalg.norm(gradient)
    bars, spread = drawn("directions", *several)
    near([bar.get_height() for bar in bars.patches], cosines)
    near([bar.get_height() for bar in spread.patches], 1 / (vectors**4).sum(0))
    share, heat, _ = drawn("gradient_steps", *several)
    near(heat.get_images()[0].get_array()[-1], cosines)
    near(share.get_lines()[0].get_ydata(), [0.71, 0.71])


def test_without_layers_of_its_own_or_a_gradient_a_file_has_no_such_charts():
    file = spectra()
    flat = replace(file.mean, gradient=np.zeros_like(file.mean.gradient))
    charts, _ = described(*(replace(file, step=step, modules=None, mean=flat) for step in (60, 120)))
    assert (
        not {*PICTURES["layers"], *PICTURES["layer_steps"], "gradient_cosines", "cosine_steps"}
        & charts.keys()
    )
    assert "participation" in charts


def test_steps_that_crowd_at_the_start_have_a_logarithm_and_whole_labels():
    files = [spectra(step=step, num_layers=1) for step in (0, 1, 10, 100, 1000, 10_000)]
    axes = drawn("steps", *files, slices={})[0]
    assert axes.get_xscale() == "asinh"
    labels = {label.get_text() for label in axes.get_xticklabels()}
    assert "0" in labels
    assert "10,000" in labels


def test_densities_along_have_a_row_a_step_and_marks_at_the_top_eigenvalues(several):
    axes, _ = drawn("density_steps", *several)
    mesh = axes.collections[0]
    found = common_densities({file.step: file for file in several})
    shown = (found.values > found.floor).any(axis=0)
    assert (np.ma.filled(mesh.get_array(), 0) > 0).sum() == (found.values[:, shown] > found.floor).sum()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["60", "120"]
    (marks,) = axes.get_lines()
    near(marks.get_xdata(), np.concatenate([file.mean.top_eigenvalues for file in several]))
    np.testing.assert_array_equal(marks.get_ydata(), np.repeat([0, 1], 5))


def test_one_step_has_no_pictures_of_an_evolution():
    charts, _ = described(spectra())
    assert not {*PICTURES["steps"], *PICTURES["density_steps"], *PICTURES["overlap_steps"]} & charts.keys()


def test_every_chart_of_a_run_stands_in_one_picture(several):
    further = {"effective_rank": 3.0, "lambda_max_preconditioned": 20.0}
    charts, _ = described(*(replace(file, numbers=file.numbers | further) for file in several))
    of_estimates, _ = described(estimated())
    charts["distribution"] = of_estimates["distribution"]
    assert set(of_estimates) <= set(charts)
    of_runs = (parts for name, parts in PICTURES.items() if name != "law")  # those are in tests/law/
    assert sorted(charts) == sorted(part for parts in of_runs for part in parts)


def inside(figure, text):
    """Whether a text lies within the figure."""
    box, page = text.get_window_extent(), figure.bbox
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1


def apart(labels):
    """Whether tick labels along one axis keep off one another."""
    boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
    boxes.sort(key=lambda box: (box.x0 + box.x1, box.y0 + box.y1))
    return not any(a.overlaps(b) for a, b in pairwise(boxes))


def readable(figure):
    figure.draw_without_rendering()
    assert inside(figure, figure._suptitle)
    for axes in figure.axes:
        assert axes.get_label() == "<colorbar>" or axes.bbox.width > 0.12 * figure.bbox.width
        assert axes.bbox.height > 0.3 * figure.bbox.height
        for text in [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]:
            assert not text.get_text() or inside(figure, text)
        if axes.get_legend():
            assert all(inside(figure, text) for text in axes.get_legend().get_texts())
            legend = axes.get_legend().get_window_extent()
            assert not legend.overlaps(axes._left_title.get_window_extent())
        if all(label.get_rotation() in {0, 90} for label in axes.get_xticklabels()):
            assert apart(axes.get_xticklabels())
        assert apart(axes.get_yticklabels())


@pytest.mark.parametrize("case", CASES)
def test_texts_of_odd_cases_neither_overlap_nor_leave_the_figure(case):
    charts, arrays = described(spectra(**CASES[case]))
    for parts in PICTURES.values():
        shown = [charts[part] for part in parts if part in charts and charts[part].visible(STEP)]
        if shown:
            readable(picture(shown, arrays, STEP, CONTEXT))
    assert ("batch_overlaps" in charts) == (case != "one batch")


@pytest.mark.parametrize("steps", [(60, 120), (0, 1, 3, 10, 30, 60, 90, 120), tuple(range(0, 121, 2))])
def test_texts_of_many_steps_neither_overlap_nor_leave_the_figure(steps):
    charts, arrays = described(*(spectra(step=step, num_layers=1, num_batches=2) for step in steps))
    for name in [name for name in PICTURES if name.endswith("steps") and name != "sharpness_steps"]:
        readable(picture([charts[part] for part in PICTURES[name] if part in charts], arrays, STEP, CONTEXT))


def test_an_all_zero_matrix_says_so():
    assert "all blocks are zero" in drawn("block_norms", spectra(zero=True))[0].texts[0].get_text()
    charts, _ = described(spectra(zero=True))
    assert "all eigenvalues are zero" in charts["eigenvalues"].reading


def test_names_with_dollars_and_of_any_length_are_no_formulas(tmp_path):
    names = ["$x", "a$b$", "_", "w" * 200]
    axes = drawn("block_norms", spectra(names=names))[0]
    assert axes.get_yticklabels()[0].get_text() == r"\$x"
    save_png(axes.figure, tmp_path / "figure.png")


def test_html_and_colors_of_a_page_are_those_of_matplotlib():
    assert _text('<span class="unbroken">λ</span><sub>max</sub>') == r"λ$_{\mathrm{max}}$"
    assert _color("@blue") == to_rgba(THEMES["light"]["blue"])
    assert _color("rgba(0,114,178,.22)") == (0, 114 / 255, 178 / 255, 0.22)


def test_a_chart_shows_the_step_and_the_choice_that_is_made():
    traces = [{"meta": {"step": step, "batch": batch}} for step in (60, 120) for batch in ("every", "3")]
    traces.append({"name": "always"})
    chart = Chart("x", "x", "x", traces, {}, choices={"batch": ("batch", {"every": "all", "3": "3"})})
    assert chart.visible(STEP) == [traces[2], traces[4]]


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


def test_pngs_are_whole_have_their_names_and_a_resolution(several, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.report.figure_style.DPI", 100)
    (tmp_path / "landscape.png").write_bytes(b"of an earlier report")
    charts, arrays = described(*several, slices={})
    paths = list(draw_pictures(list(charts.values()), arrays, STEP, CONTEXT, tmp_path))
    assert {path.stem for path in paths} == set(PICTURES)
    missing = {"landscape", "sharpness_steps", "distribution", "law"}
    assert {path.stem for path in tmp_path.iterdir()} == set(PICTURES) - missing
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.info["dpi"] == pytest.approx((100, 100), abs=0.1)
            assert image.convert("L").getextrema()[0] < 100  # something dark is drawn


def test_pdfs_and_svgs_are_whole_undated_and_the_same_whenever_they_are_drawn(several, tmp_path):
    charts, arrays = described(*several)
    shown = [
        each for each in charts.values() if each.name in {*PICTURES["steps"], *PICTURES["density_steps"]}
    ]
    for attempt in ("one", "two"):
        list(draw_pictures(shown, arrays, STEP, CONTEXT, tmp_path / attempt, ["pdf", "svg"]))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["density_steps.pdf", "density_steps.svg", "steps.pdf", "steps.svg"]
    for name in files:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert b"Date" not in content
    pdf = (tmp_path / "one" / "steps.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    svg = ElementTree.parse(tmp_path / "one" / "steps.svg").getroot()
    width, height = picture(
        [charts[name] for name in PICTURES["steps"] if name in charts], arrays, STEP
    ).get_size_inches()
    assert float(svg.get("width").removesuffix("pt")) == pytest.approx(72 * width)
    assert float(svg.get("height").removesuffix("pt")) == pytest.approx(72 * height)


def test_figures_in_formats_that_are_not_asked_for_are_removed(several, tmp_path):
    for name in ("density.pdf", "density.svg", "landscape.svg", "of_mine.pdf"):
        (tmp_path / name).write_bytes(b"of an earlier report")
    charts, arrays = described(*several, slices={})
    list(draw_pictures([charts["density"]], arrays, STEP, CONTEXT, tmp_path, ["png"]))
    assert {path.name for path in tmp_path.iterdir()} == {"density.png", "of_mine.pdf"}


def test_the_users_settings_come_back_and_play_no_part():
    with matplotlib.rc_context({"font.size": 33}):
        with style():
            assert matplotlib.rcParams["font.size"] == 11
        assert matplotlib.rcParams["font.size"] == 33
