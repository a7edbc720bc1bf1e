from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.system.run_folder import RunFolder, replacing, write_atomically

ROOT = Path(__file__).parents[2]


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that holds the lock of the folder until it is told to end."""
    program = f"""
        import sys
        from pathlib import Path
        from pipeline.system.run_folder import RunFolder
        with RunFolder(Path({str(folder)!r})).lock():
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_names() -> None:
    folder = RunFolder(Path("run"))
    assert folder.checkpoint(120) == Path("run/checkpoints/step-000120.safetensors")
    assert folder.checkpoint(12_345_678) == Path("run/checkpoints/step-12345678.safetensors")
    assert folder.shard(120, 3) == Path("run/shards/step-000120/batch-00003.h5")
    assert folder.mean(120) == Path("run/shards/step-000120/mean.h5")
    assert folder.spectrum(0) == Path("run/spectra/step-000000.h5")
    assert (folder.report, folder.summary) == (Path("run/report.html"), Path("run/summary.json"))
    assert (folder.history, folder.figures) == (Path("run/checkpoints/history.csv"), Path("run/figures"))


def test_nothing_is_created_by_asking(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps() == folder.shard_steps() == folder.spectrum_steps() == []
    assert folder.shard_paths(0) == []
    assert not folder.path.exists()


def test_steps_are_found_in_order_and_partial_files_are_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1_000_000, 20, 0):
        for path in (folder.checkpoint(step), folder.spectrum(step)):
            write_atomically(path, b"")
    for step, batch in ((20, 11), (20, 2), (20, 0), (3, 1)):
        write_atomically(folder.shard(step, batch), b"")
    write_atomically(folder.mean(20), b"")
    write_atomically(folder.mean(21), b"")
    for other in ("step-000020.txt", "state.pt", "step-000007.safetensors.partial", "step-x.safetensors"):
        write_atomically(folder.checkpoints / other, b"")
    folder.shard(4, 0).parent.mkdir()
    folder.shard(4, 0).with_suffix(".h5.partial").touch()
    assert folder.checkpoint_steps() == folder.spectrum_steps() == [0, 20, 1_000_000]
    assert folder.shard_steps() == [3, 20, 21]
    assert folder.shard_paths(20) == [folder.shard(20, batch) for batch in (0, 2, 11)]
    assert folder.shard_paths(4) == []
    assert folder.shard_paths(21) == [folder.mean(21)]  # all that is left of its shards


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    message = r"another run is at work in .*: wait for it to end, or choose another folder with hydra\.run\.dir=FOLDER"
    with (
        another_process(tmp_path / "run"),
        pytest.raises(PipelineError, match=message),
        RunFolder(tmp_path / "run").lock(),
    ):
        pytest.fail("two processes hold the folder")


def test_other_folders_are_free(tmp_path: Path) -> None:
    with another_process(tmp_path / "one"), RunFolder(tmp_path / "two").lock():
        assert (tmp_path / "two").is_dir()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_was_killed_lets_go(tmp_path: Path, how: signal.Signals) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(how)
        process.wait()
        with RunFolder(tmp_path).lock():
            pass


def test_the_folder_is_free_after_the_body(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RuntimeError, match="body"), folder.lock():
        raise RuntimeError("body")
    with folder.lock(), pytest.raises(PipelineError, match="another run"), folder.lock():
        pytest.fail("held twice")
    with another_process(tmp_path):
        pass


def test_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with RunFolder(tmp_path).lock():
        child = subprocess.Popen(command, close_fds=False, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with RunFolder(tmp_path).lock():
            assert child.poll() is None
        child.kill()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            PipelineError,
            match=r"the run folder .* cannot be written \(.*\): choose another folder with hydra",
        ),
        RunFolder(tmp_path / "file").lock(),
    ):
        pytest.fail("a file is no folder")


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "summary.json"
    with replacing(target) as partial:
        assert partial.parent == target.parent
        partial.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("begun", [False, True])
def test_what_was_there_stays_when_the_body_raises(
    tmp_path: Path, error: type[BaseException], begun: bool
) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as partial:
            if begun:
                partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_leftover_of_a_killed_process_is_no_hindrance(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.with_name("summary.json.partial").write_text("much longer than what follows")
    write_atomically(target, "new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: the file flushed, renamed, the folder flushed."""
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("flush " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "x", b"content")
    assert done == ["flush x.partial", "rename", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_never_sees_half_a_file(tmp_path: Path, seed: int) -> None:
    """A process that rewrites a file is killed at some moment; the file is one of the two versions."""
    target = tmp_path / "x"
    write_atomically(target, b"a" * 1_000_000)
    program = f"""
        from pathlib import Path
        from pipeline.system.run_folder import write_atomically
        while True:
            for letter in (b"b", b"a"):
                write_atomically(Path({str(target)!r}), letter * 1_000_000)
                print(flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.013 * (seed + 1))
        process.kill()
    content = target.read_bytes()
    assert len(content) == 1_000_000
    assert len(set(content)) == 1


def test_temporary_files_of_a_killed_process_go_but_for_those_that_are_taken_up(tmp_path: Path) -> None:
    left, taken_up = (
        tmp_path / "checkpoints/history.csv.partial",
        tmp_path / "shards/step-000001/x.h5.partial",
    )
    for path in (left, taken_up):
        path.parent.mkdir(parents=True)
        path.touch()
    with RunFolder(tmp_path).lock():
        assert not left.exists()
        assert taken_up.exists()
