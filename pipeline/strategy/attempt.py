"""A strategy at work: whatever a model raises while it is differentiated becomes one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from pipeline.errors import StrategyError, first_line, must_reach_user
from pipeline.objective import Batch, Objective, Params
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block
from pipeline.strategy.protocol import Strategy


class Choice(NamedTuple):
    """What is taken, its name in `conf/strategy/`, and why; no reason where it was asked for by name."""

    strategy: Strategy
    name: str
    reason: str


Failures = Sequence[tuple[str, StrategyError]]
"""Ways that did not do, by name, and why."""


def choices_of(strategy: Strategy, objective: Objective, params: Params, batch: Batch) -> list[Choice]:
    """What is to be tried, one after the other: of `auto` every way, of another strategy itself alone."""
    if hasattr(strategy, "choices"):
        choices: list[Choice] = strategy.choices(objective, params, batch)
        return choices
    return [Choice(strategy, re.sub("(?<=[a-z])(?=[A-Z])", "_", type(strategy).__name__).lower(), "")]


def blocks_by(
    choice: Choice, objective: Objective, params: Params, batch: Batch, block_filter: BlockFilter = all_blocks
) -> Iterator[Block]:
    """The blocks of a strategy.

    Raises:
        StrategyError: the model cannot be differentiated in this way.
    """
    try:
        with torch.enable_grad():
            yield from choice.strategy.blocks(objective, params, batch, block_filter)
    except Exception as error:  # a layer may raise anything in a way of differentiation that it does not know
        if must_reach_user(error):
            raise
        raise StrategyError(
            f"strategy={choice.name} cannot differentiate this model or its loss ({type(error).__name__}: "
            f"{first_line(error)})",
            "use strategy=auto, which takes one that can",
        ) from error


def refusal(failures: Failures) -> StrategyError:
    """What to say where no way did: the first reason, of the last way the remedy."""
    if len(failures) == 1:
        return failures[0][1]
    first, last = failures[0][1], failures[-1][1]
    names = ", ".join(name for name, _ in failures)
    remedy = LOOK if "strategy=" in last.remedy else last.remedy  # no other is left
    return StrategyError(f"none of {names} gives the right matrix; {first.why}", remedy)


LOOK = (
    "look for a layer or a loss with a wrong derivative, or with none of second order, and write it otherwise"
)
