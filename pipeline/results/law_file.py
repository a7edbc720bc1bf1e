"""What an experiment on a law leaves behind, typed: the checks with their verdicts, the curves of the figure, `law.h5`.

With `dataset_attributes` the only module that spells the names of these arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from pipeline.results.number_format import number
from pipeline.results.result_file import ResultFile
from pipeline.shards import Array

FORMAT_VERSION = 1
Relation = Literal["=", "≤", "≥"]
Drawn = Literal["line", "dashes", "points"]
Logarithmic = Literal["", "x", "y", "xy"]
MOST_PANELS = 3  # of one figure


@dataclass(frozen=True)
class Check:
    """One comparison of a law with what was computed.

    key: snake_case, its name among the metrics. name: of the quantity, a few words. relation: of `measured` to
    `expected`; `tolerance` is absolute. A measured value that is NaN does not hold.

    >>> Check("rank", "rank of H", measured=29.0, relation="=", expected=30.0).held
    False
    """

    key: str
    name: str
    measured: float
    relation: Relation
    expected: float
    tolerance: float = 0.0

    @property
    def held(self) -> bool:
        difference = self.measured - self.expected
        if self.relation == "=":
            return bool(abs(difference) <= self.tolerance)
        return bool((difference if self.relation == "≤" else -difference) <= self.tolerance)

    @property
    def verdict(self) -> str:
        return "held" if self.held else "not held"

    @property
    def texts(self) -> tuple[str, str, str]:
        """Measured value, expected value and tolerance as a person reads them; a whole number in full."""
        measured, expected, tolerance = (
            number(int(value) if float(value).is_integer() and abs(value) < 1e9 else float(value), digits)
            for value, digits in ((self.measured, 4), (self.expected, 4), (self.tolerance, 2))
        )
        return measured, expected, tolerance


@dataclass(frozen=True)
class Series:
    """One curve: points (x, y), drawn as a line, as dashes (what the law says) or as points (what was measured)."""

    name: str
    x: Array | Sequence[float]
    y: Array | Sequence[float]
    drawn: Drawn = "line"


@dataclass(frozen=True)
class Panel:
    """One diagram of the figure. reading: one line on how to read it. logarithmic: which of its axes."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    reading: str
    logarithmic: Logarithmic = ""


@dataclass(frozen=True)
class Outcome:
    """What the measurement of a law gives: checks, one to three panels of a figure, and one sentence on the result."""

    sentence: str
    checks: Sequence[Check]
    panels: Sequence[Panel]

    def __post_init__(self) -> None:
        keys = [check.key for check in self.checks]
        if not keys or len(set(keys)) < len(keys) or not 1 <= len(self.panels) <= MOST_PANELS:
            raise ValueError(
                f"checks {keys}, {len(self.panels)} panels: give distinct keys, and 1 to 3 panels"
            )

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def num_held(self) -> int:
        return sum(check.held for check in self.checks)


@dataclass(frozen=True, repr=False)
class LawFile(ResultFile):
    """A measured law: `law.h5`.

    law: name of its class. title: the law in a few words. source: authors, year, arXiv or DOI. options: the fields with
    which it was measured. command: that of the run.
    """

    law: str
    title: str
    source: str
    outcome: Outcome
    options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __repr__(self) -> str:
        return f"LawFile({self.law}: {self.verdict})"

    @property
    def verdict(self) -> str:
        return f"{self.outcome.num_held} of {len(self.outcome.checks)} checks held"

    @property
    def rows(self) -> list[list[str]]:
        """A row of texts for each check: name, verdict, measured, relation, expected, tolerance."""
        found = []
        for check in self.outcome.checks:
            measured, expected, tolerance = check.texts
            found.append([check.name, check.verdict, measured, check.relation, expected, tolerance])
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """`law/KEY/value`, `/expected` and `/held` (1 or 0) of each check, for summary.json and the tracker."""
        return {
            f"law/{check.key}/{name}": float(value)
            for check in self.outcome.checks
            for name, value in (
                ("value", check.measured),
                ("expected", check.expected),
                ("held", check.held),
            )
        }

    @property
    def attrs(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **{key: getattr(self, key) for key in ("law", "title", "source", "command")},
            "sentence": self.outcome.sentence,
            "options": json.dumps(dict(self.options)),
        }

    @property
    def arrays(self) -> dict[str, Any]:
        checks, panels = self.outcome.checks, self.outcome.panels
        series = [(place, each) for place, panel in enumerate(panels) for each in panel.series]
        lengths = [len(each.x) for _, each in series]
        return {
            **{f"checks/{name}": [getattr(check, name) for check in checks] for name in CHECK},
            "checks/held": [int(check.held) for check in checks],
            **{f"panels/{name}": [getattr(panel, name) for panel in panels] for name in PANEL},
            "series/panel": [place for place, _ in series],
            "series/name": [each.name for _, each in series],
            "series/drawn": [each.drawn for _, each in series],
            "series/offsets": np.cumsum([0, *lengths]),
            "series/x": np.concatenate([np.asarray(each.x, float) for _, each in series]),
            "series/y": np.concatenate([np.asarray(each.y, float) for _, each in series]),
        }

    @classmethod
    def _of(cls, attrs: dict[str, Any], arrays: dict[str, Array]) -> Self:
        checks = _rows(arrays, "checks", CHECK)
        offsets, owners = arrays["series/offsets"], arrays["series/panel"]
        names, drawn = (list(map(str, arrays[f"series/{key}"])) for key in ("name", "drawn"))
        cuts = [slice(*offsets[place : place + 2]) for place in range(len(names))]
        series = [
            Series(name, arrays["series/x"][cut], arrays["series/y"][cut], kind)  # type: ignore[arg-type]
            for name, kind, cut in zip(names, drawn, cuts, strict=True)
        ]
        panels = [
            Panel(**row, series=[each for each, owner in zip(series, owners, strict=True) if owner == place])
            for place, row in enumerate(_rows(arrays, "panels", PANEL))
        ]
        outcome = Outcome(attrs["sentence"], [Check(**row) for row in checks], panels)
        own = {key: attrs[key] for key in ("law", "title", "source", "command")}
        return cls(**own, outcome=outcome, options=json.loads(attrs["options"]))


CHECK = ("key", "name", "measured", "relation", "expected", "tolerance")
PANEL = ("title", "x_label", "y_label", "reading", "logarithmic")


def _rows(arrays: Mapping[str, Array], group: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of each entry; texts as those of Python, numbers as floats."""
    columns = [arrays[f"{group}/{name}"].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
