import base64
import json
import math
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from support.command import python
from support.report_cases import CASES, bowl, put, spectra

from pipeline.errors import PipelineError
from pipeline.report.figures import PICTURES
from pipeline.report.report import make_report
from pipeline.report.tables import read_history
from pipeline.results.number_format import number, percent
from pipeline.results.quantities import QUANTITIES
from pipeline.system.run_folder import RunFolder

CONFIG = {
    "seed": 7,
    "data": {"_target_": "pipeline.data.Digits", "batch_size": 50, "input_shape": [64]},
    "model": {"_target_": "pipeline.model.MLP", "input_shape": [1, 8, 8]},
}
VOID = {"meta", "img", "br", "link", "input", "hr"}
FIGURES = {  # of each section, in the order of the page
    "along": [
        *("along_lambda_max", "along_trace", "along_participation_ratio"),
        "along_gradient_share_in_top_eigenspace",
        *("layers_along_lambda_max", "layers_along_trace", "density_steps", "cosine_steps", "overlap_steps"),
    ],
    "spectrum": ["density", "eigenvalues", "gradient_cosines", "participation"],
    "landscape": ["loss_lines", "loss_plane"],
    "batches": ["batch_eigenvalues", "batch_distances", "batch_overlaps"],
    "layers": ["layer_lambda_max", "layer_trace", "block_norms"],
    "training": ["loss", "accuracy"],
}


class Page(HTMLParser):
    """The parts of a page that tests ask for, and whether its elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.attributes, self.figures, self.rows = [], [], [], [], []
        self.scripts, self.numbers = {}, {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, *pair) for pair in attrs.items()]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(attrs["id"])
        if tag == "figure":
            self.figures.append(attrs["id"])
        if tag == "script":
            self.script = attrs.get("id", "code")
            self.scripts[self.script] = ""
        if tag == "td" and "data-key" in attrs:
            self.numbers[attrs["data-key"]] = attrs["title"]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[self.script] += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def described(self):
        """What the page's script is given, with the arrays in place of their numbers."""
        found = json.loads(self.scripts["charts"])
        content = np.frombuffer(zlib.decompress(base64.b64decode(self.scripts["arrays"])), np.float32)
        arrays = [
            content[start : start + math.prod(shape)].reshape(shape) for start, *shape in found["arrays"]
        ]

        def filled(value):
            if isinstance(value, list):
                return [filled(inner) for inner in value]
            if isinstance(value, dict):
                return (
                    arrays[value["$"]]
                    if "$" in value
                    else {key: filled(inner) for key, inner in value.items()}
                )
            return value

        return filled(found)

    def row(self, first):
        (found,) = [row for row in self.rows if row[0] == first]
        return found


@pytest.fixture(autouse=True, scope="module")
def small_pictures():
    """Pictures of few dots: what is on them is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.figure_style.DPI", 40)
        yield


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def report(folder, *results, config=CONFIG, **options):
    return Page(make_report(put(folder, *results, config=config, **options)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of two steps, and the folder it is in."""
    folder = RunFolder(tmp_path_factory.mktemp("whole"))
    command = "python -m pipeline.run model=mlp 'training.num_steps=[1, 2]'"
    bowl().write(folder.slices(120))
    bowl(loss=9.0, inputs_hash="of other spectra", step=60).write(folder.slices(60))
    page = report(
        folder,
        spectra(step=60, num_layers=3),
        spectra(step=120, num_layers=3),
        config={**CONFIG, "command": command},
    )
    return page, folder


def test_has_every_section_and_every_figure(whole):
    page, folder = whole
    assert page.sections == [
        "along",
        "spectrum",
        "landscape",
        "batches",
        "layers",
        "training",
        "numbers",
        "reproduce",
        "stored",
        "config",
        "versions",
    ]
    assert page.figures == [name for names in FIGURES.values() for name in names]
    described = [chart["name"] for chart in page.described()["charts"]]
    assert sorted(described) == sorted(page.figures)
    files = {name for name, parts in PICTURES.items() if {*parts} & {*described}}
    assert {path.stem for path in folder.figures.glob("*.png")} == files


def test_every_figure_stands_in_a_file_too(whole):
    page, _ = whole
    assert {*page.figures} <= {part for parts in PICTURES.values() for part in parts}


