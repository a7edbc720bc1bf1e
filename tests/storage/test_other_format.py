"""A storage option keeps shards in another format, in whole runs; oracle: HDF5."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.command import SMALL, fail, succeed
from support.npy_storage import Npy
from support.storage_formats import OVERRIDES

import pipeline
import pipeline.storage
from pipeline.errors import PipelineError
from pipeline.results.run import store_of
from pipeline.shards import HDF5
from pipeline.system import RunFolder

ELSEWHERE = Path(__file__).parents[1] / "support"
OWN = OVERRIDES[0]
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


@pytest.mark.parametrize("own", OVERRIDES)
@pytest.mark.parametrize(
    "options",
    [(), ("cluster=local", "cluster.num_workers=5")],
    ids=["threads", "bands by workers"],
)
def test_a_whole_run(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], own: str
) -> None:
    folder = tmp_path / "run"
    succeed(folder, *OPTIONS, own, *options, paths=[ELSEWHERE])
    files = [path for path in (folder / "shards").rglob("*") if path.is_file()]
    assert files
    assert not any(map(h5py.is_hdf5, files))
    assert list((folder / "shards").glob("*/*.bands/*")) if options else True
    assert numbers(folder) == pytest.approx(numbers(usual), rel=1e-12)
    assert (folder / "report.html").is_file()
    monkeypatch.syspath_prepend(str(ELSEWHERE))
    own, expected = pipeline.open_run(folder).shards, pipeline.open_run(usual).shards
    assert own.keys() == expected.keys()
    for step, shards in expected.items():
        for mine, other in zip(own[step], shards, strict=True):
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(mine)).dense(), other.dense())


@pytest.mark.parametrize("own", OVERRIDES)
def test_the_mean_alone_by_a_run_that_goes_on(usual: Path, tmp_path: Path, own: str) -> None:
    folder = tmp_path / "run"
    succeed(folder, *OPTIONS, own, "keep=mean", "num_batches=2", "stages=[train,compute]", paths=[ELSEWHERE])
    succeed(folder, *OPTIONS, own, "keep=mean", paths=[ELSEWHERE])
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


def test_an_option_of_the_package_may_have_a_format_of_its_own(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = RunFolder(tmp_path), (usual / "config.yaml").read_text()
    assert store_of(RunFolder(usual)) == HDF5
    folder.config.write_text(config.replace("pipeline.storage.Plain", "pipeline.storage.Npy"))
    assert store_of(folder) == HDF5  # an option of another version
    monkeypatch.setattr(pipeline.storage, "Npy", Npy, raising=False)
    assert store_of(folder) == Npy.store
