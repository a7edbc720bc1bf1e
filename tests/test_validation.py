import numpy as np
import pytest
from omegaconf import ListConfig

from pipeline.errors import PipelineError
from pipeline.validation import (
    check_bool,
    check_choice,
    check_count,
    check_counts,
    check_number,
    check_text,
)


def test_what_fits_passes():
    check_count("n", np.int64(3))
    check_count("n", None, or_null="all")
    assert check_counts("n", ListConfig([1, 2])) == (1, 2)
    assert check_counts("n", [], minimum=0) == ()
    check_number("x", 0, minimum=0)
    check_number("x", np.float32(0.5), above=0, below=1)
    check_choice("c", "a", ("a", "b"))
    check_bool("s", False)
    check_text("t", "x", "y")


@pytest.mark.parametrize(
    ("check", "value", "rest", "message"),
    [
        (check_count, True, {}, r"^a=True: give a whole number of at least 1\.$"),
        (check_count, 2.0, {}, r"a=2.0"),
        (check_count, "7", {"or_null": "all"}, r"a='7': .* at least 1, or null \(all\)\.$"),
        (check_count, None, {}, r"a=None"),
        (check_count, -1, {"minimum": 0}, r"a=-1: give a whole number of at least 0\.$"),
        (check_counts, 7, {}, r"a=7: give a list of whole numbers of at least 1, such as \[32\]\.$"),
        (check_counts, "12", {}, r"a='12'"),
        (check_counts, [1, True], {}, r"a=\[1, True\]"),
        (check_counts, [1, "x"], {}, r"a=\[1, 'x'\]"),
        (check_number, "x", {}, r"^a='x': give a number\.$"),
        (check_number, False, {}, r"a=False"),
        (check_number, 0, {"above": 0}, r"a=0: give a number above 0\.$"),
        (check_number, 1, {"minimum": 0, "below": 1}, r"a=1: give a number of at least 0 and below 1\.$"),
        (check_number, float("inf"), {"above": 0}, r"a=inf"),
        (check_choice, "x", {"options": ("u", "v")}, r"a='x': choose one of u, v\.$"),
        (check_choice, [], {"options": ("u", "v")}, r"a=\[\]: choose"),
        (check_bool, 1, {}, r"a=1: give true or false\.$"),
        (check_text, "", {"example": "b"}, r"a='': give a text such as b\.$"),
        (check_text, 3, {"example": "b"}, r"a=3"),
    ],
)
def test_what_does_not_fit_gets_one_line(check, value, rest, message):
    with pytest.raises(PipelineError, match=message):
        check("a", value, **rest)
