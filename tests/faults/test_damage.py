"""A shard that is not what was written, or does not belong here: it is never read as if it were, and is replaced."""

import os
import shutil

import h5py
import pytest
from faults.runs import commands
from support.command import SMALL
from support.outcome import complete, differing, results

ALL = "train,compute,aggregate,slices"
SHARD, MEAN, SPECTRA, SLICES = (
    f"{name}.h5"
    for name in (
        "shards/step-000020/batch-00001",
        "shards/step-000020/mean",
        "spectra/step-000020",
        "slices/step-000020",
    )
)


@pytest.fixture(scope="module")
def both(library, in_memory):
    """In one folder: the stage aggregate alone, and all stages."""
    folder = in_memory / "damage" / "run"
    wanted = {stages: (folder, (*SMALL, f"stages=[{stages}]")) for stages in ("aggregate", ALL)}
    other = folder.with_name("other"), (*SMALL, f"stages=[{ALL}]", "seed=1")
    with commands(library, [*wanted.values(), other]) as found:
        yield dict(zip((*wanted, "other"), found, strict=True))


@pytest.fixture(scope="module")
def undisturbed(both, tmp_path_factory):
    return finished(both[ALL], tmp_path_factory.mktemp("damage") / "undisturbed")


@pytest.fixture(scope="module")
def other(both, tmp_path_factory):
    """The same, from another seed."""
    return finished(both["other"], tmp_path_factory.mktemp("damage") / "other")


def finished(command, target):
    command.begin_from(None)
    done = command.run()
    assert done.status == 0, done.output
    return shutil.copytree(command.folder, target)


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
@pytest.mark.parametrize("stages", ["aggregate", ALL])
def test_a_shard_that_is_not_right(both, undisturbed, other, damage, stages):
    """One line names the file; the run is refused and what the line says helps, or the run makes the shard anew."""
    both[stages].begin_from(undisturbed)
    folder = both[stages].folder
    for name in (MEAN, SPECTRA):
        (folder / name).unlink()
    before = complete(folder)
    damage(folder / SHARD, other)
    done = both[stages].run()
    [line] = [line for line in done.output.splitlines() if str(folder / SHARD) in line]
    assert ": " in line
    assert done.status in (0, 1)
    if done.status == 1:
        assert done.complaints[-1] == line
        assert not (folder / SPECTRA).exists()
        (folder / SHARD).unlink(missing_ok=True)  # as the line says, or it is set aside already
    elif damage in (of_another_config, another_batch, newer_format):
        pytest.fail("what does not belong here was taken, or replaced unasked")
    ends_undisturbed(both[ALL], undisturbed)
    kept = {name: stamp for name, stamp in before.items() if name != SHARD}
    assert kept.items() <= complete(folder).items()


def ends_undisturbed(command, undisturbed):
    done = command.run()
    assert done.status == 0, done.output
    assert differing(results(command.folder), results(undisturbed)) == []


@pytest.mark.parametrize(
    "name",
    [
        MEAN,
        SPECTRA,
        SLICES,
        "checkpoints/step-000020.safetensors",
        "checkpoints/history.csv",
        "checkpoints/state.pt",
        "config.yaml",
        "summary.json",
        "status.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_any_other_file_that_is_not_right(both, undisturbed, name, how):
    """It does no harm, or is told in one line that names it; once it is gone, the run ends as if undisturbed."""
    both[ALL].begin_from(undisturbed)
    folder = both[ALL].folder
    content = bytearray((folder / name).read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 64
    (folder / name).write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": content}[how])
    if name != SLICES:
        for made in {MEAN, SPECTRA} - {name}:  # so that it is made again, from whatever is there
            (folder / made).unlink()
    done = both[ALL].run()
    assert done.status in (0, 1), done.output
    assert "unexpected" not in done.output
    if done.status == 1:
        assert len(done.complaints) == 1
        assert str(folder / name) in done.complaints[0]
        (folder / name).unlink(missing_ok=True)
    else:
        assert differing(results(folder), results(undisturbed)) == []
    ends_undisturbed(both[ALL], undisturbed)
