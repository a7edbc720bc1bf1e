"""What of an unfinished file is safe on the disk: a line a tile, added when the tile is there to stay."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.system import write_atomically


class Entry(NamedTuple):
    """A tile (row, column), the CRC-32 of its content, its largest entry, and how far rounding moved one."""

    row: int
    column: int
    checksum: int
    largest: float = 0.0
    rounding: float = 0.0


@dataclass(frozen=True)
class TileJournal:
    """Lines of an entry's numbers and `check`, after a first line that says what the tiles belong to.

    check: the CRC-32 of all that stands before it, so that a torn line, and what follows one, counts for nothing.
    identity: a digest of all that the tiles depend on; entries of another identity count for nothing either.
    """

    path: Path
    identity: str

    @staticmethod
    def beside(path: Path, identity: Mapping[str, Any]) -> TileJournal:
        """The journal of the unfinished file whose final name is `path`."""
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return TileJournal(path.with_name(path.name + ".journal"), digest)

    def read(self) -> list[Entry]:
        """The entries, in the order in which they were added; none, where there is no journal of this identity."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if not content.startswith(self._head):
            return []
        entries: list[Entry] = []
        check, start = zlib.crc32(self._head), len(self._head)
        while (stop := content.find(b"\n", start) + 1) > 0:
            line = content[start:stop]
            entry = line[: line.rfind(b" ") + 1]
            if line != _line(entry, check):
                break
            row, column, checksum, *numbers = entry.split()
            entries.append(Entry(int(row), int(column), int(checksum), *map(float, numbers)))
            check, start = zlib.crc32(line, check), stop
        return entries

    def begin(self, entries: Iterable[Entry]) -> None:
        """Write a new journal with these entries."""
        write_atomically(self.path, self._with(self._head, entries))

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries of tiles that are on the disk; they are there too when this returns.

        Raises:
            OSError: they cannot be written.
        """
        there = self.path.read_bytes()
        with self.path.open("ab") as file:
            file.write(self._with(there, entries)[len(there) :])
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @property
    def _head(self) -> bytes:
        return f"{self.identity}\n".encode()

    @staticmethod
    def _with(content: bytes, entries: Iterable[Entry]) -> bytes:
        text = bytearray(content)
        check = zlib.crc32(text)
        for entry in entries:
            line = _line(f"{' '.join(map(repr, entry))} ".encode(), check)
            check = zlib.crc32(line, check)
            text += line
        return bytes(text)


def _line(entry: bytes, check: int) -> bytes:
    """A line that says so much, after what has the CRC-32 `check`."""
    return entry + b"%d\n" % zlib.crc32(entry, check)
