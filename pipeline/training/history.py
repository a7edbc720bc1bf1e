"""The training curve, in memory and in a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.system import write_atomically

COLUMNS = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
Row = dict[str, float | None]


class History:
    """Rows of losses and accuracies; what is not defined stays empty.

    A row is put into the file after `log` got it. So what the file holds when a killed training goes on has been
    logged: it is neither logged again nor taken out of the file, where the same rows would come back.
    """

    def __init__(self, path: Path, log: Callable[[int, dict[str, float]], None]) -> None:
        self.rows: list[Row] = []
        self._path = path
        self._log = log
        self._logged = _steps(path)

    def add(self, step: int, metrics: Row) -> None:
        self.rows.append({"step": step, **metrics})
        if step not in self._logged:
            self._log(step, {name: value for name, value in metrics.items() if value is not None})
            self.write()

    def restore(self, rows: list[Row]) -> None:
        """Begin with rows of an earlier process, which the file must hold as they are; later ones may follow there."""
        self.rows = rows
        if not self._path.exists() or not self._path.read_text(encoding="utf-8").startswith(self._text()):
            self.write()

    def write(self) -> None:
        write_atomically(self._path, self._text())

    def _text(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _steps(path: Path) -> set[int]:
    if not path.is_file():
        return set()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row["step"]) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise PipelineError(
            f"{path} is not a training curve of this program: delete it and run again."
        ) from error
