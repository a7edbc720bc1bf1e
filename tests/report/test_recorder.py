"""The table at the end of a run."""

from dataclasses import replace

import pytest
from support.report_cases import put, spectra

from pipeline.report import RunRecorder
from pipeline.results.number_format import MATRICES
from pipeline.system import RunFolder
from pipeline.tracking.none import UntrackedRun


@pytest.mark.parametrize(
    ("matrix", "title"),
    [
        ("hessian", "Hessian spectrum"),
        ("ggn", "Generalized Gauss-Newton matrix spectrum"),
        ("of_his_own", "Of his own spectrum"),
    ],
)
def test_the_title_names_the_matrix(tmp_path, capsys, matrix, title):
    folder = put(RunFolder(tmp_path), spectra(step=60), replace(spectra(), matrix=matrix), config={"seed": 0})
    RunRecorder(folder, UntrackedRun()).close()
    assert capsys.readouterr().out.split("\n")[0].strip() == title


def test_without_a_spectrum_no_matrix_is_named(tmp_path, capsys):
    folder = put(RunFolder(tmp_path), spectra(), config={"seed": 0})
    folder.spectrum(120).unlink()
    RunRecorder(folder, UntrackedRun()).close()
    out = capsys.readouterr().out
    assert out.split("\n")[0].strip() == "Results"
    assert "training loss" in out
    assert not any(name in out for name in MATRICES.values())
