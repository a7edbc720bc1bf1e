"""A terminal that lacks characters, or is gone: neither ends a command; what a table says is in the log."""

import io
import logging
import sys

from pipeline.system import terminal


def ascii_terminal(monkeypatch):
    """What is printed from here on, to a terminal that has ASCII alone."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    return raw


def test_a_table_for_an_ascii_terminal_is_straight(monkeypatch, caplog):
    printed = ascii_terminal(monkeypatch)
    with caplog.at_level(logging.INFO):
        terminal.table("spectrum λ", {"λ max": "−1.5 × 10²", "trace": "3"})
    lines = printed.getvalue().decode("ascii").splitlines()
    assert lines[0].strip() == "spectrum lambda"
    assert len({len(line) for line in lines[1:]}) == 1
    assert "| lambda max | -1.5 x 10^2 |" in lines
    assert caplog.messages == ["spectrum λ:\n  λ max  −1.5 × 10²\n  trace  3"]
    assert caplog.records[0].log_only


def test_a_grid_for_an_ascii_terminal_is_straight(monkeypatch):
    printed = ascii_terminal(monkeypatch)
    terminal.print_rows("jobs", ["job", "λ max"], [["0", "1.5"], ["1", "−2"]])
    lines = printed.getvalue().decode("ascii").splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert "lambda max" in lines[2]


def test_a_character_that_has_no_name_here_is_a_question_mark(monkeypatch):
    printed = ascii_terminal(monkeypatch)
    terminal.print_line("é λ 漢")
    assert printed.getvalue() == b"e lambda ?\n"
    assert terminal.spelled("3 × λ", "latin-1") == "3 × lambda"
    assert terminal.spelled("3 × λ", "utf-8") == "3 × λ"


def test_what_is_printed_by_others_does_not_end_the_command_either(monkeypatch):
    printed = ascii_terminal(monkeypatch)
    terminal.prepare_terminal()
    print("λ …")
    assert printed.getvalue() == b"lambda ...\n"


def test_a_record_for_the_log_alone_is_not_on_the_terminal(capsys):
    logger = logging.Logger("alone")
    logger.addHandler(terminal.TerminalHandler())
    logger.info("seen")
    logger.info("not seen", extra=terminal.LOG_ONLY)
    assert capsys.readouterr().out == "seen\n"
