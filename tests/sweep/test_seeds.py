"""Groups of jobs that differ in their seed alone, and what is told of each."""

import numpy as np
import pytest

from pipeline.sweep.seeds import Statistics, groups_of


def test_jobs_that_share_all_but_the_seed_are_one_group():
    choices = [{"model": m, "seed": s, "lr": lr} for m in "ab" for s in "012" for lr in ("1", "2")]
    groups = groups_of(choices)
    assert list(groups) == [(("model", m), ("lr", lr)) for m in "ab" for lr in ("1", "2")]
    assert list(groups.values()) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert groups_of([{"seed": "0"}, {"seed": "1"}]) == {(): [0, 1]}


def test_the_deviation_is_that_of_a_sample_and_undefined_numbers_do_not_count():
    found = Statistics.of([1.0, float("nan"), 4.0, 7.0])
    assert (found.count, found.mean, found.deviation) == (3, pytest.approx(4.0), pytest.approx(3.0))
    alone = Statistics.of([2.0])
    assert (alone.count, alone.mean) == (1, 2.0)
    assert np.isnan(alone.deviation)
    assert Statistics.of([]).count == 0
