"""docs/howto/python.md: its command and its examples are run as they stand."""

import doctest
import os
import re
import subprocess
import sys

from support.command import PROJECT, environment

PAGE = PROJECT / "docs" / "howto" / "python.md"


def parts(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_example_gives_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [command] = parts("sh")
    words = command.split()
    assert words[:3] == ["python", "-m", "pipeline.run"]
    done = subprocess.run(
        [sys.executable, *words[1:]], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    examples = doctest.DocTestParser().get_doctest("".join(parts("python")), {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 30
    lines = []
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=lines.append)
    assert outcome.failed == 0, "".join(lines)
    assert os.path.getsize("spectrum.png") > 1000


def test_the_page_names_every_public_name():
    import pipeline

    text = PAGE.read_text()
    assert [name for name in pipeline.__all__ if name not in text] == []
