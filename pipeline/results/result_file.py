"""What files of results and the groups of arrays in them have in common: written whole, read back, a short repr."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from pipeline.errors import DamagedFile
from pipeline.results.dataset_attributes import attributes_of
from pipeline.shards import Array, damaged, read_array_file, write_array_file
from pipeline.system import set_aside

log = logging.getLogger(__name__)


def shapes(columns: object) -> str:
    """The arrays among the fields of a dataclass by their shapes, other fields by their values, as in its repr."""
    parts = []
    for field in fields(columns):  # type: ignore[arg-type]
        value = getattr(columns, field.name)
        if isinstance(value, np.ndarray):
            parts.append(f"{field.name} {value.shape}")
        elif isinstance(value, Mapping | tuple):
            parts.append(f"{len(value)} {field.name}")
    return ", ".join(parts)


class ResultFile(ABC):
    """What both files have in common: attributes and arrays, written whole and read back."""

    @property
    @abstractmethod
    def attrs(self) -> dict[str, Any]:
        """The attributes as they lie in the file."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Any]:
        """The arrays by their names in the file."""

    @classmethod
    @abstractmethod
    def _of(cls, attrs: dict[str, Any], arrays: dict[str, Array]) -> Self: ...

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays = self.arrays
        write_array_file(path, self.attrs, arrays, attributes_of(arrays))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            DamagedFile: it is not what was written, or lacks a number or an array.
        """
        found = read_array_file(path)
        try:
            return cls._of(found.attrs, found.arrays)
        except KeyError as missing:
            raise damaged(path, f"it has no {missing.args[0]}") from missing

    @classmethod
    def read_if_sound(cls, path: Path) -> Self | None:
        """The file; None where it is to be made: there is none, or a damaged one, which is set aside."""
        try:
            return cls.read(path) if path.exists() else None
        except DamagedFile as damage:
            log.warning("%s", set_aside(damage, "it is made again"))
            return None


@dataclass(frozen=True, repr=False)
class Columns:
    """Arrays that lie together in a file, each by the name of its field; one that is None does not."""

    GROUP: ClassVar[str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shapes(self)})"

    @property
    def arrays(self) -> dict[str, Array]:
        found = {f"{self.GROUP}/{field.name}": getattr(self, field.name) for field in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    @classmethod
    def _of(cls, arrays: Mapping[str, Array], optional: tuple[str, ...] = ()) -> Self:
        names = {field.name: f"{cls.GROUP}/{field.name}" for field in fields(cls)}
        return cls(
            **{key: arrays.get(name) if key in optional else arrays[name] for key, name in names.items()}
        )
