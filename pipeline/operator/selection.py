"""Which way an operator takes its products: the fastest that is right, found by a short trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import StrategyError, first_line, is_out_of_memory
from pipeline.objective import Batch, Certificate, Objective, Params
from pipeline.operator.protocol import Product, Way
from pipeline.strategy import LOOK

NUM_TRIED = 4  # vectors that are multiplied to see how long one takes
CLEARLY = 1.5  # times as long as a later way is a way that is given up for it
LONG = 1.0  # seconds: a trial that took so long is not repeated


class Trial(NamedTuple):
    """A way, the seconds that a vector takes by it, and the effort: to begin, and of a vector once there is a product.

    The effort is the processor's time, or the time of a GPU: other work on the machine does not change it.
    """

    way: Way
    product: Product
    per_vector: float
    effort_to_begin: float
    effort_per_vector: float

    def effort(self, is_kept: bool) -> float:
        return self.effort_per_vector + (0.0 if is_kept else self.effort_to_begin / NUM_TRIED)


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
    trials, remedy, no_memory = [], LOOK, None
    for way in ways:
        try:
            trials.append(timed(way, problem))
        except Exception as error:  # a layer may raise anything where it is not known how to differentiate it
            if is_out_of_memory(error):
                no_memory = error.with_traceback(None)  # which would keep its tensors
            failures.append((way.name, error.why if isinstance(error, StrategyError) else first_line(error)))
    if no_memory is not None and not trials:
        raise no_memory
    margins = {id(trial): CLEARLY**place for place, trial in enumerate(trials)}
    for trial in sorted(trials, key=lambda trial: trial.effort(is_kept) * margins[id(trial)]):
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
        reasons = "; ".join(f"{name}: {why}" for name, why in failures)
        super().__init__(f"no way gives right products with this matrix ({reasons})", remedy)
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
    begun = _clocks(example)
    product = way.product(*problem)
    made = _clocks(example)
    found = product(vectors)
    done = _clocks(example)
    if not bool(found.isfinite().all()):
        raise StrategyError("its products hold NaN or infinity", "")
    seconds, effort = done[0] - made[0], done[1] - made[1]
    if seconds < LONG:  # the first time, much is set up that later products find there
        again = _clocks(example)
        product(vectors)
        done = _clocks(example)
        seconds, effort = min(seconds, done[0] - again[0]), min(effort, done[1] - again[1])
    return Trial(way, product, seconds / NUM_TRIED, made[1] - begun[1], effort / NUM_TRIED)


def _clocks(example: Tensor) -> tuple[float, float]:
    """Seconds of the clock, and of the processor; of a GPU the clock's in place of these."""
    if example.device.type == "cuda":
        torch.cuda.synchronize(example.device)
        return time.perf_counter(), time.perf_counter()
    return time.perf_counter(), time.process_time()
