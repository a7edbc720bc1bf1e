"""What `spectrum=auto` stands for: a rule of rows, matrices and rounded rates, settled once in a run folder."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from pipeline.aggregate import spectrum_choice
from pipeline.aggregate.spectrum_choice import SpectrumChoice, choose, settled, sizes_of
from pipeline.layout import Layout
from pipeline.spectrum import SLQ, Auto, Exact, TopK
from pipeline.spectrum.cost import Rates
from pipeline.system.run_folder import RunFolder


def layout(*sizes):
    return Layout(tuple(f"w{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


SMALL, LARGE = layout(2048, 32, 320, 10), layout(19_200, 300, 3000, 10)  # 2,410 and 22,510 weights


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Of a core of 2026, and how often they were asked for."""
    asked = []
    monkeypatch.setattr(Rates, "of", lambda dtype: asked.append(dtype) or Rates(0.06, 6e10))
    return asked


def chosen(folder, auto=Auto(), layout=SMALL, num_steps=1, num_batches=6, **more):  # noqa: B008
    return choose(folder, auto, layout, "float32", num_steps, num_batches, **more)


def test_all_eigenvalues_of_the_main_job_and_the_density_of_a_large_net(folder):
    assert chosen(folder).spectrum == "exact"
    large = chosen(folder, layout=LARGE)
    assert large.spectrum == "slq"
    assert large.reason.startswith("all 22,510 eigenvalues would take about ")
    assert large.reason.endswith("; slq gives their density and both ends, spectrum=exact gets all")


def test_every_matrix_counts():
    assert sizes_of(layout(3, 0, 4), num_batches=2) == [7, 7, 3, 4, 7]
    one = Auto().seconds(sizes_of(SMALL, 0), Rates(0.06, 6e10))
    assert Auto().seconds(sizes_of(SMALL, 0) * 5, Rates(0.06, 6e10)) == pytest.approx(5 * one)


def test_checkpoints_and_batches_multiply_the_cost_until_it_is_too_much(folder):
    seconds = chosen(folder).seconds
    many = int(60 / seconds) + 2
    assert chosen(folder, num_steps=many - 3).spectrum == "exact"
    assert chosen(folder, num_steps=many).spectrum == "slq"
    assert chosen(folder, Auto(all_of_batches=True), num_batches=6 * many).spectrum == "slq"
    assert chosen(folder, num_batches=6 * many).spectrum == "exact"  # of batches the ends alone are taken
    assert chosen(folder, Auto(max_seconds=2 * many * seconds), num_steps=many).spectrum == "exact"


def test_what_does_not_fit_into_memory_is_not_chosen(folder, monkeypatch):
    monkeypatch.setattr(spectrum_choice, "available_memory", lambda: 10**7)
    choice = chosen(folder)
    assert choice.spectrum == "slq"
    assert choice.reason.startswith("all 2,410 eigenvalues need 63.2 MB of memory, 10 MB are free; ")
    assert "spectrum=exact" not in choice.reason  # it would be refused


def test_the_choice_of_a_run_stays_when_it_goes_on(folder, monkeypatch):
    about = (SMALL, "float32", 1, 6)
    first = settled(folder, Auto(), *about)
    assert first == Exact()
    monkeypatch.setattr(Rates, "of", lambda dtype: Rates(1e6, 1.0))  # the machine is busy
    assert settled(folder, Auto(), *about) == first
    assert settled(folder, Auto(), SMALL, "float32", 9, 6) == first  # more checkpoints, in the same folder
    assert isinstance(settled(folder, Auto(num_top=4), *about), SLQ)  # other options: another choice
    assert isinstance(settled(folder, Auto(), layout(2048, 32, 320, 11), "float32", 1, 6), SLQ)


def test_what_was_chosen_is_in_the_folder(folder, caplog):
    with caplog.at_level("INFO"):
        settled(folder, Auto(), SMALL, "float32", 2, 6)
    noted = json.loads((folder.path / "spectra" / "choice.json").read_text())
    assert (noted["spectrum"], noted["num_rows"], noted["num_matrices"]) == ("exact", 2410, 10)
    assert caplog.messages == [str(SpectrumChoice.read(folder))]
    settled(folder, Auto(), SMALL, "float32", 2, 6)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spectrum": "exact"}'])
def test_a_damaged_choice_is_made_again(folder, text):
    folder.spectrum_choice.parent.mkdir()
    folder.spectrum_choice.write_text(text)
    assert settled(folder, Auto(), SMALL, "float32", 1, 6) == Exact()
    assert SpectrumChoice.read(folder) is not None


def test_options_are_handed_on():
    auto = Auto(num_top=4, num_bottom=2, all_of_batches=True, device="cpu")
    assert auto.exact == Exact(4, all_of_batches=True, device="cpu")
    assert auto.slq == SLQ(4, 2)


@pytest.mark.parametrize("method", [Exact(3), TopK(3), SLQ(3)])
def test_another_spectrum_is_taken_as_it_is(folder, method, rates):
    assert settled(folder, method, LARGE, "float32", 1, 6) is method
    assert not rates
    assert not folder.spectrum_choice.exists()


def test_jobs_of_a_sweep_share_the_rates_of_the_first(tmp_path, rates, monkeypatch):
    first = chosen(RunFolder(tmp_path / "0"), sweep=tmp_path)
    monkeypatch.setattr(Rates, "of", lambda dtype: Rates(1e6, 1.0))
    assert chosen(RunFolder(tmp_path / "1"), sweep=tmp_path) == first
    assert choose(RunFolder(tmp_path / "2"), Auto(), SMALL, "float64", 1, 6, tmp_path).spectrum == "slq"


def test_jobs_that_begin_at_once_measure_rates_once_and_share_them(tmp_path, monkeypatch):
    measured, begin = [], Barrier(6)

    def measure(dtype):
        measured.append(dtype)
        time.sleep(0.02)
        return Rates(10.0 ** len(measured), 1.0)

    def job(number):
        begin.wait()
        return chosen(RunFolder(tmp_path / str(number)), sweep=tmp_path)

    monkeypatch.setattr(Rates, "of", measure)
    with ThreadPoolExecutor(6) as pool:
        choices = list(pool.map(job, range(6)))
    assert len(measured) == 1
    assert choices == choices[:1] * 6


def test_rates_that_differ_by_a_little_give_the_same_choice(folder, monkeypatch):
    found = []
    for rate in (0.05, 0.0625, 0.08):
        monkeypatch.setattr(Rates, "of", lambda dtype, rate=rate: Rates(rate, 6e10))
        found.append(chosen(folder))
    assert found == [replace(found[0])] * 3
