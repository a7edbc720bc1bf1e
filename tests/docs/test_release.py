"""The version is written in one place, and what repeats it says the same."""

import re

import yaml
from support.command import PROJECT

import pipeline


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pipeline.__version__
    assert citation["license"] == "MIT"
    released = re.search(rf"^## \[{re.escape(pipeline.__version__)}\] - (\S+)", CHANGELOG, re.MULTILINE)
    assert released
    assert str(citation["date-released"]) == released[1]


CHANGELOG = (PROJECT / "CHANGELOG.md").read_text()
