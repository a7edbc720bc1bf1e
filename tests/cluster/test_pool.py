"""Workers that are asked again and again: which worker a call goes to, and what is told of workers that die."""

from types import SimpleNamespace

import pytest
from distributed import KilledWorker

from pipeline.cluster import Pool
from pipeline.cluster.pool import settled
from pipeline.errors import PipelineError


@pytest.mark.parametrize(
    ("places", "number", "workers", "expected"),
    [
        ([], 3, ["a", "b"], ["a", "b", "a"]),
        (["b", "a", "b"], 3, ["a", "b"], ["b", "a", "b"]),  # each where it was
        (["a", "b"], 2, ["b", "c"], ["c", "b"]),  # a has died, and another one come
        (["a", "a", "a", "a"], 4, ["a", "b"], ["a", "a", "b", "b"]),  # a had all of it when it was alone
        (["a", "b"], 2, ["a", "b", "c"], ["a", "b"]),
        (["a", "b"], 2, [], ["", ""]),
    ],
)
def test_calls_stay_with_their_workers_and_are_spread_evenly(places, number, workers, expected):
    assert settled(places, number, workers) == expected


def test_workers_that_die_again_and_again_are_told():
    def gather(*_, **__):
        raise KilledWorker("task", SimpleNamespace(address="tcp://127.0.0.1:1"), 3)

    client = SimpleNamespace(nthreads=dict, submit=lambda *_, **__: None, gather=gather)
    with pytest.raises(
        PipelineError, match=r"^4 workers died at the same work, of too little memory, maybe: lower"
    ):
        Pool(2, client).map(abs, [(1,), (2,)])
