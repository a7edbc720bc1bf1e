"""The tables from which readers choose name every option of `conf/`."""

import re

import pytest
from support.command import PROJECT

CONF = PROJECT / "conf"
LISTED_ELSEWHERE = {"experiment", "law"}  # on the pages that `docs/generators/` makes
TABLES = {
    "README.md": {path.parent.name for path in CONF.glob("*/*.yaml")} - LISTED_ELSEWHERE,
    "docs/explanation/strategies.md": {"strategy"},
    "docs/explanation/matrices.md": {"matrix"},
}


@pytest.mark.parametrize("page", TABLES)
def test_every_option_is_named(page):
    named = set(re.findall(r"`(\w+)`", (PROJECT / page).read_text(encoding="utf-8")))
    options = {path.stem for group in TABLES[page] for path in (CONF / group).glob("*.yaml")}
    assert sorted(options - named) == []
