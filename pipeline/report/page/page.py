"""A self-contained page of interactive charts: plotly and all numbers are inside, and nothing is fetched from anywhere.

Charts are plain descriptions, `{"x": …, "y": …}` as plotly.js takes them. Colours are names of a theme ("@blue"), so
that a page changes with the reader's color scheme, and arrays lie once in one block of float32. `page.js` draws them.
"""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.results import number

Array = NDArray[Any]
MANTISSA = 16  # bits of float32's 23 that are kept: 5 digits, and half of the bytes after compression

# Okabe and Ito's colors, told apart by all common forms of color vision; lighter ones on a dark page.
THEMES = {
    "light": {
        "ink": "#1f2430", "soft": "#5b6472", "line": "#e2e5ea", "card": "#ffffff", "page": "#ffffff",
        "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "purple": "#b0568c", "grey": "#7b8494",
        "fill": "rgba(86,180,233,.25)", "band": "rgba(0,114,178,.22)", "empty": "#eef0f3", "mark": "#ff6a1a",
    },
    "dark": {
        "ink": "#e4e7eb", "soft": "#a3adba", "line": "#2d333c", "card": "#1c2128", "page": "#14171c",
        "blue": "#63b8ea", "orange": "#f4935a", "green": "#2fc79b", "purple": "#e29cc8", "grey": "#8791a0",
        "fill": "rgba(99,184,234,.20)", "band": "rgba(99,184,234,.25)", "empty": "#1c2128", "mark": "#ff6a1a",
    },
}  # fmt: skip


class Arrays:
    """All arrays of a page in one block; the same numbers are kept once."""

    def __init__(self) -> None:
        self._places: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self.index: list[list[int]] = []  # where each begins, in numbers, and its shape

    def put(self, values: object) -> dict[str, int]:
        """Keep a vector or a matrix, rounded to 5 digits; what a chart holds in its place."""
        rounded = _rounded(np.asarray(values, np.float32))
        assert rounded.ndim in (1, 2), rounded.shape
        content = rounded.tobytes()
        key = (content, rounded.shape)
        if key not in self._places:
            self._places[key] = len(self.index)
            self.index.append([self._size, *rounded.shape])
            self._parts.append(content)
            self._size += rounded.size
        return {"$": self._places[key]}

    def get(self, held: Any) -> Array:
        """The numbers that a chart holds: those that were put, or a list of its own."""
        if not (isinstance(held, dict) and "$" in held):
            return np.asarray(held)
        place = held["$"]
        return np.frombuffer(self._parts[place], np.float32).reshape(self.index[place][1:])

    def packed(self) -> str:
        return _packed(b"".join(self._parts))


def _rounded(values: Array) -> Array:
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(1 << (22 - MANTISSA))
    kept = (bits + half) & np.uint32(0xFFFFFFFF ^ ((1 << (23 - MANTISSA)) - 1))
    return np.where(np.isfinite(values), kept, bits).view(np.float32)


def _packed(content: bytes) -> str:
    """Deflated, in base64: what `DecompressionStream` of a browser takes."""
    return base64.b64encode(zlib.compress(content, 6)).decode("ascii")


@dataclass(frozen=True)
class Chart:
    """One figure of a page.

    reading: one line on how to read it. traces, layout: plotly's, of the types and keys that `report/figures.py` draws
    too: scatter, bar (with a width), heatmap, contour. A trace with `meta={"step": 10}` is drawn where that is the
    choice. signed: axis ("x" or "y") to the half-width of the linear part of a scale that is logarithmic on both sides
    of zero; such an axis has a range. choices: key to (label, options) of choices of this chart, of which the first one
    is made. picks: the choice of the whole page that a click on a point makes.
    span: how many of six columns it takes on a wide screen: 2, 3, 4 or 6.
    """

    name: str
    title: str
    reading: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    signed: dict[str, float] = field(default_factory=dict)
    choices: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    picks: str | None = None
    span: int = 6
    height: int = 400

    @property
    def choice(self) -> dict[str, str]:
        """The choices of this chart that are made at first."""
        return {key: next(iter(options)) for key, (_, options) in self.choices.items()}

    def visible(self, choice: Mapping[str, str]) -> list[dict[str, Any]]:
        """The traces that are drawn where the page's choices are these."""
        every = {**choice, **self.choice}
        return [
            trace
            for trace in self.traces
            if all(str(value) == every.get(key) for key, value in trace.get("meta", {}).items())
        ]

    def described(self) -> dict[str, Any]:
        """What `page.js` needs of it."""
        names = ("name", "traces", "layout", "signed", "picks")
        return {**{name: getattr(self, name) for name in names}, "choice": self.choice}


def value_scale(*values: Array) -> dict[str, Any]:
    """A logarithmic scale for positive values of many sizes, else an even one."""
    known = np.concatenate([np.ravel(each) for each in values])
    known = known[np.isfinite(known)]
    wide = len(known) and known.min() > 0 and known.max() > 10 * known.min()
    if not wide:
        return {}
    low, high = np.log10(known.min()), np.log10(known.max())
    margin = 0.06 * (high - low)
    return {"type": "log", "range": [float(low - margin), float(high + margin)]}


def render(
    template: str, charts: Sequence[Chart], arrays: Arrays, choice: Mapping[str, str], **context: Any
) -> str:
    """The page that a template of this folder makes; templates extend `page.html.jinja`.

    choice: choices of the whole page that are made at first, such as {"step": "1000"}.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, quote=shlex.quote)
    described = {
        "charts": [chart.described() for chart in charts],
        "choice": dict(choice),
        "arrays": arrays.index,
        "themes": THEMES,
    }
    # a "<" in a script could end it; JSON has another way to write it
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return environment.get_template(template).render(
        charts={chart.name: chart for chart in charts},
        described=Markup(text),
        packed=arrays.packed(),
        plotly=_packed(plotly_code()),
        **context,
    )


def plotly_code() -> bytes:
    """plotly.js as it lies in the installed package."""
    from importlib.resources import files

    return (files("plotly") / "package_data" / "plotly.min.js").read_bytes()


def thinned(count: int, most: int) -> Array:
    """At most `most` of 0 … count-1, evenly spaced, with both ends."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def thinned_ranks(count: int, most: int) -> Array:
    """At most `most` of 0 … count-1, all of the first ones, then at even steps of the logarithm."""
    if count <= most:
        return np.arange(count)
    return np.unique(
        np.concatenate([np.arange(most // 2), np.geomspace(1, count, most // 2).round() - 1]).astype(int)
    )
