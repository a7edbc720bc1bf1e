"""A shard that is not what was written, or does not belong here: it is never read as if it were, and is replaced."""

import os
import shutil

import h5py
import pytest
from command import SMALL, run, succeed
from outcome import complete, differing, results

OPTIONS = (*SMALL, "stages=[train,compute,aggregate]")
SHARD, MEAN, SPECTRA = (
    f"{name}.h5"
    for name in ("shards/step-000020/batch-00001", "shards/step-000020/mean", "spectra/step-000020")
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "undisturbed"
    succeed(folder, *OPTIONS)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same, from another seed."""
    folder = tmp_path_factory.mktemp("damage") / "other"
    succeed(folder, *OPTIONS, "seed=1")
    return folder


def tile_of(path):
    with h5py.File(path) as file:
        chunk = file["matrix"].id.get_chunk_info(0)
        return chunk.byte_offset, chunk.size


def flipped_bit(path, _other):
    offset, size = tile_of(path)
    content = bytearray(path.read_bytes())
    content[offset + size // 2] ^= 8
    path.write_bytes(content)


def zeroed_tile(path, _other):
    offset, size = tile_of(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)


def cut_tail(path, _other):
    os.truncate(path, path.stat().st_size * 9 // 10)


def nothing_in_it(path, _other):
    path.write_bytes(b"")


def of_another_config(path, other):
    shutil.copy(other / SHARD, path)


def another_batch(path, _other):
    shutil.copy(path.with_name("batch-00000.h5"), path)


def newer_format(path, _other):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] += 1


DAMAGES = (flipped_bit, zeroed_tile, cut_tail, nothing_in_it, of_another_config, another_batch, newer_format)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stages", ["aggregate", "train,compute,aggregate"])
def test_a_shard_that_is_not_right(undisturbed, other, tmp_path, damage, stages):
    """One line names the file; the run is refused and what the line says helps, or the run makes the shard anew."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    for name in (MEAN, SPECTRA):
        (folder / name).unlink()
    before = complete(folder)
    damage(folder / SHARD, other)
    done = run(folder, *SMALL, f"stages=[{stages}]")
    [line] = [line for line in done.stdout.splitlines() if str(folder / SHARD) in line]
    assert ": " in line
    assert "Traceback" not in done.stdout
    assert done.returncode in (0, 1)
    if done.returncode == 1:
        assert not (folder / SPECTRA).exists()
        (folder / SHARD).unlink(missing_ok=True)  # as the line says, or it is set aside already
    elif damage in DAMAGES[4:]:
        pytest.fail("what does not belong here was taken, or replaced unasked")
    kept = {name: stamp for name, stamp in before.items() if name != SHARD}
    assert kept.items() <= complete(folder).items()
    assert differing(results(folder), results(undisturbed)) == []


@pytest.mark.parametrize(
    "name",
    [
        MEAN,
        SPECTRA,
        "checkpoints/step-000020.safetensors",
        "checkpoints/history.csv",
        "checkpoints/state.pt",
        "config.yaml",
        "summary.json",
        "status.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_any_other_file_that_is_not_right(undisturbed, tmp_path, name, how):
    """It is told in one line, or does no harm; once it is deleted, the run ends in the undisturbed result."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    content = bytearray((folder / name).read_bytes())
    content = {"cut": content[: len(content) // 2], "empty": b"", "flipped": content[:]}[how]
    if how == "flipped":
        content[len(content) // 2] ^= 64
    (folder / name).write_bytes(content)
    if name not in (MEAN, SPECTRA):
        for made in (MEAN, SPECTRA):  # so that it is made again, from whatever is there
            (folder / made).unlink()
    done = run(folder, *OPTIONS, "stages=[train,compute,aggregate,report]")
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stdout
    assert "unexpected" not in done.stdout, done.stdout
    if done.returncode == 1:
        assert str(folder / name) in done.stdout
        (folder / name).unlink(missing_ok=True)
    succeed(folder, *OPTIONS)
    assert differing(results(folder), results(undisturbed)) == []
