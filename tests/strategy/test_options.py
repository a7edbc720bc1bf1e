"""The YAML of each strategy says what its class says."""

from __future__ import annotations

from dataclasses import fields

import pytest
from variants import FOLDER, NAMES, SIZE_OPTIONS, options, strategy

from pipeline.errors import PipelineError
from pipeline.strategy import STRATEGIES


def test_every_strategy_has_a_file() -> None:
    assert sorted(STRATEGIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_holds_the_defaults_of_the_class(name: str) -> None:
    kind = STRATEGIES[name]
    defaults = {field.name: field.default for field in fields(kind)}
    assert options(name) == {"_target_": f"pipeline.strategy.{kind.__name__}", **defaults}
    assert strategy(name) == kind()
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(("name", "option"), SIZE_OPTIONS)
@pytest.mark.parametrize("size", [0, -3, 2.5, "abc", None, True])
def test_size_that_is_no_count_is_refused(name: str, option: str, size: object) -> None:
    with pytest.raises(PipelineError, match=rf"strategy\.{option}.*give a whole number of at least 1"):
        STRATEGIES[name](**{option: size})


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_a_number_of_bytes_that_does_not_shrink_with_the_matrix(name: str) -> None:
    small, large, double = (
        strategy(name).memory(p, bytes_) for p, bytes_ in ((100, 4), (10_000, 4), (10_000, 8))
    )
    assert isinstance(large, int)
    assert 0 < small <= large <= double
