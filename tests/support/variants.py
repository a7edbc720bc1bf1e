"""Every strategy that `conf/strategy/` offers, with the options at which it is tested; a new YAML is found here.

An option whose default is a whole number is taken for a size of chunks, and tested at SIZES; one that is true or false
is tested at both; numbers with a decimal point and texts are tested at their default.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pipeline.strategy import (
    HVP,
    WITHOUT_MATRIX,
    Auto,
    Autograd,
    Func,
    KhatriRao,
    Strategy,
    Triangular,
    tolerance_of,
)

FOLDER = Path(__file__).parents[2] / "conf" / "strategy"
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.yaml") if path.stem not in WITHOUT_MATRIX
)  # those with a matrix
SIZES = (3, 1, 10_000)  # of chunks: a ragged number, one, more than there are
SMALL = 30  # weights; of larger nets, products one at a time take long and come to what three at a time do


@cache
def options(name: str) -> dict[str, Any]:
    return dict(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")))


@cache
def strategy(name: str, **changes: Any) -> Strategy:
    return instantiate(options(name), **changes)


class Variant(NamedTuple):
    """A strategy with its own options, or one of them changed (or several, separated by commas, to one value)."""

    name: str
    option: str | None = None
    value: Any = 0

    @property
    def id(self) -> str:
        return self.name if self.option is None else f"{self.name}-{self.option}={self.value}"

    def build(self) -> Strategy:
        changed = self.option.split(",") if self.option is not None else []
        return strategy(self.name, **dict.fromkeys(changed, self.value))


OPTIONS = [(name, option) for name in NAMES for option in options(name) if option != "_target_"]
SIZE_OPTIONS = [(name, option) for name, option in OPTIONS if type(options(name)[option]) is int]
SWITCHES = [(name, option) for name, option in OPTIONS if type(options(name)[option]) is bool]
AS_IF_LARGE = Variant(
    "auto", "few_weights,very_few_weights,some_weights", 1
)  # what `auto` does for larger nets
VARIANTS = [
    *(Variant(name) for name in NAMES),
    AS_IF_LARGE,
    *(Variant(name, option, size) for name, option in SIZE_OPTIONS for size in SIZES),
    *(Variant(name, option, not options(name)[option]) for name, option in SWITCHES),
]


def declared(built: Strategy) -> float:
    """The error in float64 that a strategy declares, relative to the norm of the matrix; 0 if it is exact."""
    return tolerance_of(built, torch.float64)


def distinct(num_weights: int, num_samples: int, takes_products: bool) -> list[Variant]:
    """The variants without those that compute what an earlier one does, for a net of so many weights.

    takes_products: whether `khatri_rao` takes Hessian-vector products for some rows.
    """
    found, computed = [], set()
    for variant in VARIANTS:
        in_effect = _in_effect(variant.build(), num_weights, num_samples, takes_products)
        if variant.option is None or in_effect not in computed:  # every strategy by its name
            found.append(variant)
        computed.add(in_effect)
    return found


def _in_effect(strategy: Strategy, num_weights: int, num_samples: int, takes_products: bool) -> Strategy:
    """What the strategy comes to; one that is not named here may do something else with each of its options."""
    match strategy:
        case Auto(very_few_weights=very_few) if num_weights <= very_few:
            return Autograd(num_weights)
        case Auto(few_weights=few) if num_weights <= few:
            return HVP(num_weights)
        case Auto(some_weights=some):
            return Auto(1, 1, some)
        case Autograd(rows) | Triangular(rows):
            return replace(strategy, rows_at_once=min(rows, num_weights))
        case HVP(chunk):
            return HVP(3 if chunk < 3 and num_weights > SMALL else min(chunk, num_weights))
        case Func(chunk):
            return Func(min(chunk, num_samples))
        case KhatriRao(megabytes, rows):
            one_pass = num_weights <= 100 or megabytes > 1  # the tangents of so few fit into a megabyte
            return KhatriRao(256 if one_pass else 1, min(rows, num_weights) if takes_products else 1)
    return strategy
