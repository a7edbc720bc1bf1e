"""Mistakes in options, in one line: Hydra's and OmegaConf's errors, shortened, with the nearest name that exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from pipeline.errors import PipelineError
from pipeline.system import remedy

CONF = Path(__file__).parents[2] / "conf"


def explain(error: BaseException) -> str | None:
    """One line for the user; None if the error is none of the user's making, and a traceback is due."""
    for cause in _causes(error):
        if isinstance(cause, PipelineError):
            return str(cause)
        if _out_of_memory(cause):
            asked = re.search(r"allocate ([\d.]+ ?\w+)", str(cause))
            return (
                f"out of memory{f' ({asked[1]} were asked for)' if asked else ''}: choose fewer weights, "
                "a smaller strategy.chunk_size or data.batch_size, strategy=hvp or spectrum=topk."
            )
        if isinstance(cause, OSError) and cause.errno is not None:
            return f"{cause.filename or 'a file'}: {cause.strerror}: {remedy(cause)}."
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        return _about_options(error)
    return None


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class of its own for GPUs alone
    return isinstance(error, MemoryError) or bool(
        re.search("can't allocate memory|out of memory|can't start new thread", str(error))
        and isinstance(error, RuntimeError)
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def _about_options(error: BaseException) -> str:
    text = " ".join(str(cause) for cause in _causes(error))
    if unknown := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        return _unknown_key(unknown[2])
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1])
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", text):
        return (
            unknown_top(unknown[1])
            if unknown[2] == "Config"
            else f"{unknown[1]}: {unknown[2]} has no such option."
        )
    if unknown := re.search(r"target '([\w.]+)'.*unexpected keyword argument '(\w+)'", text, re.DOTALL):
        key = re.search(r"full_key: (\S+)", text)
        return f"{f'{key[1]}.' if key else ''}{unknown[2]}: {unknown[1]} takes no such option."
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, option = choice[1].rpartition("/")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"{group}={option}: there is no such option{near(option, options)} Choose one of {', '.join(options)}."
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} has no value: give one with {missing[1]}=VALUE."
    if override := getattr(error, "override", None):
        return f"{override}: not an option as Hydra reads it ({text.splitlines()[0]}): {_quoted(override)}."
    if str(error).startswith("Error merging override") and error.__cause__ is not None:
        return f"{str(error).removeprefix('Error merging override ').strip()}: {str(error.__cause__).splitlines()[0]}."
    short = re.split(r"\s+(?:full_key|object_type|Config search path|set env var|See https?):?", text)[0]
    key = re.search(r"full_key: (\S+)", text)
    return f"{key[1] + ': ' if key and key[1] not in short else ''}{' '.join(short.split())}"


def _quoted(override: str) -> str:
    """What to do about an override that Hydra cannot read: an equals sign, say, needs quotes that the shell keeps."""
    key, _, value = override.partition("=")
    if not value or set(value) & set("\"'"):
        return "quote or close what is open"
    return f"quote or close what is open, a text as it is is '{key}=\"{value}\"', with both quotes"


def _unknown_key(key: str) -> str:
    """`key` is a top-level key, or group.key."""
    group, _, name = key.rpartition(".")
    folder = CONF / group.replace(".", "/") if group else CONF  # hydra.launcher is the group hydra/launcher
    known: set[str] = {path.name for path in CONF.iterdir() if path.is_dir()} if not group else set()
    owners = []
    for path in sorted(folder.glob("*.yaml")):
        names = {str(found) for found in OmegaConf.load(path) if not str(found).startswith("_")}
        owners += [path.stem] if name in names else []
        known |= names
    if owners:
        return f"{key}: the {group} that was chosen has no such option, {group}={' or '.join(owners)} has it."
    if group.startswith("hydra."):  # as far as the main config sets them
        known |= set(OmegaConf.select(OmegaConf.load(CONF / "config.yaml"), group, default={}))
    like = near(name, sorted(known))
    if like == "." and group and not group.startswith("hydra"):
        like = f"; one that a class of your own takes is given as +{key}=VALUE."
    return f"{key}: there is no such option{like}"


def near(name: str, known: Sequence[str]) -> str:
    """The end of a line about a name that does not exist: the nearest one that does."""
    close = difflib.get_close_matches(name, known, n=1) or [each for each in known if name == _initials(each)]
    return f", did you mean {close[0]}?" if close else "."


def _initials(name: str) -> str:
    """Those of the words of a name that has several: lr for learning_rate."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def unknown_top(key: str) -> str:
    """About a key beside those of the config: the nearest of its keys, or of those in its groups."""
    groups = {path.parent.name for path in CONF.glob("*/*.yaml")}
    tops = sorted(
        groups | {str(found) for found in OmegaConf.load(CONF / "config.yaml")} - {"defaults", "hydra"}
    )
    inside = [
        f"{path.parent.name}.{name}"
        for path in sorted(CONF.glob("*/*.yaml"), key=lambda path: path.parent.name != "training")
        if path.parent.name != "experiment"
        for name in map(str, OmegaConf.load(path))
        if not name.startswith("_")
    ]
    leaves: dict[str, str] = {}
    initials: dict[str, str] = {}
    for name in inside:
        leaf = name.partition(".")[2]
        leaves.setdefault(leaf, name)
        initials.setdefault(_initials(leaf), name)
    close = difflib.get_close_matches(key, [*tops, *leaves], n=1)
    found = leaves.get(key) or next((name if name in tops else leaves[name] for name in close), None)
    found = found or initials.get(key)
    if found:
        return f"{key}: there is no such option, did you mean {found}?"
    return f"{key}: there is no such option: `python -m pipeline.run --help` lists them."
