"""The seal at the end of an HDF5 file: a checksum of all that HDF5 will look at, checked before HDF5 sees any of it.

HDF5 has no checksums for its own structures in a format that older programs read, and trusts them: one flipped bit can
end the process (SIGSEGV, where a text is read) or change a number. The seal stands behind HDF5's last byte, where no
HDF5 program ever looks. What has checksums of its own, the tiles of a matrix, is left out. In little-endian numbers:

    n spans of bytes, each its first and the one after its last (2 x 8 bytes); n (8); CRC-32 of what they hold (4);
    CRC-32 of the seal up to here (4); 8 bytes by which it is known

A file that ends where HDF5's part of it ends (of an earlier version, or changed by another program, which cuts the seal
off) is taken as it is.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = b"\nsealed\n"
NUMBERS, END = struct.Struct("<QI"), struct.Struct("<I8s")
SUPERBLOCK = b"\x89HDF\r\n\x1a\n\0"
AT_ONCE = 2**24  # bytes


def seal_of(handle: int, size: int, left_out: NDArray[np.int64]) -> bytes:
    """The seal for the first `size` bytes of an open file; left_out: offset and length of some of them, (k, 2)."""
    left_out = left_out[np.argsort(left_out[:, 0])]
    starts, stops = [0, *left_out.sum(1)], [*left_out[:, 0], size]
    spans = np.array([(a, b) for a, b in zip(starts, stops, strict=True) if a < b], "<i8").reshape(-1, 2)
    told = spans.tobytes() + NUMBERS.pack(len(spans), _crc_of(handle, spans))
    return told + END.pack(zlib.crc32(told), MARK)


def is_broken(path: Path) -> bool:
    """Whether a sealed file is not what was sealed.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        foot = os.pread(handle, NUMBERS.size + END.size, max(0, size - NUMBERS.size - END.size))
        if not foot.endswith(MARK):
            return size > _end_of(os.pread(handle, 48, 0), size)  # something stands there that is no seal
        num_spans, content = NUMBERS.unpack_from(foot)
        told = 16 * num_spans + NUMBERS.size
        if told + END.size > size:
            return True
        seal = os.pread(handle, told + END.size, size - told - END.size)
        if zlib.crc32(seal[:told]) != END.unpack_from(seal, told)[0]:
            return True
        spans = np.frombuffer(seal, "<i8", 2 * num_spans).reshape(-1, 2)
        return bool(_crc_of(handle, spans) != content)
    finally:
        os.close(handle)


def is_sealed(path: Path) -> bool:
    """Whether a file ends as one of this program's does, whole or not.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(MARK)))
        return file.read() == MARK


def _end_of(head: bytes, otherwise: int) -> int:
    """Where HDF5's own part of a file ends, as its superblock, of version 0, says."""
    return int.from_bytes(head[40:48], "little") if head.startswith(SUPERBLOCK) else otherwise


def _crc_of(handle: int, spans: NDArray[Any]) -> int:
    crc = 0
    for start, stop in spans.tolist():
        for offset in range(start, stop, AT_ONCE):
            crc = zlib.crc32(os.pread(handle, min(AT_ONCE, stop - offset), offset), crc)
    return crc
