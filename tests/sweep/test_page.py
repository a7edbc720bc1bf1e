"""The page of a sweep: what it says, and how a real browser draws it with no network."""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml
from support.report_cases import spectra

from pipeline.results import number_format
from pipeline.sweep.jobs import open_sweep, plan
from pipeline.sweep.page import page_of
from pipeline.system.run_folder import RunFolder
from pipeline.system.status import write_status
from scripts.screenshot import browser, find_chromium

JOBS = [[f"strategy={name}", f"seed={seed}"] for name in ("func", "hvp") for seed in (0, 1)] + [
    ["strategy=<b>"]
]
DRAWN = "document.documentElement.classList.contains('drawn')"


def add(folder, number, found, state="finished", **numbers):
    job = RunFolder(folder / str(number))
    (job.path / ".hydra").mkdir(parents=True, exist_ok=True)
    (job.path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(JOBS[number]))
    found.write(job.spectrum(120))
    job.report.write_text("<html></html>")
    job.summary.write_text(
        json.dumps({"lambda_max": found.attrs["lambda_max"], "num_parameters": 48, **numbers})
    )
    write_status(job, state)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Four jobs, whose spectra depend on the seed alone, and one that never began."""
    folder = tmp_path_factory.mktemp("a sweep")
    plan(folder, "python -m pipeline.run -m …", JOBS)
    found = [spectra(num_batches=2, step=step) for step in (120, 121)]
    for number in range(4):
        add(folder, number, found[number % 2], test_accuracy=0.5 + number / 10)
    return folder, found


def described(page):
    """The charts of a page, with their arrays."""
    spec = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])
    packed = re.search(r'id="arrays">(.*?)</script>', page, re.DOTALL)[1]
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.float32)
    arrays = [numbers[offset : offset + size] for offset, size in spec["arrays"]]
    return {chart["name"]: chart for chart in spec["charts"]}, arrays


def test_every_job_is_drawn_for_every_choice_of_colors(swept):
    folder, found = swept
    charts, arrays = described(page_of(open_sweep(folder)))
    traces = charts["densities"]["traces"]
    by = {
        color: [trace for trace in traces if trace["meta"]["color"] == color]
        for color in ("seed", "strategy", "job")
    }
    assert [len(drawn) for drawn in by.values()] == [4, 4, 4]
    assert [trace["name"] for trace in by["seed"]] == ["seed 0", "seed 1", "seed 0", "seed 1"]
    assert [trace["showlegend"] for trace in by["seed"]] == [True, True, False, False]
    assert len({trace["line"]["color"] for trace in by["seed"]}) == 2
    assert len({(trace["line"]["color"], trace["line"]["dash"]) for trace in by["job"]}) == 4
    for number, trace in enumerate(by["job"]):
        values = found[number % 2].density.values
        drawn = arrays[trace["y"]["$"]]
        high = values > values.max() / 100
        np.testing.assert_allclose(drawn[high], values[high], rtol=1e-4)
        assert f"job {number}: strategy={JOBS[number][0][9:]} seed={number % 2}" in trace["hovertemplate"]


def test_the_choice_that_moves_the_largest_eigenvalue_comes_first(swept):
    charts, _ = described(page_of(open_sweep(swept[0])))
    assert charts["densities"]["choice"] == {"color": "seed"}
    assert charts["against-lambda_max"]["choice"] == {"along": "seed"}


def test_numbers_stand_against_choices_with_the_mean_of_those_that_share_one(swept):
    charts, arrays = described(page_of(open_sweep(swept[0])))
    drawn = {
        (trace["meta"]["along"], trace["name"]): trace for trace in charts["against-test_accuracy"]["traces"]
    }
    jobs, mean = drawn["strategy", "a job"], drawn["strategy", "mean"]
    assert jobs["x"] == ["func", "func", "hvp", "hvp"]
    np.testing.assert_allclose(arrays[jobs["y"]["$"]], [0.5, 0.6, 0.7, 0.8], rtol=1e-4)
    assert mean["x"] == ["func", "hvp"]
    np.testing.assert_allclose(arrays[mean["y"]["$"]], [0.55, 0.75], rtol=1e-4)
    assert drawn["seed", "mean"]["x"] == [0.0, 1.0]


def test_the_table_leads_to_the_jobs_and_names_those_that_are_not_finished(swept):
    page = page_of(open_sweep(swept[0]))
    assert '<a href="3/report.html">3</a>' in page
    assert '<a href="4/report.html">' not in page
    assert "it has not begun." in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.partition("<body>")[2].partition("<script")[0]
    assert "4 of 5 finished" in page


def test_a_job_without_spectra_or_with_a_damaged_file_costs_no_page(tmp_path):
    plan(tmp_path, "python -m pipeline.run -m …", JOBS)
    add(tmp_path, 0, spectra(num_batches=1, spectrum="topk"))
    add(tmp_path, 1, spectra(num_batches=1))
    RunFolder(tmp_path / "1").spectrum(120).write_bytes(b"no HDF5")
    charts, _ = described(page_of(open_sweep(tmp_path)))
    assert {trace["name"] for trace in charts["ranks"]["traces"]} == {"job 0"}
    for path in tmp_path.rglob("*.h5"):
        path.unlink()
    assert described(page_of(open_sweep(tmp_path)))[0] == {}


def rows_of(page):
    """The table over the seeds, as texts."""
    section = page.partition('<section id="seeds">')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_mean_and_the_standard_deviation_over_the_seeds_have_a_table(swept):
    folder, found = swept
    sweep = open_sweep(folder)
    values = [each.numbers["lambda_max"] for each in found]
    table = sweep.over_seeds
    assert table["strategy"].tolist() == ["func", "hvp"]
    assert table["num_seeds"].tolist() == [2, 2]
    np.testing.assert_allclose(table["lambda_max_mean"], np.mean(values))
    np.testing.assert_allclose(table["lambda_max_std"], abs(values[0] - values[1]) / np.sqrt(2))  # n − 1
    np.testing.assert_allclose(table["test_accuracy_mean"], [0.55, 0.75])
    head, *rows = rows_of(page_of(sweep))
    assert head[:3] == ["strategy", "seeds", "λ max"]
    told = " ± ".join(number_format.number(float(each)) for each in (np.mean(values), np.std(values, ddof=1)))
    assert [row[:3] for row in rows] == [["func", "2", told], ["hvp", "2", told]]
    assert [row[head.index("test accuracy")] for row in rows] == ["55.0 % ± 7.1 %", "75.0 % ± 7.1 %"]


def test_without_seeds_there_is_no_such_table(tmp_path):
    plan(tmp_path, "python -m pipeline.run -m …", [["strategy=func"], ["strategy=hvp"]])
    sweep = open_sweep(tmp_path)
    assert sweep.over_seeds is None
    assert '<section id="seeds">' not in page_of(sweep)


def test_jobs_with_several_steps_have_curves_along_training_with_the_deviation_over_the_seeds(tmp_path):
    plan(tmp_path, "python -m pipeline.run -m …", JOBS)
    files = {(k, step): spectra(num_batches=1, step=step + k) for k in range(4) for step in (60, 120)}
    for (k, step), file in files.items():
        if step == 120:
            add(tmp_path, k, replace(file, step=120))
        else:
            replace(file, step=step).write(RunFolder(tmp_path / str(k)).spectrum(step))
    charts, arrays = described(page_of(open_sweep(tmp_path)))
    func, hvp = charts["along-lambda_max"]["traces"]
    assert (func["name"], hvp["name"]) == ("strategy=func", "strategy=hvp")
    for trace, pair in ((func, (0, 1)), (hvp, (2, 3))):
        assert arrays[trace["x"]["$"]].tolist() == [60, 120]
        for place, step in enumerate((60, 120)):
            values = [files[k, step].numbers["lambda_max"] for k in pair]
            assert arrays[trace["y"]["$"]][place] == pytest.approx(np.mean(values), rel=1e-4)
            deviation = arrays[trace["error_y"]["array"]["$"]][place]
            assert deviation == pytest.approx(np.std(values, ddof=1), rel=1e-4)


def test_matrices_of_a_sweep_stand_side_by_side_along_training(tmp_path):
    jobs = [[f"matrix={name}"] for name in ("hessian", "ggn", "residual")]
    plan(tmp_path, "python -m pipeline.run -m …", jobs)
    for k, job in enumerate(jobs):
        for step in (60, 120):
            spectra(num_batches=1, step=step).write(RunFolder(tmp_path / str(k)).spectrum(step))
        (tmp_path / str(k) / ".hydra").mkdir()
        (tmp_path / str(k) / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(job))
        RunFolder(tmp_path / str(k)).summary.write_text("{}")
        write_status(RunFolder(tmp_path / str(k)), "finished")
    charts, _ = described(page_of(open_sweep(tmp_path)))
    traces = charts["along-trace"]["traces"]
    assert [trace["name"] for trace in traces] == ["matrix=hessian", "matrix=ggn", "matrix=residual"]
    assert not any("error_y" in trace for trace in traces)


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here")
def test_a_browser_draws_it_with_no_network_and_follows_a_choice(swept):
    folder, _ = swept
    (folder / "report.html").write_text(page_of(open_sweep(folder)), encoding="utf-8")
    with browser(find_chromium()) as page:
        page.appearance(1280, 900)
        page.offline()
        page.open(str(folder / "report.html"), DRAWN, timeout=90)
        curves = "document.querySelectorAll('#chart-densities .scatterlayer .trace path.js-line').length"
        legend = (
            "[...document.querySelectorAll('#chart-densities .legendtext')].map(e => e.textContent).join()"
        )
        assert page.evaluate(curves) == 4
        assert page.evaluate(legend) == "seed 0,seed 1"
        page.evaluate(
            "(() => { const s = document.querySelector('select[data-chart=densities]');"
            "s.value = 'strategy'; s.dispatchEvent(new Event('change')); })()"
        )
        page.wait(f"{legend} === 'strategy func,strategy hvp'")
        sizes = (
            "[...document.querySelectorAll('.chart svg.main-svg')].map(e => e.getBoundingClientRect().width)"
        )
        assert min(page.evaluate(sizes)) > 250
        assert page.console == []
