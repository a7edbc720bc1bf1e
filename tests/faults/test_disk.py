"""A disk that fills up while a run writes to it; files and folders that may not be written."""

import os
import shutil
import subprocess
import time

import pytest
from faults.runs import commands
from support.command import PROGRESS, SMALL, fail, start, succeed
from support.outcome import complete, differing, results

MANY = (
    *SMALL,
    "figure_formats=[png]",
    "data.batch_size=5",
    "stages=[train,compute,aggregate]",
    "num_batches=6",
)  # 6 shards, and their mean
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can mount a file system or forbid itself a file"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "undisturbed"
    succeed(folder, *MANY)
    return results(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(path):
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@needs_root
@pytest.mark.parametrize("cluster", [["cluster=threads"], ["cluster=local", "cluster.num_workers=2"]])
def test_a_disk_that_fills_up_while_shards_are_written(small_disk, undisturbed, cluster):
    """In a worker too: it is told here, in the same line."""
    folder, ballast, options = small_disk / "run", small_disk / "ballast", (*MANY, *cluster)
    process = start(folder, *options)
    while process.poll() is None and not list(folder.glob("shards/*/batch-00001.h5")):
        time.sleep(0.001)
    fill(ballast)
    output = process.communicate(timeout=60)[0]
    lines = [line for line in output.splitlines() if not any(said in line for said in PROGRESS)]
    there = complete(folder)
    assert process.returncode == 1
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert ": make room or choose another folder" in lines[0]
    assert 3 <= len(there) < 8  # weights and two shards at least, not all
    found = results(folder)
    assert not [name for name in there if name in found and found[name] != undisturbed[name]]
    line = fail(folder, *options)
    assert "No space left on device" in line or "of disk, " in line
    ballast.unlink()
    succeed(folder, *options)
    assert there.items() <= complete(folder).items()
    assert differing(results(folder), undisturbed) == []


@needs_root
def test_a_disk_that_is_full_from_the_beginning(small_disk, undisturbed):
    fill(small_disk / "ballast")
    for _ in range(2):
        line = fail(small_disk / "run", *MANY)
        assert "No space left on device: make room or choose another folder" in line
    (small_disk / "ballast").unlink()
    succeed(small_disk / "run", *MANY)
    assert differing(results(small_disk / "run"), undisturbed) == []


@needs_root
def test_a_disk_that_becomes_read_only(small_disk, undisturbed):
    folder = small_disk / "run"
    succeed(folder, *MANY[:-2], "stages=[train,compute]", "num_batches=6")
    there = complete(folder)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        line = fail(folder, *MANY)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert "Read-only file system: give yourself the right to it or choose another folder" in line
    succeed(folder, *MANY)
    assert there.items() <= complete(folder).items()
    assert differing(results(folder), undisturbed) == []


PLACES = (
    "",
    ".lock",
    "run.log",
    "config.yaml",
    "status.json",
    "checkpoints",
    "checkpoints/state.pt",
    "checkpoints/history.csv",
    "shards",
    "shards/step-000020",
    "summary.json",
)


@pytest.fixture(scope="module")
def repeated(library, tmp_path_factory):
    with commands(library, [(tmp_path_factory.mktemp("disk") / "run", MANY)]) as [command]:
        yield command


@pytest.fixture(scope="module")
def interrupted(repeated, tmp_path_factory):
    """A run that has its first shards, but neither the last one nor a spectrum."""
    repeated.begin_from(None)
    assert repeated.run().status == 0
    folder = shutil.copytree(repeated.folder, tmp_path_factory.mktemp("disk") / "interrupted")
    (folder / "shards/step-000020/batch-00005.h5").unlink()
    (folder / "shards/step-000020/mean.h5").unlink()
    shutil.rmtree(folder / "spectra")
    return folder


@needs_root
@pytest.mark.parametrize("place", PLACES)
def test_a_file_or_folder_that_may_not_be_written(interrupted, undisturbed, repeated, place):
    """Root may write what has no permission, but not what is immutable (chattr +i)."""
    repeated.begin_from(interrupted)
    folder, forbidden = repeated.folder, repeated.folder / place
    before = complete(folder)
    changed = subprocess.run(["chattr", "+i", forbidden], capture_output=True, text=True, check=False)
    if changed.returncode != 0:
        pytest.skip(f"nothing can be made immutable here: {changed.stderr.strip()}")
    try:
        done = repeated.run()
    finally:
        subprocess.run(["chattr", "-i", forbidden], check=True)
    if place.startswith("checkpoints") or place == "shards":  # nothing is to be made in there
        assert done.status == 0, done.output
    else:
        assert (done.status, len(done.complaints)) == (1, 1), done.output
        assert "Operation not permitted" in done.complaints[0]
        assert str(forbidden) in done.complaints[0]
        assert "another folder with hydra.run.dir=FOLDER" in done.complaints[0]
    assert before.items() <= complete(folder).items()
    assert repeated.run().status == 0
    assert before.items() <= complete(folder).items()
    assert differing(results(folder), undisturbed) == []
