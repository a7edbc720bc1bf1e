"""What a person sees while the pipeline works: progress bars with the time left, and the table at the end.

A terminal that cannot show λ gets `lambda`, and tables in ASCII. Where standard output is closed (`| head`), a run goes
on without it: what it leaves is in its folder.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from functools import cache
from itertools import accumulate
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Item = TypeVar("Item")
ASCII = {
    **{"λ": "lambda", "η": "eta", "β": "beta", "δ": "delta", "ε": "eps", "σ": "sigma", "μ": "mu", "π": "pi"},
    **{"−": "-", "–": "-", "×": "x", "·": "*", "…": "...", "‖": "||", "√": "sqrt", "≤": "<=", "≥": ">=", "→": "->"},
    **{"²": "^2", "³": "^3", "∞": "inf", "±": "+-", "≈": "~", "’": "'", "“": '"', "”": '"', "∘": "o"},
}  # fmt: skip
LOG_ONLY = {
    "log_only": True
}  # `extra` of a record that the terminal has seen in another form, or need not see
log = logging.getLogger("pipeline")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_output()


@cache
def console() -> Console:
    """Where all output for a person goes."""
    return _Console()


def prepare_terminal() -> None:
    """Let no character that the terminal lacks, and no closed pipe, end the command."""
    logging.raiseExceptions = False  # a line that does not reach run.log is no reason for a traceback
    codecs.register_error("spelled", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def discard_output() -> None:
    """Let go of a standard output that nobody reads any more; Python would complain of it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spelled(text: str, encoding: str) -> str:
    """The text in characters that an encoding has.

    >>> spelled("λ max … 3 × 10²", "ascii")
    'lambda max ... 3 x 10^2'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        rest = spelled(text[error.end :], encoding)
        return text[: error.start] + "".join(map(_ascii, text[error.start : error.end])) + rest
    return text


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return ASCII.get(character) or plain or "?"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def progress(
    iterable: Iterable[Item], description: str, total: int | None = None, initial: int = 0
) -> Iterator[Item]:
    """Pass `iterable` on, with a bar on the terminal: `initial` of `total` items were done before it began.

    Where standard output is not a terminal there is no bar, so that log files stay readable.
    """
    if total is None and isinstance(iterable, Sized):
        total = initial + len(iterable)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(), disable=not console().is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=initial)
        for item in iterable:
            yield item
            bar.advance(task)


@contextmanager
def product_counter(description: str) -> Iterator[Callable[[int, float], None]]:
    """A line on the terminal that counts products with a matrix, and shows how far the largest residual has come.

    What it yields takes the number of products so far, and the residual; NaN where there is none.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        TextColumn("{task.completed}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), disable=not console().is_terminal) as line:
        task = line.add_task(description, total=None, note="")

        def count(number: int, residual: float) -> None:
            note = f"largest residual {residual:.1e} of the largest eigenvalue" if residual >= 0 else ""
            line.update(task, completed=number, note=note)

        yield count


def table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values in two columns, and put them into the log."""
    encoding = console().encoding
    lines = Table(title=spelled(title, encoding), title_justify="left", show_header=False)
    lines.add_column(style="bold")
    lines.add_column(justify="right")
    for name, value in rows.items():
        lines.add_row(spelled(name, encoding), spelled(value, encoding))
    console().print(lines)
    width = max(map(len, rows), default=0)
    text = "\n".join([f"{title}:", *(f"  {name:<{width}}  {value}" for name, value in rows.items())])
    log.info("%s", text, extra=LOG_ONLY)


def print_rows(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a row a line; columns that the terminal is too narrow for are left out from the right."""
    encoding = console().encoding
    head, rows = (
        [spelled(name, encoding) for name in head],
        [[spelled(cell, encoding) for cell in row] for row in rows],
    )
    widths = [max(len(row[i]) for row in [head, *rows]) + 3 for i in range(len(head))]  # with its border
    num_columns = max(1, sum(total < console().width for total in accumulate(widths)))
    lines = Table(title=spelled(title, encoding), title_justify="left")
    for name in head[:num_columns]:
        lines.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        lines.add_row(*row[:num_columns])
    console().print(lines)


def print_line(text: str, style: str = "") -> None:
    """Print one line as it is, at once."""
    text = spelled(text, console().encoding)
    console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class TerminalHandler(logging.Handler):
    """One line a record, without time or traceback, above whatever progress bar is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        styles = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
        if not getattr(record, "log_only", False):
            print_line(record.getMessage(), styles.get(record.levelno, ""))
