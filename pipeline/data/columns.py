"""Which columns of a table, or fields of a sample, are inputs and which are targets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError

TARGETS = ("labels", "label", "targets", "target", "y")  # what others call them
Names = str | Sequence[str] | None


def check_names(option: str, names: object) -> None:
    """Refuse what is neither null, a name nor a list of names."""
    several = isinstance(names, Sequence) and len(names) > 0 and all(isinstance(name, str) for name in names)
    if names is not None and not several:
        raise PipelineError(f"{option}={names!r}: give a name such as x, or a list such as [input_ids,mask].")


@dataclass(frozen=True)
class Columns:
    """The names that were asked for.

    inputs: a name, or several, which the model gets as keyword arguments; None takes all that are no targets.
    targets: a name; None takes the first of `TARGETS` that there is.
    """

    inputs: Names = None
    targets: str | None = None

    def pair(self, item: Any, name: str) -> tuple[Any, Any]:
        """Inputs and targets out of a mapping of columns, or out of a pair as it is.

        name: of what it comes from, for messages.

        Raises:
            PipelineError: a column is not there, or it is neither a mapping nor a pair.
        """
        if isinstance(item, Mapping):
            return self._of_mapping(item, name)
        if isinstance(item, tuple | list) and len(item) == 2:
            if self.inputs is not None or self.targets is not None:
                raise PipelineError(
                    f"data: {name} gives pairs, whose parts have no names: leave out data.inputs and data.targets."
                )
            return item[0], item[1]
        got = f"{len(item)} things" if isinstance(item, tuple | list) else type(item).__name__
        raise PipelineError(
            f"data: {name} gives {got} a sample: let it give a pair (inputs, targets), or a dict of named values."
        )

    def _of_mapping(self, item: Mapping[str, Any], name: str) -> tuple[Any, Any]:
        names = list(map(str, item))
        targets = self.targets_among(names)
        if targets is None:
            raise PipelineError(
                f"data: {name} has the columns {', '.join(names)}: name the one of the targets with data.targets=NAME."
            )
        inputs = self.inputs if self.inputs is not None else [each for each in names if each != targets]
        for option, column in [("targets", targets), *(("inputs", each) for each in _listed(inputs))]:
            if column not in item:
                close = difflib.get_close_matches(column, names, n=1)
                like = f", did you mean {close[0]}?" if close else f": it has {', '.join(names) or 'none'}."
                raise PipelineError(f"data.{option}={column}: {name} has no column of that name{like}")
        if not inputs:
            raise PipelineError(f"data: {name} has no column beside {targets!r}: give data.inputs=NAME.")
        if isinstance(inputs, str) or (self.inputs is None and len(inputs) == 1):
            return item[_listed(inputs)[0]], item[targets]
        return {column: item[column] for column in inputs}, item[targets]

    def targets_among(self, names: Sequence[str]) -> str | None:
        """The column of the targets; None if it was not named, and none is called as targets usually are."""
        return self.targets or next((name for name in TARGETS if name in names), None)


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
