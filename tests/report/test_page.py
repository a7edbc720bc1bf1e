"""The page in a real browser: drawn offline, with the numbers of the files, for each choice, scheme and width."""

import numpy as np
import pytest
from support.report_cases import bowl, put, spectra

from pipeline.report.page.page import Arrays, thinned, thinned_ranks
from pipeline.report.report import make_report
from pipeline.results.evolution import linear_width
from pipeline.system.run_folder import RunFolder
from scripts.screenshot import browser, find_chromium

STEPS = (0, 1, 10, 120)
DRAWN = "document.documentElement.classList.contains('drawn')"
TRAINING = {"training": {"_target_": "pipeline.training.GD", "learning_rate": 0.1}}
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def results():
    return {step: spectra(step=step, num_layers=3) for step in STEPS}


@pytest.fixture(scope="module")
def page(tmp_path_factory, results):
    """A browser without a network, in which the report of four steps is open."""
    folder = RunFolder(tmp_path_factory.mktemp("page"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.figures.PICTURES", {})  # the PNGs are tested elsewhere
        bowl().write(folder.slices(120))
        make_report(put(folder, *results.values(), config=TRAINING))
    with browser(find_chromium()) as page:
        page.offline()
        page.appearance(1280, 900)
        page.open(str(folder.report), DRAWN, 90)
        yield page


def trace(page, chart, name, *keys):
    """Numbers of the first trace of that name, as plotly has them."""
    found = f"document.getElementById('chart-{chart}').data.find((each) => each.name === '{name}')"
    return [np.array(page.evaluate(f"Array.from({found}.{key})"), float) for key in keys]


def choose_step(page, step):
    slider = "document.getElementById('step')"
    page.evaluate(f"{slider}.value = {STEPS.index(step)}; {slider}.dispatchEvent(new Event('input'))")


@needs_chromium
def test_opens_offline_without_an_error_and_asks_for_nothing(page):
    assert page.console == []
    asked = [url for url in page.requests if not url.startswith(("about:", "data:"))]
    assert asked == [page.evaluate("location.href")]
    assert page.evaluate("document.getElementById('failed').hidden")


@needs_chromium
def test_every_chart_is_drawn(page):
    empty = "[...document.querySelectorAll('.chart')].filter((div) => !div.querySelector('.main-svg')).length"
    given = page.evaluate("JSON.parse(document.getElementById('charts').textContent).charts.length")
    assert page.evaluate("document.querySelectorAll('.chart').length") == given > 0
    assert page.evaluate(empty) == 0


@needs_chromium
@pytest.mark.parametrize("step", [120, 1])
def test_the_density_is_that_of_the_step_that_is_chosen(page, results, step):
    choose_step(page, step)
    file = results[step]
    grid, values = file.density.grid, file.density.values
    places, drawn = trace(page, "density", "the mean matrix", "x", "y")
    width = max(linear_width(each.density.grid) for each in results.values())
    np.testing.assert_allclose(places, np.arcsinh(grid / width) / np.log(10), rtol=1e-4, atol=1e-4)
    seen = values > values.max() * 1e-4
    np.testing.assert_allclose(drawn[seen], values[seen], rtol=1e-5)
    (told,) = trace(page, "density", "its top 5 eigenvalues", "customdata")
    np.testing.assert_allclose(told, file.mean.top_eigenvalues, rtol=1e-5)
    assert page.evaluate("document.querySelector('output').textContent") == str(step)


@needs_chromium
def test_the_eigenvalues_are_those_of_the_matrix_that_is_chosen(page, results):
    choose_step(page, 10)
    file = results[10]
    for part, eigenvalues in (
        ("layer layers.0.bias", file.layers.eigenvalues["layers.0.bias"]),
        ("batch 3", file.batches.eigenvalues[3]),
        ("mean", file.mean.eigenvalues),
    ):
        page.evaluate(
            "{ const chosen = document.querySelector('select[data-chart=eigenvalues]');"
            f"chosen.value = '{part}'; chosen.dispatchEvent(new Event('change')) }}"
        )
        ranks, sizes = trace(page, "eigenvalues", "positive", "x", "y")
        expected = np.sort(eigenvalues[eigenvalues > 0])[::-1]
        np.testing.assert_allclose(sizes, expected, rtol=1e-5)
        np.testing.assert_array_equal(ranks, np.arange(1, len(expected) + 1))


@needs_chromium
def test_a_click_on_a_point_along_training_chooses_its_step(page):
    choose_step(page, 120)
    page.evaluate(
        "document.getElementById('along_trace').scrollIntoView({behavior: 'instant', block: 'center'})"
    )
    points = "document.querySelectorAll('#along_trace .point')"
    box = page.evaluate(f"{points}[1].getBoundingClientRect().toJSON()")
    page.mouse(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, click=True)
    page.wait("document.getElementById('step').value === '1'", 20)


@needs_chromium
def test_the_loss_along_eigenvectors_and_its_quadratic_are_drawn(page):
    choose_step(page, 120)
    file = bowl()
    places, losses = trace(page, "loss_lines", "v<sub>1</sub>, λ = 4.00", "x", "y")
    np.testing.assert_allclose(places, file.lines.distances[0], atol=1e-5)
    np.testing.assert_allclose(losses, file.lines.losses[0], rtol=1e-5)
    np.testing.assert_allclose(trace(page, "loss_lines", "quadratic", "y")[0], losses, rtol=1e-4)
    hovered = page.evaluate(
        "document.getElementById('chart-loss_plane').data[0].customdata.map((row) => [...row])"
    )
    np.testing.assert_allclose(hovered, file.plane.losses, rtol=1e-5)


@needs_chromium
def test_the_line_of_stability_is_drawn(page):
    line = trace(page, "along_lambda_max", "2/η = 20.0", "y")
    np.testing.assert_array_equal(line, [[20.0, 20.0]])


@needs_chromium
def test_a_dark_scheme_changes_colors_at_once(page):
    color = "document.getElementById('chart-density').layout.font.color"
    light = page.evaluate(color)
    page.appearance(1280, 900, dark=True)
    page.wait(f"{color} !== '{light}'", 20)
    page.appearance(1280, 900)
    page.wait(f"{color} === '{light}'", 20)


@needs_chromium
@pytest.mark.parametrize("width", [360, 800])
def test_nothing_sticks_out_of_a_narrow_screen(page, width):
    page.appearance(width, 800)
    widest = "Math.max(...[...document.querySelectorAll('.chart .main-svg')].map((svg) => svg.clientWidth))"
    page.wait(f"{widest} < {width}", 30)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.appearance(1280, 900)
    page.wait(f"{widest} > 900", 30)


@needs_chromium
def test_on_paper_figures_have_its_width_and_light_colors(page):
    page.appearance(1280, 900, dark=True, paper=True)
    width = "document.getElementById('chart-density').layout.width"
    page.wait(f"{width} === 672", 20)
    assert page.evaluate("document.getElementById('chart-density').layout.font.color") == "#1f2430"
    page.appearance(1280, 900)
    page.wait(f"{width} > 900", 20)
    assert page.console == []


def test_arrays_are_kept_once_and_to_five_digits():
    arrays = Arrays()
    values = np.array([1 / 3, -2e-30, 1e30, np.nan, np.inf, 0.0])
    first = arrays.put(values)
    assert arrays.put(values) == first
    assert arrays.put(values.reshape(2, 3)) != first
    assert arrays.index == [[0, 6], [6, 2, 3]]
    content = np.frombuffer(b"".join(arrays._parts), np.float32)[:6]
    np.testing.assert_allclose(content, values, rtol=1e-5)
    assert not (content.view(np.uint32)[:3] & 0x7F).any()  # bits that would not compress


def test_thinning_keeps_ends_and_the_first_ranks():
    assert thinned(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert thinned(101, 3).tolist() == [0, 50, 100]
    ranks = thinned_ranks(100_000, 200)
    assert ranks[:100].tolist() == list(range(100))
    assert ranks[-1] == 99_999
    assert len(ranks) <= 200
