"""Generated nets: every strategy gives the right matrix or one line that says why not, and leaves the net as it was.

FUZZ_NETS says how many (60), FUZZ_FIRST the first seed (0). Up to 100 nets, each takes every strategy on one matrix in
turn and `auto` on the Hessian; with more, all matrices of all strategies. FUZZ_RESULTS names a JSON file for outcomes.
FUZZ_VERIFY=no leaves out the certificate, to see what would be wrong without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import pytest
from fuzz.outcomes import FAULTS, STRATEGIES, outcomes_of, shortest, snippet, subject_of
from fuzz.reference import MATRICES

NUM_NETS = int(os.environ.get("FUZZ_NETS", "60"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
IS_LONG = NUM_NETS > 100
MOST_TRIES = 60 if IS_LONG else 15  # of the shrinker
TURNS = ("hessian", "ggn", "hessian", "empirical_fisher", "hessian", "residual", "hessian", "fisher")


def pairs_of(seed: int) -> list[tuple[str, str]]:
    if IS_LONG:
        return list(product(STRATEGIES, MATRICES))
    turn = TURNS[seed % len(TURNS)]
    return list(dict.fromkeys([("auto", "hessian"), *product(STRATEGIES, [turn])]))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + NUM_NETS))
def test_a_net(seed: int, record: Callable[[list[dict]], None]) -> None:
    subject = subject_of(seed)
    found = outcomes_of(subject, pairs_of(seed))
    record(
        [
            {
                "seed": seed,
                "recipe": repr(subject.recipe),
                "redrawn": subject.redrawn,
                "strategy": strategy,
                "matrix": matrix,
                "kind": outcome.kind,
                "reason": outcome.reason,
                "what": outcome.what[:400],
            }
            for (strategy, matrix), outcome in found.items()
        ]
    )
    faults = {pair: outcome for pair, outcome in found.items() if outcome.kind in FAULTS}
    if not faults:
        return
    (strategy, matrix), outcome = next(iter(faults.items()))
    short = shortest(subject.recipe, strategy, matrix, outcome, MOST_TRIES)
    every = [f"  {s}, {m}: {o.kind}: {o.what[:150]}" for (s, m), o in faults.items()]
    pytest.fail(
        "\n".join(
            [
                f"seed {seed}: {subject.recipe!r}",
                *every,
                f"shortest for {strategy}, {matrix}: {short!r}",
                "run with PYTHONPATH=.:tests",
                snippet(short, strategy, matrix),
            ]
        ),
        pytrace=False,
    )