def test_links_lead_inside_the_page_and_nothing_comes_from_elsewhere(whole):
    page, folder = whole
    places = {value for _, name, value in page.attributes if name == "id"}
    for tag, name, value in page.attributes:
        if name == "href":
            assert value.removeprefix("#") in places
        assert name not in {"src", "srcset", "action", "background", "onload"}
        assert tag not in {"link", "iframe", "base", "object", "img"}
    text = folder.report.read_text(encoding="utf-8")
    assert not re.search(r"(src|href|content)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_slices_of_other_spectra_are_left_out(whole):
    page, _ = whole
    (lines,) = [chart for chart in page.described()["charts"] if chart["name"] == "loss_lines"]
    assert {trace["meta"]["step"] for trace in lines["traces"]} == {120}


def test_an_estimated_density_has_a_band_of_two_standard_errors(folder):
    results = spectra(spectrum="slq")
    values = results.density.values
    results = replace(results, density=replace(results.density, standard_error=0.1 * values))
    chart = next(
        chart for chart in report(folder, results).described()["charts"] if chart["name"] == "density"
    )
    below, above = [trace["y"] for trace in chart["traces"] if trace.get("line", {}).get("width") == 0]
    seen = values > values.max() / 100
    np.testing.assert_allclose(above[seen], 1.2 * values[seen], rtol=1e-4)
    np.testing.assert_allclose(below[seen], 0.8 * values[seen], rtol=1e-4)


def test_plotly_is_inside_as_it_is_installed(whole):
    page, folder = whole
    code = zlib.decompress(base64.b64decode(page.scripts["plotly"]))
    assert code == (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    assert folder.report.stat().st_size < 3e6


def test_headline_numbers_are_those_of_the_last_step(whole):
    page, _ = whole
    attrs = spectra(step=120, num_layers=3).attrs
    assert page.row("largest eigenvalue")[2] == number(attrs["lambda_max"])
    assert page.row("smallest eigenvalue")[2] == number(attrs["lambda_min"])
    assert page.row("negative eigenvalues")[2] == str(attrs["num_negative_eigenvalues"])
    assert page.row("negative eigenvalues")[3] == QUANTITIES["num_negative_eigenvalues"].sentence
    assert page.numbers["lambda_max"] == repr(attrs["lambda_max"])
    assert page.numbers["test_accuracy"] == "0.97"
    assert page.row("test accuracy")[2] == "97.0 %"
    assert page.row("training loss")[2] == "0.05000"


def test_tables_hold_batches_layers_and_steps(whole):
    page, _ = whole
    results = spectra(step=120, num_layers=3)
    last_batch = page.row("5")
    assert last_batch[1] == "17"
    assert last_batch[6] == number(float(results.batches.lambda_max[5]))
    mean = page.row("mean")
    assert mean[6] == number(results.attrs["lambda_max"])
    assert mean[7:] == ["–", "–"]
    largest = float(results.layers.eigenvalues["layers.0.bias"][-1])
    norm = float(results.layers.block_norms[1, 1])
    trace = float(results.layers.trace[1])
    assert page.row("layers.0.bias") == ["layers.0.bias", "4 × 2", "8", *map(number, (trace, largest, norm))]
    assert page.row("60")[3] == number(spectra(step=60, num_layers=3).attrs["lambda_max"])


def test_says_how_to_reproduce(whole):
    _, folder = whole
    text = folder.report.read_text(encoding="utf-8")
    assert "python -m pipeline.run model=mlp &#39;training.num_steps=[1, 2]&#39;" in text
    assert "Seed <b>7</b>" in text
    assert "0f1e2d3c" in text
    assert "model <b>MLP</b>" in text
    assert "step-000120/batch-00000.h5" in text
    assert "different objects" in text
    assert "mean spectrum" not in text.lower()


@pytest.mark.parametrize(
    "case", ["one batch", "many batches", "one layer", "forty layers", "top k", "all zero"]
)
def test_odd_cases(case, folder):
    page = report(folder, spectra(**CASES[case]), history="")
    text = folder.report.read_text(encoding="utf-8")
    sections = ("spectrum", "layers") if case == "one batch" else ("spectrum", "batches", "layers")
    assert page.figures == [name for section in sections for name in FIGURES[section]]
    assert len(page.described()["charts"]) == len(page.figures)
    assert "Nothing was trained in this folder" in text
    assert "along" not in page.sections
    assert not re.search(r">\s*(nan|inf|None|Undefined)\s*<", text)
    assert all(row[0] != "training loss" for row in page.rows)


def test_numbers_that_are_not_defined_are_left_out(folder):
    page = report(folder, spectra(spectrum="topk"))
    names = [row[0] for row in page.rows]
    assert "largest eigenvalue" in names
    assert "negative eigenvalues" not in names


def test_names_and_config_are_escaped(folder):
    names = ["<script>alert(1)</script>", "a&b", '"quoted"', "plain"]
    page = report(
        folder, spectra(names=names), config={"seed": 0, "note": "<img src=http://example.org/x.png>"}
    )
    assert page.row(names[0])[1] == "12 × 2"
    text = folder.report.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    (norms,) = [chart for chart in page.described()["charts"] if chart["name"] == "block_norms"]
    assert norms["traces"][0]["x"] == names
    assert "&lt;img src=http://example.org/x.png&gt;" in text


def test_a_config_that_cannot_be_resolved_stays_as_written(folder):
    report(folder, spectra(), config={"tracking": {"uri": "${nowhere.to.be.found}"}})
    assert "${nowhere.to.be.found}" in folder.report.read_text(encoding="utf-8")


ENVIRONMENT = {
    "commit": "0123abcd (changed)",
    "machine": "node<7>",
    "processor": "8 × Fast CPU",
    "system": "Linux x86_64",
    "device": "cpu",
    "threads": "1",
}


def test_names_the_commit_the_machine_and_the_threads_of_each_start(folder):
    starts = [ENVIRONMENT, {**{k: v for k, v in ENVIRONMENT.items() if k != "commit"}, "threads": "4"}]
    report(folder, spectra(), config={**CONFIG, "environments": starts})
    text = re.sub(r"\s+", " ", folder.report.read_text(encoding="utf-8"))
    place = "on the machine <b>node&lt;7&gt;</b> (8 × Fast CPU, Linux x86_64), device cpu, with"
    assert f"<p>Computed at commit <code>0123abcd (changed)</code> {place} 1 thread of PyTorch.</p>" in text
    assert f"<p>Computed {place} 4 threads of PyTorch.</p>" in text
    assert "environments" not in text


def test_figures_are_drawn_in_the_formats_that_are_asked_for(folder):
    make_report(put(folder, spectra(num_batches=1), config=CONFIG), ["pdf", "png"])
    names = {path.name for path in folder.figures.iterdir()}
    assert {"density.pdf", "density.png"} <= names
    assert {name.rpartition(".")[2] for name in names} == {"pdf", "png"}
    make_report(folder, [])
    assert list(folder.figures.iterdir()) == []


def test_no_spectra_is_an_error_and_writes_nothing(folder):
    with pytest.raises(PipelineError, match="has no spectra to report on: run the stage aggregate"):
        make_report(folder)
    assert not folder.path.exists()


def test_a_broken_history_is_an_error_and_the_old_report_stays(folder):
    put(folder, spectra(), history="step,train_loss\n0,abc\n")
    folder.report.write_text("old")
    with pytest.raises(PipelineError, match=r"history\.csv is no table of numbers .*delete it"):
        make_report(folder)
    assert folder.report.read_text() == "old"


def test_history_with_ragged_rows_empty_cells_or_no_rows(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,train_loss\n0,1,2\n")
    with pytest.raises(PipelineError, match="is no table of numbers"):
        read_history(path)
    path.write_text("step,train_loss\n0,\n")
    assert str(read_history(path)["train_loss"]) == "[nan]"
    for nothing in ("", "step,train_loss\n"):
        path.write_text(nothing)
        assert read_history(path) == {}


def test_a_second_report_equals_the_first_and_leaves_no_partial_files(folder):
    first = report(folder, spectra())
    second = report(folder, spectra())
    assert first.scripts == second.scripts
    assert not list(folder.path.rglob("*.partial"))


def test_needs_no_torch_and_importing_it_loads_nothing_heavy(folder):
    put(folder, spectra(num_layers=1))
    program = """
import sys
from pathlib import Path
from pipeline.system.run_folder import RunFolder
from pipeline.results.quantities import QUANTITIES
from pipeline.report.report import make_report
early = {"matplotlib", "jinja2"} & set(sys.modules)  # a room imports its public names, and h5py with them
make_report(RunFolder(Path(sys.argv[1])))
print(early, {"torch", "hydra", "mlflow", "dask", "matplotlib.pyplot"} & set(sys.modules))
"""
    done = python("-W", "error", "-c", program, folder.path)
    assert done.stdout.split("\n")[-2] == "set() set()", done.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2410, "2,410"),
        (-3, "−3"),
        (0.0, "0"),
        (0.97193593, "0.9719"),
        (9.99996, "10.00"),
        (12345.6, "12,346"),
        (123456.0, "1.235×10⁵"),
        (-3.2e-7, "−3.200×10⁻⁷"),
        (float("nan"), "–"),
        (None, "–"),
        ("as it is", "as it is"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_percent():
    assert percent(0.9727) == "97.3 %"
    assert percent(float("nan")) == "–"
