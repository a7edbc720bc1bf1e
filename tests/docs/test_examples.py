"""Examples of the pages: those with a prompt are run as they stand, the others are Python at least."""

import doctest
import os
import re
import subprocess
import sys
from textwrap import dedent

import pytest
from support.command import PROJECT, environment

import pipeline

DOCS = PROJECT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PAGES |= {"../README.md": (PROJECT / "README.md").read_text()}
RUN = [name for name, text in PAGES.items() if re.search("^>>> ", text, re.MULTILINE)]
PYTHON = "howto/python.md"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[name], re.MULTILINE | re.DOTALL)


def give(command):
    """The command of a page, in the working folder."""
    words = command.split()
    assert words[:3] == ["python", "-m", "pipeline.run"]
    done = subprocess.run(
        [sys.executable, *words[1:]], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("name", RUN)
def test_every_example_gives_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == PYTHON:
        [command] = blocks(name, "sh")
        give(command)
    text = "".join(block for block in blocks(name, "python") if block.startswith(">>>"))
    examples = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    lines = []
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=lines.append)
    assert outcome.attempted >= 5
    assert outcome.failed == 0, "".join(lines)
    if name == PYTHON:
        assert outcome.attempted > 30
        assert os.path.getsize("spectrum.png") > 1000


@pytest.mark.parametrize("name", PAGES)
def test_examples_without_a_prompt_are_python(name):
    for block in blocks(name, "python"):
        if not block.startswith(">>>"):
            compile(dedent(block), name, "exec")


def test_the_pages_that_have_examples_are_found():
    assert {PYTHON, "start/index.md", "explanation/matrices.md", "explanation/batches.md"} <= set(RUN)


def test_the_page_from_python_names_every_public_name():
    assert [name for name in pipeline.__all__ if name not in PAGES[PYTHON]] == []
