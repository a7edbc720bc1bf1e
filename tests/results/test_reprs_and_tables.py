"""What a notebook shows of an object is one line, and no array; tables are DataFrames."""

from dataclasses import replace

import pytest
from support.report_cases import bowl, put, spectra
from support.shard_files import symmetric, write

import pipeline
from pipeline.layout import Layout
from pipeline.results import QUANTITIES
from pipeline.sweep.jobs import Job, Sweep
from pipeline.system import FINISHED, KILLED, RunFolder, Status


def test_layout():
    layout = Layout(("scale", "a.weight", "a.bias", "b.weight", "b.bias"), ((), (2, 3), (2,), (4, 2), (4,)))
    assert repr(layout) == "Layout(5 parameters, P = 21: scale (), a.weight (2, 3), …, b.bias (4,))"
    table = layout.table
    assert list(table.index) == list(layout.names)
    assert list(table.columns) == ["layer", "shape", "size", "start", "stop"]
    assert list(table["layer"]) == ["scale", "a", "a", "b", "b"]
    assert table.loc["b.weight"].tolist() == ["b", (4, 2), 8, 9, 17]


def test_shard(tmp_path):
    shard = pipeline.open_shard(write(tmp_path / "batch-00003.h5", symmetric(23)))
    line = repr(shard)
    assert line.startswith("Shard(batch-00003.h5: ")
    assert "P = 23, float64" in line
    assert len(line) < 120


def test_run(tmp_path):
    files = [spectra(step=10), spectra(step=20)]
    put(RunFolder(tmp_path), *files)
    run = pipeline.open_run(tmp_path)
    assert repr(run) == f"Run({tmp_path}: 0 shards of 0 steps, spectra of steps 10, 20)"
    table = run.table
    assert list(table.index) == [10, 20]
    assert table.index.name == "step"
    assert table.loc[20, "lambda_max"] == files[1].numbers["lambda_max"]
    assert table["trace"].tolist() == [file.numbers["trace"] for file in files]
    first = [key for key in QUANTITIES if key in table.columns]
    assert list(table.columns[: len(first)]) == first


def test_a_run_without_spectra_has_an_empty_table(tmp_path):
    (tmp_path / "shards").mkdir()
    assert len(pipeline.open_run(tmp_path).table) == 0


@pytest.mark.parametrize("file", [spectra(), replace(spectra(), density=None, batches=None), bowl()])
def test_files_of_results_show_shapes_and_no_numbers_of_arrays(file):
    parts = [value for value in vars(file).values() if type(value).__module__.startswith("pipeline.results")]
    assert parts
    for each in (file, *parts):
        assert len(repr(each)) < 300
        assert "array" not in repr(each)
        assert repr(each).startswith(type(each).__name__ + "(")
    assert f"step {file.step}" in repr(file)


def test_sweep(tmp_path):
    states = [FINISHED, KILLED]
    jobs = [
        Job(number, RunFolder(tmp_path / str(number)), {"seed": str(number)}, Status(state))
        for number, state in enumerate(states)
    ]
    assert repr(Sweep(tmp_path, tuple(jobs))) == f"Sweep({tmp_path}: 2 jobs, 1 finished; seed varies)"
