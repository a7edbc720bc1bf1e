"""Every row of docs/howto/mistakes.md: the command ends with status 1 and with the line that the page gives."""

import re
from pathlib import Path

import pytest
import torch
from support.command import PROJECT, run, script

NEWCOMER = Path(__file__).parents[1] / "support" / "newcomer"
ROWS = re.findall(
    r"^\| `(.+?)` \| (.+) \|$", (PROJECT / "docs" / "howto" / "mistakes.md").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "mine.py").write_text((NEWCOMER / "mine.py").read_text())
    done = script("mine.py", cwd=folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_the_page_has_thirty():
    assert len(ROWS) >= 30


@pytest.mark.parametrize(("command", "answer"), ROWS, ids=[command for command, _ in ROWS])
def test_a_mistake_gets_the_answer_of_the_page(command, answer, folder, tmp_path):
    if command == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU, and it is no mistake")
    done = run(tmp_path / "run", *command.split(), "tracking=none", paths=[folder], cwd=folder)
    assert done.returncode == 1
    expected = ".*".join(re.escape(part) for part in answer.split("…"))
    assert re.fullmatch(expected, done.stdout.splitlines()[-1])
