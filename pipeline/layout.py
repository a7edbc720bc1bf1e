"""Which entry of the flat vector of weights belongs to which parameter: the order of all rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Layout:
    """P weights in the order of `named_parameters()`, each parameter flattened row-major (C order)."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        shown = [f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True)]
        if len(shown) > 4:
            shown[2:-1] = ["…"]
        return f"Layout({len(self.names)} parameters, P = {self.num_parameters:,}: {', '.join(shown)})"

    @staticmethod
    def of(params: Mapping[str, Any]) -> Layout:
        """The layout of named tensors or arrays, in the order of the mapping."""
        return Layout(tuple(params), tuple(tuple(value.shape) for value in params.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter begins, and P as the last entry: one more than there are parameters."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def num_parameters(self) -> int:
        """P, the number of weights."""
        return sum(self.sizes)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each parameter, by its name: `layer`, `shape`, `size`, and its rows, start to stop - 1."""
        import pandas as pd  # slow to import, and few need it

        layer_of = {name: layer for layer, span in self.layers().items() for name in self.names_in(span)}
        columns = {
            "layer": [layer_of[name] for name in self.names],
            "shape": self.shapes,
            "size": self.sizes,
            "start": self.offsets[:-1],
            "stop": self.offsets[1:],
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="parameter"))

    def slices(self) -> dict[str, slice]:
        """The rows (and columns) of each parameter."""
        offsets = self.offsets
        return {name: slice(*offsets[i : i + 2]) for i, name in enumerate(self.names)}

    def layers(self) -> dict[str, slice]:
        """The rows (and columns) of each layer: what a module has of its own, which stands together in this order.

        What the model itself has goes by the name of its first parameter.
        """
        spans: dict[str, slice] = {}
        for name, span in self.slices().items():
            layer = name.rpartition(".")[0]
            spans[layer] = slice(spans[layer].start, span.stop) if layer in spans else span
        own = next((name for name in self.names if "." not in name), "")
        return {layer or own: span for layer, span in spans.items()}

    def names_in(self, span: slice) -> list[str]:
        """The parameters that begin in these rows."""
        return [name for name, rows in self.slices().items() if span.start <= rows.start < span.stop]
