"""Links of the files beside the site: what they lead to is there. (`make docs` looks at those inside it.)"""

import re

import pytest
from support.command import PROJECT

FILES = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_files_that_are_linked_are_there(path):
    links = LINK.findall(CODE.sub("", path.read_text()))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_links_are_found_at_all():
    assert len(LINK.findall((PROJECT / "README.md").read_text())) > 10


def test_files_that_code_names_are_there():
    named = set()
    for path in (PROJECT / "pipeline").rglob("*.py"):
        named |= set(re.findall(r"docs/[\w/]+\.md", path.read_text()))
    assert named
    assert [name for name in named if not (PROJECT / name).exists()] == []
