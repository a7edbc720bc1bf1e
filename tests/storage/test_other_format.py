"""A storage option from outside of the package keeps shards in another format, in whole runs; oracle: HDF5."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command import SMALL, fail, succeed

import pipeline
from pipeline.errors import PipelineError

ELSEWHERE = Path(__file__).parents[1] / "support"
OWN = "storage._target_=npy_storage.Npy"
STAGES = "stages=[train,compute,aggregate,slices,report]"
OPTIONS = (*SMALL, STAGES, "storage.tile=3", "data.num_samples=50")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usual") / "run"
    succeed(folder, *OPTIONS)
    return folder


def numbers(folder: Path) -> dict[str, float]:
    return {
        key: value
        for key, value in json.loads((folder / "summary.json").read_text()).items()
        if not key.startswith("seconds")
    }


@pytest.mark.parametrize(
    "options",
    [(), ("cluster=local", "cluster.num_workers=5")],
    ids=["threads", "bands by workers"],
)
def test_a_whole_run(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    succeed(folder, *OPTIONS, OWN, *options, paths=[ELSEWHERE])
    files = [path for path in (folder / "shards").rglob("*") if path.is_file() and path.suffix != ".npy"]
    assert {path.name for path in files} == {"arrays.npz", "attrs.json", "form.json"}
    assert list((folder / "shards").glob("*/*.bands/*")) if options else True
    assert numbers(folder) == pytest.approx(numbers(usual), rel=1e-12)
    assert (folder / "report.html").is_file()
    monkeypatch.syspath_prepend(str(ELSEWHERE))
    own, expected = pipeline.open_run(folder).shards, pipeline.open_run(usual).shards
    assert own.keys() == expected.keys()
    for step, shards in expected.items():
        for mine, other in zip(own[step], shards, strict=True):
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(mine)).dense(), other.dense())


def test_the_mean_alone_by_a_run_that_goes_on(usual: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    succeed(folder, *OPTIONS, OWN, "keep=mean", "num_batches=2", "stages=[train,compute]", paths=[ELSEWHERE])
    succeed(folder, *OPTIONS, OWN, "keep=mean", paths=[ELSEWHERE])
    [step] = (folder / "shards").iterdir()
    assert [path.name for path in step.iterdir()] == ["mean.h5"]
    for key in ("lambda_max", "trace", "loss", "num_batches"):
        assert numbers(folder)[key] == pytest.approx(numbers(usual)[key], rel=1e-12), key


def test_a_class_that_is_not_there_when_shards_are_read_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    succeed(folder, *SMALL, "stages=[train,compute]", OWN, paths=[ELSEWHERE])
    monkeypatch.delitem(sys.modules, "npy_storage", raising=False)
    match = r"config\.yaml has storage\._target_=npy_storage\.Npy, which cannot be used \(No module"
    with pytest.raises(PipelineError, match=match):
        _ = pipeline.open_run(folder).shards
    assert "which cannot be used" in fail(folder, "stages=[aggregate]", "tracking=none")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("npy_storage.Npy", "os.system"))
    monkeypatch.setattr("os.system", lambda *args, **options: pytest.fail("it was called"))
    with pytest.raises(PipelineError):  # what is no class is not called, and the shards are not HDF5
        _ = pipeline.open_run(folder).shards
