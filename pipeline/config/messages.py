"""Mistakes in options, in one line: Hydra's and OmegaConf's errors, shortened, with the nearest name that exists."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback

from omegaconf.errors import OmegaConfBaseException

from pipeline.config.suggestions import near, option_names, unknown, unknown_word
from pipeline.errors import PipelineError, is_out_of_memory
from pipeline.system import format_bytes, remedy, spelled

SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
LOGGED = "told"  # a note on an exception: its line is in the log
LESS_MEMORY = (
    "choose fewer weights, a smaller strategy.chunk_size or data.batch_size, strategy=hvp or spectrum=topk"
)
log = logging.getLogger("pipeline")


def one_line_message(error: BaseException) -> str | None:
    """One line for the user; None if the error is none of the user's making, and a traceback is due."""
    for cause in _causes(error):
        if isinstance(cause, PipelineError):
            return str(cause)
        if is_out_of_memory(cause):
            return f"out of memory{_asked_for(str(cause))}: {LESS_MEMORY}."
        if isinstance(cause, SystemError):  # of the interpreter, about a library in C
            return f"a library failed without a reason ({cause}), as some do where memory runs out: {LESS_MEMORY}."
        if isinstance(cause, OSError) and cause.errno is not None:
            return f"{cause.filename or 'a file'}: {cause.strerror}: {remedy(cause)}."
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        return _about_options(error)
    return None


def log_error(error: Exception) -> None:
    """Put an error of a run into its log and on the terminal: one line, and of a bug the traceback in the log."""
    if line := one_line_message(error):
        log.error("%s", line)
    else:
        log.exception("unexpected %s: %s (the traceback is in run.log)", type(error).__name__, error)
    error.add_note(LOGGED)


def print_error(error: BaseException | None, in_sweep: bool) -> None:
    """Print what ended the command, unless it was told before: in a run's log, or with the table of a sweep."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return
    is_logged = LOGGED in getattr(error, "__notes__", ())
    if SHOW_TRACEBACKS:
        traceback.print_exception(error)
    elif not (in_sweep and (is_logged or isinstance(error, PipelineError))):
        line = one_line_message(error) or f"unexpected {type(error).__name__}: {error}"
        print(spelled(line, sys.stderr.encoding), file=sys.stderr)


def _asked_for(text: str) -> str:
    """How much memory was asked for, as libraries say it: `allocate 4096 bytes`, `allocate 2.50 GiB`."""
    found = re.search(r"allocate ([\d.]+) ?([bKMGTP])", text)
    if found is None:
        return ""
    num_bytes = int(float(found[1]) * 1024 ** "bKMGTP".index(found[2]))
    return f" ({format_bytes(num_bytes)} were asked for)"


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def _about_options(error: BaseException) -> str:
    text = " ".join(str(cause) for cause in _causes(error))
    if line := _about_names(error, text):
        return line
    if ambiguous := re.match(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = ambiguous[1].partition("=")
        return f"{ambiguous[1]}: several values make a sweep, with the flag -m; a list is written {key}=[{values}]."
    if doubled := re.search(r"An item is already at '([^']+)'", text):
        return f"+{doubled[1]}: there is such an option already: write it without the +."
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} has no value: give one with {missing[1]}=VALUE."
    if override := getattr(error, "override", None):
        if "=" not in override and not override.startswith("~"):
            return unknown_word(override)
        return f"{override}: not an option as Hydra reads it ({text.splitlines()[0]}): {_quoted(override)}."
    if str(error).startswith("Error merging override") and error.__cause__ is not None:
        return f"{str(error).removeprefix('Error merging override ').strip()}: {str(error.__cause__).splitlines()[0]}."
    short = re.split(r"\s+(?:full_key|object_type|Config search path|set env var|See https?):?", text)[0]
    key_of = re.search(r"full_key: (\S+)", text)
    return f"{key_of[1] + ': ' if key_of and key_of[1] not in short else ''}{' '.join(short.split())}"


def _quoted(override: str) -> str:
    """What to do about an override that Hydra cannot read: an equals sign, say, needs quotes that the shell keeps."""
    key, _, value = override.partition("=")
    if not value or set(value) & set("\"'"):
        return "quote or close what is open"
    return f"quote or close what is open, a text as it is is '{key}=\"{value}\"', with both quotes"


def _about_names(error: BaseException, text: str) -> str | None:
    """About a key, a group or an option that does not exist; None if that is not what is wrong."""
    for cause in _causes(error):
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, OmegaConfBaseException) and re.match(r"Key '.*' (?:is )?not in ", str(cause)):
            beside = [] if parent is None or parent._is_none() else [str(key) for key in parent]
            return unknown(str(cause.full_key or cause.key), beside)
    if name := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", text):  # of a file
        return unknown(name[1]) if name[2] == "Config" else f"{name[1]}: {name[2]} has no such option."
    if name := re.search(r"(?:Could not delete from config\.|config group) '([^']+)' does not exist", text):
        return unknown(name[1])
    if name := re.search(r"target '([\w.]+)'.*unexpected keyword argument '(\w+)'", text, re.DOTALL):
        key = re.search(r"full_key: (\S+)", text)
        return f"{f'{key[1]}.' if key else ''}{name[2]}: {name[1]} takes no such option."
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, option = choice[1].rpartition("/")
        options = option_names(group)
        return f"{group}={option}: there is no such option{near(option, options)} Choose one of {', '.join(options)}."
    return None
