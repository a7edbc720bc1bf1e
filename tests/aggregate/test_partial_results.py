"""An aggregation that is cut short, anywhere, is taken up again and ends in the same bits."""

import numpy as np
import pytest
from support.command import python
from support.shard_cases import ATTRS, known, write

import pipeline.aggregate.partial_results
import pipeline.aggregate.stage
from pipeline.aggregate.moments import pool_tiles
from pipeline.aggregate.partial_results import PartialResults
from pipeline.aggregate.stage import aggregate
from pipeline.cluster import Threads
from pipeline.results.spectra_file import SpectraFile
from pipeline.shards.shard import Shard, open_shard
from pipeline.spectrum import SLQ, Exact, TopK
from pipeline.system.run_folder import RunFolder

STEP = ATTRS["step"]
SPECTRA = {
    "exact": Exact(num_top=4),
    "topk": TopK(num_top=2, num_bottom=1, tolerance=1e-9),
    "slq": SLQ(num_top=3, num_vectors=4, num_steps=6),
}


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch):
    monkeypatch.setattr(pipeline.aggregate.partial_results, "SLOW", 0.0)
    monkeypatch.setattr(pipeline.aggregate.stage, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(pipeline.aggregate.stage, "TILES_PER_TASK", 1)


class Fuse:
    """Calls a function through, and blows at one call."""

    def __init__(self, function, at=None):
        self.function, self.at, self.count = function, at, 0

    def __call__(self, *arguments, **options):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return self.function(*arguments, **options)


def fuse(monkeypatch, name, at=None):
    if name == "pool_tiles":
        made = Fuse(pool_tiles, at)
        monkeypatch.setattr(pipeline.aggregate.stage, "pool_tiles", made)
    else:
        made = Fuse(MATVEC, at)
        monkeypatch.setattr(Shard, "matvec", lambda *arguments: made(*arguments))
    return made


MATVEC = Shard.matvec


def run(folder, spectrum):
    [file] = aggregate(folder, spectrum, Threads(1))
    return file.attrs, SpectraFile.read(folder.spectrum(STEP)).arrays, open_shard(folder.mean(STEP)).dense()


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][name], err_msg=name)
    np.testing.assert_array_equal(one[2], other[2])


def test_the_mean_goes_on_where_it_was(tmp_path, monkeypatch):
    spectrum = SPECTRA["exact"]
    expected = run(write(RunFolder(tmp_path / "whole"), known(), tile=8), spectrum)
    folder = write(RunFolder(tmp_path / "cut"), known(), tile=8)
    fuse(monkeypatch, "pool_tiles", at=11)
    with pytest.raises(KeyboardInterrupt):
        run(folder, spectrum)
    assert folder.unfinished(STEP).exists()
    again = fuse(monkeypatch, "pool_tiles")
    assert_same(run(folder, spectrum), expected)
    assert 0 < again.count <= 15 - 6  # of 15 tiles; some were under way when it was cut short
    assert not folder.unfinished(STEP).exists()
    assert not [path for path in folder.mean(STEP).parent.iterdir() if path.suffix != ".h5"]


@pytest.mark.parametrize(("name", "at"), [("topk", 14), ("slq", 20)])
def test_passes_are_not_made_twice(tmp_path, monkeypatch, name, at):
    spectrum = SPECTRA[name]
    counted = fuse(monkeypatch, "matvec")
    expected = run(write(RunFolder(tmp_path / "whole"), known(), tile=8), spectrum)
    assert counted.count >= 20
    folder = write(RunFolder(tmp_path / "cut"), known(), tile=8)
    fuse(monkeypatch, "matvec", at)
    with pytest.raises(KeyboardInterrupt):
        run(folder, spectrum)
    means = fuse(monkeypatch, "pool_tiles")
    again = fuse(monkeypatch, "matvec")
    assert_same(run(folder, spectrum), expected)
    assert again.count == counted.count - (at - 1)
    assert means.count == 0  # the mean was whole


def test_what_is_damaged_or_of_other_choices_counts_for_nothing(tmp_path, monkeypatch):
    expected = run(write(RunFolder(tmp_path / "whole"), known(), tile=8), SPECTRA["topk"])
    folder = write(RunFolder(tmp_path / "cut"), known(), tile=8)
    fuse(monkeypatch, "matvec", at=12)
    with pytest.raises(KeyboardInterrupt):
        run(folder, SPECTRA["topk"])
    saved = sorted(folder.unfinished(STEP).rglob("*.h5"))
    assert len(saved) >= 11
    for number, path in enumerate(saved):
        content = bytearray(path.read_bytes())
        content[:] = content[: len(content) // 2] if number % 2 else bytes(byte ^ 1 for byte in content)
        path.write_bytes(content)
    again = fuse(monkeypatch, "matvec")
    assert_same(run(folder, SPECTRA["topk"]), expected)
    assert again.count >= 12
    folder = write(RunFolder(tmp_path / "other"), known(), tile=8)
    fuse(monkeypatch, "matvec", at=12)
    with pytest.raises(KeyboardInterrupt):
        run(folder, SPECTRA["topk"])
    fuse(monkeypatch, "matvec")
    other = TopK(num_top=2, num_bottom=1, tolerance=1e-9, seed=1)
    run(folder, other)
    [file] = aggregate(folder, other, Threads(1))
    assert file.numbers["lambda_max"] == pytest.approx(expected[0]["lambda_max"], rel=1e-9)


def test_a_process_that_is_killed_leaves_its_passes(tmp_path, monkeypatch):
    counted = fuse(monkeypatch, "matvec")
    expected = run(write(RunFolder(tmp_path / "whole"), known(), tile=8), SPECTRA["slq"])
    folder = write(RunFolder(tmp_path / "cut"), known(), tile=8)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import pipeline.aggregate.stage, pipeline.aggregate.partial_results\n"
        "from pipeline.cluster import Threads\n"
        "from pipeline.system.run_folder import RunFolder\n"
        "from pipeline.shards.shard import Shard\n"
        "from pipeline.spectrum import SLQ\n"
        "pipeline.aggregate.partial_results.SLOW, matvec, calls = 0.0, Shard.matvec, []\n"
        "pipeline.aggregate.stage.TILES_PER_TASK = 1\n"
        "def killed(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return matvec(*arguments)\n"
        "Shard.matvec = killed\n"
        "spectrum = SLQ(num_top=3, num_vectors=4, num_steps=6)\n"
        "list(pipeline.aggregate.stage.aggregate(RunFolder(Path(sys.argv[1])), spectrum, Threads(1)))\n"
    )
    assert python("-c", code, folder.path).returncode == -9
    assert not folder.spectrum(STEP).exists()
    again = fuse(monkeypatch, "matvec")
    assert_same(run(folder, SPECTRA["slq"]), expected)
    assert again.count == counted.count - 16


def test_quick_results_leave_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.aggregate.partial_results, "SLOW", 60.0)
    monkeypatch.setattr(pipeline.aggregate.stage, "SAVE_EVERY", 60.0)
    saved, save = [], PartialResults.save

    def noted(self, name, *rest):
        saved.append(name)
        save(self, name, *rest)

    monkeypatch.setattr(PartialResults, "save", noted)
    run(write(RunFolder(tmp_path), known()), SPECTRA["exact"])
    assert saved == ["sums"]  # once, when the mean is whole
