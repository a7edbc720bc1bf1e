import shutil

import pytest

from pipeline.errors import PipelineError
from pipeline.system import resources
from pipeline.system.resources import available_memory, check_disk, check_memory, format_bytes, format_seconds


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 bytes"), (1, "1 bytes"), (999, "999 bytes"), (1000, "1 kB"), (45_900_000_000, "45.9 GB"),
     (7.5e15, "7.5 PB"), (3e20, "3e+05 PB")],
)  # fmt: skip
def test_bytes_in_words(num_bytes, words):
    assert format_bytes(int(num_bytes)) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0421, "0.042 s"), (99, "99 s"), (900, "15 min"), (9000, "2.5 h")]
)
def test_seconds_in_words(seconds, words):
    assert format_seconds(seconds) == words


def test_what_fits_in_memory_is_let_through():
    check_memory(1000, {"strategy=hvp": 5_000, "spectrum=exact": 10_000}, available=10_000)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            {"strategy=func": 10_001},
            "strategy=func with P = 1,000 weights needs 10 kB of memory, 10 kB are free: "
            "choose fewer weights (parameters=[...]).",
        ),
        (
            {"strategy=hvp": 1, "spectrum=exact": 2 * 10**10},
            "spectrum=exact with P = 1,000 weights needs 20 GB of memory, 10 kB are free: choose spectrum=slq, "
            "or fewer weights (parameters=[...]).",
        ),
    ],
)
def test_what_does_not_fit_in_memory_is_refused(needs, message):
    with pytest.raises(PipelineError) as caught:
        check_memory(1000, needs, available=10_000)
    assert str(caught.value) == message


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """A control group whose limit can be written."""
    path = tmp_path / "memory.max"
    monkeypatch.setattr(resources, "CGROUP_LIMITS", (str(tmp_path / "nowhere"), str(path)))
    return path


def test_a_container_may_use_less_than_the_machine_has(limit):
    machine = available_memory()
    assert machine > 10**8
    limit.write_text("max\n")
    assert available_memory() > machine / 2
    limit.write_text("1\n")  # less than this process takes already
    assert available_memory() == 0


def test_a_disk_holds_what_fits(tmp_path, monkeypatch):
    one = 10**7
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 4 * one))
    asked = []
    ways = lambda there: asked.append(there) or ["num_batches=1", "another disk"]  # noqa: E731
    check_disk(tmp_path, 1000, one, 4, ways)
    with pytest.raises(PipelineError) as caught:
        check_disk(tmp_path, 1000, one, 5, ways)
    assert asked == [4 * one]
    assert str(caught.value) == (
        f"5 shards of P = 1,000 weights need {format_bytes(5 * one)} of disk, "
        f"{format_bytes(4 * one)} are free in {tmp_path}: "
        "choose num_batches=1, or another disk."
    )
    check_disk(tmp_path, 1000, one // 2, 5, ways)
