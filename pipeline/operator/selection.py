"""Which way an operator takes its products: the fastest that is right, found by a short trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import StrategyError
from pipeline.objective import Batch, Certificate, Objective, Params
from pipeline.operator.protocol import Product, Way
from pipeline.strategy import LOOK

NUM_TRIED = 4  # vectors that are multiplied to see how long one takes
CLEARLY = 1.5  # times as long as a later way is a way that is given up for it
LONG = 1.0  # seconds: a trial that took so long is not repeated


class Trial(NamedTuple):
    """A way, and the seconds that a vector takes by it once there is a product, and to make one."""

    way: Way
    product: Product
    per_vector: float
    to_begin: float

    def seconds(self, is_kept: bool) -> float:
        return self.per_vector + (0.0 if is_kept else self.to_begin / NUM_TRIED)


class Selected(NamedTuple):
    """The way that is taken; its certificate, if there is one; and which others did not do, and why."""

    trial: Trial
    certificate: Certificate | None
    failures: Failures


Failures = Sequence[tuple[str, str]]
"""Ways that did not do, and why."""

Certified = Callable[[Trial], Certificate]
"""The certificate of a way."""


def select_way(
    ways: Sequence[Way],
    problem: tuple[Objective, Params, Batch],
    is_kept: bool,
    certified: Certified | None,
) -> Selected:
    """Try all ways for their time, and take the fastest that passes its certificate.

    One that is less than a third faster than an earlier one does not count as faster: so two runs take the same way,
    and have the same rounding.

    certified: the certificate of a way; None takes what is fastest. Cost: 4 products of each way, twice where they are
    short, and for each certificate 2 products and about 15 gradients.

    Raises:
        NoWay: none gives right products.
        Imprecise: the precision does not do, whatever the way.
    """
    failures: list[tuple[str, str]] = []
    trials, remedy = [], LOOK
    for way in ways:
        try:
            trials.append(timed(way, problem))
        except Exception as error:  # a layer may raise anything where it is not known how to differentiate it
            failures.append((way.name, _reason(error)))
    margins = {id(trial): CLEARLY**place for place, trial in enumerate(trials)}
    for trial in sorted(trials, key=lambda trial: trial.seconds(is_kept) * margins[id(trial)]):
        if certified is None:
            return Selected(trial, None, failures)
        try:
            certificate = certified(trial)
        except Imprecise:
            raise
        except StrategyError as error:
            failures.append((trial.way.name, error.why))
            continue
        if certificate.passed:
            return Selected(trial, certificate, failures)
        failures.append((trial.way.name, str(certificate)))
        remedy = certificate.remedy(next(iter(problem[1].values())).dtype)
        remedy = LOOK if "strategy=" in remedy else remedy  # no other way is left
    raise NoWay(failures, remedy)


class NoWay(StrategyError):
    """No way of computing products gives right ones."""

    def __init__(self, failures: Failures, remedy: str) -> None:
        told = "; ".join(f"{name}: {why}" for name, why in failures)
        super().__init__(f"no way gives right products with this matrix ({told})", remedy)
        self.failures = failures


class Imprecise(StrategyError):
    """Products are right in float64 only."""


def timed(way: Way, problem: tuple[Objective, Params, Batch]) -> Trial:
    """How long products take by a way."""
    params = problem[1]
    example = next(iter(params.values()))
    num_weights = sum(value.numel() for value in params.values())
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(num_weights, NUM_TRIED, generator=generator).to(example)
    begun = [_clock(example)]
    product = way.product(*problem)
    begun.append(_clock(example))
    found = product(vectors)
    begun.append(_clock(example))
    if not bool(found.isfinite().all()):
        raise StrategyError("its products hold NaN or infinity", "")
    to_begin, taken = begun[1] - begun[0], begun[2] - begun[1]
    if taken < LONG:  # the first time, much is set up that later products find there
        begun = [_clock(example)]
        product(vectors)
        taken = min(taken, _clock(example) - begun[0])
    return Trial(way, product, taken / NUM_TRIED, to_begin)


def _clock(example: Tensor) -> float:
    if example.device.type == "cuda":
        torch.cuda.synchronize(example.device)
    return time.perf_counter()


def _reason(error: Exception) -> str:
    if isinstance(error, StrategyError):
        return error.why
    return str(error).partition("\n")[0] or type(error).__name__
