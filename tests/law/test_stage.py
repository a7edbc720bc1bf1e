"""What every law has, and a run that measures one: its file, verdicts, metrics, page and figure."""

import inspect
import json
import sqlite3
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import yaml
from support.command import PROJECT, fail, succeed

import pipeline.law
from pipeline import open_run

EXPERIMENTS = {
    path.stem: path
    for path in sorted((PROJECT / "conf" / "experiment").glob("*.yaml"))
    if "override /law:" in path.read_text()
}
SMALL = (
    "experiment=duality",
    "law.num_samples=4",
    "law.hidden_size=3",
    "law.dimension=2",
    "law.num_classes=3",
)
OWN = """
from dataclasses import dataclass
from typing import ClassVar

from pipeline.errors import PipelineError
from pipeline.results import Check, Outcome, Panel, Series


@dataclass(frozen=True)
class Mine:
    TITLE: ClassVar[str] = "One is two"
    SOURCE: ClassVar[str] = "nobody"
    value: float = 1.0

    def measure(self, folder):
        if self.value < 0:
            raise PipelineError(f"{folder.path} has no spectra: run the other stages too.")
        panel = Panel("t", "x", "y", [Series("s", [1, 2], [3, 4])], "r")
        checks = [Check("one", "one", self.value, "=", 2.0), Check("two", "two", 2, "=", 2)]
        return Outcome("It is not.", checks, [panel])
"""


def law_of(experiment):
    choices = yaml.safe_load(EXPERIMENTS[experiment].read_text())["defaults"]
    name = next(each["override /law"] for each in choices if "override /law" in each)
    target = yaml.safe_load((PROJECT / "conf" / "law" / f"{name}.yaml").read_text())["_target_"]
    return getattr(pipeline.law, target.rpartition(".")[2])


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return {"paths": [tmp_path]}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_its_source_and_its_law_is_derived(experiment):
    law, text = law_of(experiment), EXPERIMENTS[experiment].read_text()
    comment = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    assert law.SOURCE in comment
    assert len(law.TITLE) <= 80
    derived = (PROJECT / "docs" / "laws" / f"{experiment}.md").read_text()
    assert f"experiment={experiment}" in derived
    assert all(source.split(",")[-1].strip() in derived for source in law.SOURCE.split(";"))


def test_every_law_has_an_experiment():
    laws = {name for name, each in vars(pipeline.law).items() if inspect.isclass(each) and name != "Law"}
    assert laws == {law_of(experiment).__name__ for experiment in EXPERIMENTS}


@pytest.mark.integration
def test_a_run_measures_a_law(tmp_path):
    folder = tmp_path / "run"
    lines = succeed(folder, *SMALL, f"tracking.root={tmp_path}")
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["held"] * 4
    law = open_run(folder).law
    assert law.outcome.held
    assert law.options["num_samples"] == 4
    assert "experiment=duality" in law.command
    summary = json.loads((folder / "summary.json").read_text())
    assert law.metrics.items() <= summary.items()
    assert (folder / "figures" / "law.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert 'id="law_1"' in page
    assert page.count('<td class="text">held</td>') == 4
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        logged = dict(store.execute("select key, value from latest_metrics"))
        params = dict(store.execute("select key, value from params"))
        [[name]] = store.execute("select name from runs")
    assert name.startswith("duality seed=0 num_samples=4")
    assert {"law", "law.num_samples", "seed"} <= params.keys()
    assert not {"model", "data", "matrix"} & params.keys()
    assert law.metrics.items() <= logged.items()
    assert succeed(folder, *SMALL, "stages=report", "tracking=none")[-1].startswith("report: ")


@pytest.mark.integration
def test_a_law_that_is_not_held_ends_the_run_with_its_report(tmp_path, own):
    lines = succeed(tmp_path / "run", "experiment=duality", "law._target_=mine.Mine", "tracking=none", **own)
    assert "  not held  one: 1 = 2" in lines
    assert "  held      two: 2 = 2" in lines
    assert "the law is not held: 1 of 2 checks failed." in lines
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h1>Not held</h1>" in page
    assert open_run(tmp_path / "run").summary["law/one/held"] == 0


@pytest.mark.integration
def test_a_law_stands_in_the_report_of_a_run(tmp_path, own):
    from support.command import SMALL as RUN

    options = (*RUN, "figure_formats=png", "+law._target_=mine.Mine", "+law.value=2")
    succeed(tmp_path / "run", *options, **own)
    run = open_run(tmp_path / "run")
    assert run.law.outcome.held
    assert run.summary["law/one/value"] == 2
    assert run.summary["num_parameters"] == 43
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index('id="law_1"') < page.index('id="spectrum"')
    assert all((run.folder.figures / f"{name}.png").exists() for name in ("law", "landscape", "density"))


@pytest.mark.integration
def test_a_law_that_lacks_what_it_is_measured_from_says_so(tmp_path, own):
    line = fail(
        tmp_path / "run",
        "experiment=duality",
        "law._target_=mine.Mine",
        "+law.value=-1",
        "tracking=none",
        **own,
    )
    assert line.endswith("has no spectra: run the other stages too.")


@pytest.mark.integration
def test_a_stage_without_a_law_is_refused(tmp_path):
    assert fail(tmp_path / "run", "stages=[law,report]").startswith(
        "stages=law has no law to measure: choose one"
    )


@pytest.mark.integration
def test_a_folder_with_a_law_alone_is_not_aggregated(tmp_path):
    folder = tmp_path / "run"
    succeed(folder, *SMALL, "tracking=none")
    assert "no shards" in fail(folder, "stages=aggregate", "tracking=none")
    assert open_run(folder).law.outcome.held
    assert repr(open_run(folder).law) == "LawFile(Duality: 4 of 4 checks held)"


def test_the_table_of_all_laws():
    spec = spec_from_file_location("reproduce", PROJECT / "scripts" / "reproduce.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.experiments() == list(EXPERIMENTS)
    check = {"name": "|H|", "verdict": "held", "here": "2", "relation": "=", "value": "2", "tolerance": "0"}
    verdicts = {
        "one": {"held": True, "seconds": 3.2, "source": "S", "title": "T", "checks": [check, check]},
        "two": {"held": False, "seconds": 1.0, "error": "first\nno room"},
    }
    table = script.markdown(verdicts).splitlines()
    assert table[2] == "| one | \\|H\\| | 2 | = 2 | 0 | held | S | 3 |"
    assert table[3] == "|  | \\|H\\| | 2 | = 2 | 0 | held |  |  |"
    assert table[4] == "| two | no room |  |  |  | failed |  | 1 |"
    assert script.summary_of("one", verdicts["one"]) == ["one", "held", "2 of 2", "3", "T"]
    assert script.summary_of("two", verdicts["two"])[1] == "failed"
