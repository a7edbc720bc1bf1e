"""The journal of an unfinished file: what is read is a prefix of what was added, whatever became of the file."""

import numpy as np
import pytest

from pipeline.shards.tile_journal import Entry, TileJournal

ENTRIES = [Entry(0, 0, 17), Entry(1, 0, 2**32 - 1), Entry(1, 1, 0), Entry(12, 7, 123456789)]


@pytest.fixture
def journal(tmp_path):
    return TileJournal.beside(tmp_path / "batch-00000.h5", {"step": 3, "config_hash": "abc"})


def filled(journal):
    journal.begin(ENTRIES[:1])
    journal.add(ENTRIES[1:3])
    journal.add(ENTRIES[3:])
    return journal.path.read_bytes()


def test_entries_come_back_in_order(journal):
    assert journal.read() == []
    filled(journal)
    assert journal.read() == ENTRIES
    assert journal.path.name == "batch-00000.h5.journal"
    journal.begin([])
    assert journal.read() == []
    journal.remove()
    journal.remove()
    assert not list(journal.path.parent.iterdir())


def test_another_identity_has_no_entries(journal, tmp_path):
    filled(journal)
    for other in ({"step": 4, "config_hash": "abc"}, {"step": 3}, {}):
        assert TileJournal.beside(tmp_path / "batch-00000.h5", other).read() == []
    assert (
        TileJournal.beside(tmp_path / "batch-00000.h5", {"config_hash": "abc", "step": 3}).read() == ENTRIES
    )


def test_a_torn_file_gives_the_entries_that_are_whole(journal):
    content = filled(journal)
    ends = [k + 1 for k, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        journal.path.write_bytes(content[:length])
        assert journal.read() == ENTRIES[: max(0, sum(end <= length for end in ends) - 1)]


def test_after_a_torn_line_nothing_counts(journal):
    content = filled(journal)
    lines = content.splitlines(keepends=True)
    journal.path.write_bytes(b"".join([*lines[:2], lines[2][:-3], *lines[3:]]))
    assert journal.read() == ENTRIES[:1]
    journal.path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert journal.read() == ENTRIES[:1]
    journal.path.write_bytes(b"".join([*lines[:2], lines[3], lines[2], lines[4]]))
    assert journal.read() == ENTRIES[:1]


def test_a_flipped_bit_never_gives_an_entry_that_was_not_added(journal):
    content = filled(journal)
    rng = np.random.default_rng(0)
    for _ in range(150):
        place, bit = int(rng.integers(len(content))), int(rng.integers(8))
        journal.path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        found = journal.read()
        assert found == ENTRIES[: len(found)]
        assert len(found) < len(ENTRIES)
