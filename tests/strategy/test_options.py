"""Options of strategies; tests/config/test_groups.py compares each YAML with its class."""

from __future__ import annotations

import pytest
from support.variants import NAMES, OPTIONS, SIZE_OPTIONS, strategy

from pipeline.errors import PipelineError
from pipeline.strategy import STRATEGIES


def test_every_strategy_has_a_file() -> None:
    assert {name: type(strategy(name)) for name in NAMES} == dict(sorted(STRATEGIES.items()))


@pytest.mark.parametrize(("name", "option"), SIZE_OPTIONS)
def test_size_that_is_no_count_is_refused(name: str, option: str) -> None:
    for size in (0, -3, 2.5, "abc", None, True):
        with pytest.raises(PipelineError, match=rf"strategy\.{option}.*give a whole number of at least 1"):
            STRATEGIES[name](**{option: size})


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_value_of_no_type_that_an_option_has_is_refused(name: str, option: str) -> None:
    with pytest.raises(PipelineError, match=rf"^strategy\.{option}=.*: ") as caught:
        STRATEGIES[name](**{option: ["abc"]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_a_number_of_bytes_that_does_not_shrink_with_the_matrix(name: str) -> None:
    small, large, double = (
        strategy(name).memory(p, bytes_) for p, bytes_ in ((100, 4), (10_000, 4), (10_000, 8))
    )
    assert isinstance(large, int)
    assert 0 < small <= large <= double
