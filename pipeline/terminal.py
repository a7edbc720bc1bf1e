"""What a person sees while the pipeline works: progress bars with the time left, and the table at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
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


def say(text: str, style: str = "") -> None:
    """Print one line as it is, at once."""
    rich.get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class TerminalHandler(logging.Handler):
    """One line a record, without time or traceback, above whatever progress bar is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        styles = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
        say(record.getMessage(), styles.get(record.levelno, ""))
