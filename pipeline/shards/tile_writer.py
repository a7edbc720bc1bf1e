"""Full tiles on their way to the disk: checked, written and recorded in a thread, while the next ones are computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.errors import NotFiniteError
from pipeline.shards.tile_grid import Tile, TileGrid, mirrored
from pipeline.shards.tile_journal import Entry, TileJournal
from pipeline.shards.tile_store import Array, TileForm, UnfinishedFile

QUEUE_BYTES = 64 * 2**20  # of tiles that wait to be written
RECORD_BYTES = 64 * 2**20  # of tiles after which they are recorded: what a kill may lose
RECORD_SECONDS = 5.0  # without a new tile, after which those before it are recorded


class TileStream:
    """Takes full tiles, and writes them in the order in which they come, so that products add up to the same bits.

    Three things go on at once: the caller computes, a thread writes (finite? CRC-32, file, products), and another
    waits for the disk and records in the journal what has reached it. What fails there is raised by `put`, `drain` and
    on leaving.

    products: H v for the directions v, (P, m), from the tiles written so far. checksums: (n, n), by tile. largest,
    rounding: the largest entry, and how far the rounding to the stored dtype has moved one.
    computed: the dtype of the tiles that come.
    Memory: QUEUE_BYTES and two tiles.
    """

    def __init__(
        self,
        output: UnfinishedFile,
        form: TileForm,
        grid: TileGrid,
        directions: Array,
        journal: TileJournal | None,
        computed: str | None = None,
    ) -> None:
        self._dtype, self._computed = form.dtype, np.dtype(computed or form.dtype)
        self.largest = self.rounding = 0.0
        self._output, self._grid, self._journal = output, grid, journal
        self._directions = directions.astype(form.dtype)
        self.products = np.zeros(directions.shape)
        self.checksums = np.zeros((grid.num_tile_rows, grid.num_tile_rows), np.uint32)
        self._shape = (grid.size, grid.size)
        self._tiles: queue.Queue[tuple[Tile, Array] | None] = queue.Queue(
            max(2, QUEUE_BYTES // form.tile_bytes)
        )
        self._spare: queue.SimpleQueue[Array] = queue.SimpleQueue()
        self._tiles_a_record = max(1, RECORD_BYTES // form.tile_bytes)
        self._restored: list[Entry] | None = []  # None: they are in the journal of this process
        self._written: list[Entry] = []  # and not yet recorded
        self._recording: Future[None] | None = None
        self._recorder = ThreadPoolExecutor(1, "recorder")
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tiles", daemon=True)

    def __enter__(self) -> TileStream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tiles.put(None)
        self._thread.join()
        if (
            error is not None
        ):  # what is written is kept for the next run; where all went well, the file will be whole
            self._guarded(self._wait)
            self._guarded(self._record)
        self._guarded(self._wait)
        self._recorder.shutdown()
        if error is None:
            self._check()

    def restore(self, entries: Iterable[Entry]) -> list[Tile]:
        """Take tiles that are in the file already; gives those that are what was recorded."""
        known = {(entry.row, entry.column): entry for entry in entries}
        self._restored = []
        for tile, values, checksum in self._output.read([tile for tile in known if self._grid.has(tile)]):
            if values is not None and checksum == known[tile].checksum:
                self._multiply(tile, values)
                self._note(known[tile])
                self._restored.append(known[tile])
        return [(entry.row, entry.column) for entry in self._restored]

    def empty(self) -> Array:
        """A tile of NaN to be filled: the memory of one that has been written, where there is one."""
        try:
            buffer = self._spare.get_nowait()
        except queue.Empty:
            buffer = np.empty(self._shape, self._computed)
        buffer.fill(np.nan)
        return buffer

    def takes(self, values: Array) -> bool:
        """Whether `put` may be given this in place of a tile from `empty`."""
        fits = values.shape == self._shape and values.dtype == self._computed
        return fits and bool(values.flags.c_contiguous and values.flags.writeable)

    def put(self, tile: Tile, buffer: Array) -> None:
        """Hand over a full tile from `empty`, or one that it `takes`; waits while too many are under way.

        Raises:
            PipelineError: a tile before this one holds a NaN or an infinity.
            OSError: one could not be written.
        """
        self._check()
        self._tiles.put((tile, buffer))

    def drain(self) -> None:
        """Wait until all tiles are written; raises as `put` does."""
        self._tiles.join()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do it, unless something has failed before; the caller of `put` is told what fails."""
        try:
            if self._failure is None:
                action(*arguments)
        except BaseException as failure:
            self._failure = failure

    def _run(self) -> None:
        while True:
            try:
                item = self._tiles.get(timeout=RECORD_SECONDS)
            except queue.Empty:
                self._guarded(self._record)
                continue
            if item is None:
                return
            self._guarded(self._write, *item)
            self._tiles.task_done()

    def _write(self, tile: Tile, buffer: Array) -> None:
        if not self._is_finite(tile, buffer):
            i, j = (span.start for span in map(self._grid.span, tile))
            other = "" if buffer.dtype == np.float64 else ", or use dtype=float64"
            raise NotFiniteError(
                f"the matrix has NaN or infinite entries (near row {i}, column {j})",
                f"look at the loss and the weights of this checkpoint{other}",
            )
        values = buffer.astype(self._dtype, copy=False)
        numbers = () if values is buffer else _rounding(buffer, values)
        entry = Entry(*tile, self._output.write(tile, values), *numbers)
        self._note(entry)
        self._multiply(tile, values)
        self._written.append(entry)
        self._spare.put(buffer)
        if len(self._written) >= self._tiles_a_record:
            if len(self._written) >= 2 * self._tiles_a_record:
                self._wait()  # lest the system has more to write than it wants to hold
            self._record()

    def _is_finite(self, tile: Tile, buffer: Array) -> bool:
        num_entries = self._grid.num_entries(tile)
        if num_entries == buffer.size and np.isfinite(buffer.sum()):  # tells it in one pass
            return True
        return int(np.isfinite(buffer).sum()) == num_entries

    def _note(self, entry: Entry) -> None:
        self.checksums[entry.row, entry.column] = entry.checksum
        self.largest = max(self.largest, entry.largest)
        self.rounding = max(self.rounding, entry.rounding)

    def _multiply(self, tile: Tile, buffer: Array) -> None:
        rows, cols = map(self._grid.span, tile)
        values = buffer[: rows.stop - rows.start, : cols.stop - cols.start]
        self.products[rows] += (mirrored(values) if rows == cols else values) @ self._directions[cols]
        if rows != cols:
            self.products[cols] += values.T @ self._directions[rows]

    def _record(self) -> None:
        """Let the other thread record what is written, unless it is still at work."""
        if self._recording is not None and self._recording.done():
            self._wait()
        if self._recording is None and self._written:
            if self._journal is not None:
                self._output.flush()
            entries, self._written = self._written, []
            self._recording = self._recorder.submit(self._to_disk, entries)

    def _wait(self) -> None:
        if self._recording is not None:
            self._recording.result()
            self._recording = None

    def _to_disk(self, entries: list[Entry]) -> None:
        self._output.sync()
        if self._journal is None:
            return
        if self._restored is not None:
            self._journal.begin([*self._restored, *entries])
            self._restored = None
        else:
            self._journal.add(entries)


def _rounding(exact: Array, rounded: Array) -> tuple[float, float]:
    """The largest entry, and how far one was moved; what is not given is NaN."""
    return float(np.nanmax(np.abs(exact))), float(np.nanmax(np.abs(exact - rounded)))
