"""The YAML of each strategy says what its class says."""

from __future__ import annotations

from dataclasses import fields

import pytest
from pipeline.errors import PipelineError
from pipeline.strategy import STRATEGIES
from variants import FOLDER, NAMES, options, strategy

WITH_CHUNKS = [name for name in NAMES if "chunk_size" in options(name)]


def test_every_strategy_has_a_file() -> None:
    assert NAMES == sorted(STRATEGIES)


@pytest.mark.parametrize("name", NAMES)
def test_file_holds_the_defaults_of_the_class(name: str) -> None:
    kind = STRATEGIES[name]
    defaults = {field.name: field.default for field in fields(kind)}
    assert options(name) == {"_target_": f"pipeline.strategy.{kind.__name__}", **defaults}
    assert strategy(name) == kind()
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", WITH_CHUNKS)
@pytest.mark.parametrize("size", [0, -3, 2.5, "abc", None, True])
def test_chunk_size_that_is_no_count_is_refused(name: str, size: object) -> None:
    with pytest.raises(PipelineError, match=r"strategy\.chunk_size"):
        STRATEGIES[name](chunk_size=size)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_a_number_of_bytes_that_grows_with_the_matrix(name: str) -> None:
    small, large = (strategy(name).memory(num_rows, 4) for num_rows in (100, 10_000))
    assert isinstance(large, int)
    assert 0 < small < large
    assert strategy(name).memory(10_000, 8) == 2 * large
