"""The file under an HDF5 file that is being written: HDF5 never hears of a fault, and never leaves half a change.

HDF5 cannot close a file that it could not write. It says so where nobody listens (in a destructor), leaves the object
open, and takes the process down when the library ends: with SIGSEGV, after a run that looked well. So HDF5 writes
through this (its driver for Python's file objects): the first fault is kept for `check`, and from then on HDF5 gets
along with what is in memory, until it has closed.

Nor can HDF5 open a file whose structures were half written when the process was killed; or it does, and finds others.
So all that it writes but the tiles is held in memory until `commit`, which notes it in a file of its own (`redo`)
before it touches this one: what a kill leaves is the file as last committed, or `replay` makes it so.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.system import flush

HEAD, CHECK = struct.Struct("<QQ"), struct.Struct("<I")  # offset and length of a change; CRC-32 of all


class RawFile:
    """A file object as HDF5 wants it: `seek`, `readinto`, `write`, `truncate`, `flush`.

    path: a file that is there keeps its content. num_bytes: of room that is reserved on the disk first, so that a
    full one is told before anything is computed; what of it is not written is given back by `close`.
    redo: where changes are noted; None, for a file that nobody takes up when it is cut short: it is written at once.
    straight: contents of so many bytes (tiles) are not held. They go to places that were never written.
    Cost beside HDF5's own driver: a call in Python each time it writes; only what is held is copied.

    Raises:
        OSError: the file cannot be opened, or there is no room.
    """

    def __init__(self, path: Path, num_bytes: int = 0, redo: Path | None = None) -> None:
        self.fault: OSError | None = None
        self.straight = 0
        self._position = 0
        self._held: list[tuple[int, bytes]] = []
        self._redo = redo
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._end = os.fstat(self._handle).st_size
            self._noting = self._end > 0  # not at the first commit: without it there is nothing to take up
            if redo is not None and not self._noting:
                redo.unlink(missing_ok=True)
            _reserve(self._handle, num_bytes)
        except BaseException:
            os.close(self._handle)
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; what was never written reads as zeros. A fault here is HDF5's to tell."""
        start, done = self._position, 0
        while done < len(buffer) and (got := os.preadv(self._handle, [buffer[done:]], start + done)) > 0:
            done += got
        buffer[done:] = bytes(len(buffer) - done)
        for offset, content in self._held:
            first, last = max(start, offset), min(start + len(buffer), offset + len(content))
            if first < last:
                buffer[first - start : last - start] = content[first - offset : last - offset]
        self._position += len(buffer)
        return len(buffer)

    def write(self, content: memoryview) -> int:
        """Write all of it here, or hold it: until `commit`, or for good if the disk does not take it."""
        start = self._position
        self._position += len(content)
        self._end = max(self._end, self._position)
        if self.fault is None and (self._redo is None or len(content) == self.straight):
            try:
                _write(self._handle, start, content)
                return len(content)
            except OSError as error:
                self.fault = error
        self._held.append((start, bytes(content)))
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        return self._end

    def flush(self) -> None:
        """HDF5 flushes whenever it likes to; see `commit`."""

    def commit(self) -> None:
        """Write what is held: all of it or, after a kill and `replay`, none."""
        if self.fault is not None or self._redo is None:
            return
        try:
            if self._noting:
                _note(self._redo, self._held)
            for offset, content in self._held:
                _write(self._handle, offset, memoryview(content))
            self._held.clear()
            self._noting = True
        except OSError as error:
            self.fault = error

    def finish(self) -> None:
        """Commit, after which nothing is to be taken up again. HDF5 must have closed its file before."""
        self.commit()
        if self.fault is not None:
            return
        try:
            if self._redo is not None and self._redo.exists():
                self.sync()
                self._redo.unlink()
        except OSError as error:
            self.fault = error

    def sync(self) -> None:
        """Wait until what was written is on the disk; more may be written meanwhile."""
        os.fdatasync(self._handle)

    def check(self) -> None:
        """Raise what went wrong so far.

        Raises:
            OSError: HDF5 wrote something that is not on the disk.
        """
        if self.fault is not None:
            raise self.fault

    def close(self) -> None:
        """Give back the room that was not needed. HDF5 must have closed its file before.

        Raises:
            OSError: something of the file is not on the disk.
        """
        try:
            self.check()
            os.ftruncate(self._handle, self._end)
        finally:
            os.close(self._handle)


def replay(path: Path, redo: Path) -> None:
    """Make the changes that were noted, all of them; what a kill left of a note counts for nothing.

    Raises:
        OSError: a file cannot be read or written.
    """
    content = redo.read_bytes() if redo.exists() else b""
    body, check = content[: -CHECK.size], content[-CHECK.size :]
    if check != CHECK.pack(zlib.crc32(body)):
        return
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        place = 0
        while place < len(body):
            offset, size = HEAD.unpack_from(body, place)
            place += HEAD.size + size
            _write(handle, offset, memoryview(body)[place - size : place])
    finally:
        os.close(handle)


def _note(redo: Path, changes: Iterable[tuple[int, bytes]]) -> None:
    """Changes of earlier commits, which it replaces, are on the disk by then."""
    body = b"".join(HEAD.pack(offset, len(content)) + content for offset, content in changes)
    is_new = not redo.exists()
    with redo.open("wb") as file:
        file.write(body + CHECK.pack(zlib.crc32(body)))
        file.flush()
        os.fdatasync(file.fileno())
    if is_new:
        flush(redo.parent)


def _write(handle: int, offset: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], offset + done)


def _reserve(handle: int, num_bytes: int) -> None:
    if num_bytes == 0:
        return
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # not: a file system that cannot reserve
            raise
