"""What a person sees while the pipeline works: progress bars with the time left, and the table at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import accumulate
from typing import TypeVar

import rich
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
    console = rich.get_console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=initial)
        for item in iterable:
            yield item
            bar.advance(task)


def table(title: str, rows: Mapping[str, str], note: str) -> None:
    """Print names and values in two columns, and a line under them."""
    grid = Table(title=title, title_justify="left", show_header=False)
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    for name, value in rows.items():
        grid.add_row(name, value)
    rich.get_console().print(grid)
    say(note)


def grid(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a row a line; columns that the terminal is too narrow for are left out from the right."""
    console = rich.get_console()
    widths = [max(len(row[i]) for row in [head, *rows]) + 3 for i in range(len(head))]  # with its border
    num_columns = max(1, sum(total < console.width for total in accumulate(widths)))
    lines = Table(title=title, title_justify="left")
    for name in head[:num_columns]:
        lines.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        lines.add_row(*row[:num_columns])
    console.print(lines)


def say(text: str, style: str = "") -> None:
    """Print one line as it is, at once."""
    rich.get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class TerminalHandler(logging.Handler):
    """One line a record, without time or traceback, above whatever progress bar is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        styles = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
        say(record.getMessage(), styles.get(record.levelno, ""))
