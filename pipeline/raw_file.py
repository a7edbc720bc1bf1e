"""The file under an HDF5 file that is being written: HDF5 never hears of a fault, whoever wrote the file does.

HDF5 cannot close a file that it could not write. It says so where nobody listens (in a destructor), leaves the object
open, and takes the process down when the library ends: with SIGSEGV, after a run that looked well. So HDF5 writes
through this (its driver for Python's file objects): the first fault is kept for `check`, and from then on HDF5 gets
along with what is in memory, until it has closed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.seal import seal_of


class RawFile:
    """A file object as HDF5 wants it: `seek`, `readinto`, `write`, `truncate`, `flush`.

    path: a file that is there keeps its content. num_bytes: of room that is reserved on the disk first, so that a
    full one is told before anything is computed; what of it is not written is given back by `close`.
    Cost beside HDF5's own driver: a call in Python each time it writes, none of the content is copied.

    Raises:
        OSError: the file cannot be opened, or there is no room.
    """

    def __init__(self, path: Path, num_bytes: int = 0) -> None:
        self.fault: OSError | None = None
        self._position = 0
        self._unwritten: list[tuple[int, bytes]] = []  # since the fault
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._end = os.fstat(self._handle).st_size
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
        for offset, content in self._unwritten:
            first, last = max(start, offset), min(start + len(buffer), offset + len(content))
            if first < last:
                buffer[first - start : last - start] = content[first - offset : last - offset]
        self._position += len(buffer)
        return len(buffer)

    def write(self, content: memoryview) -> int:
        """Write all of it here, or keep it in memory if the disk does not take it."""
        start, done = self._position, 0
        self._position += len(content)
        self._end = max(self._end, self._position)
        while self.fault is None and done < len(content):
            try:
                done += os.pwrite(self._handle, content[done:], start + done)
            except OSError as error:
                self.fault = error
        if done < len(content):
            self._unwritten.append((start, bytes(content)))
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        return self._end

    def flush(self) -> None:
        """Nothing is held back."""

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

    def seal(self, left_out: NDArray[np.int64]) -> None:
        """Add a seal, see `pipeline.seal`. HDF5 must have closed its file before."""
        if self.fault is None:
            self.seek(0, os.SEEK_END)
            self.write(memoryview(seal_of(self._handle, self._end, left_out)))

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


def _reserve(handle: int, num_bytes: int) -> None:
    if num_bytes == 0:
        return
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # not: a file system that cannot reserve
            raise
