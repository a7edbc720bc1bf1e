"""The pages of `--help`, made from the files and comments of `conf/`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.suggestions import CONF, near
from pipeline.errors import PipelineError
from pipeline.system import __version__

KEY = re.compile(
    r"^(?P<name>[a-z]\w*|_target_(?=: \?)):[ ]*(?P<value>.*?)(?:[ ]+#[ ](?P<comment>.*))?$", re.MULTILINE
)
DEFAULT = re.compile(r"^  - (?P<group>[a-z]+): (?P<choice>\w+)[ ]*(?:# (?P<comment>.*))?$", re.MULTILINE)
COMMAND = re.compile(r"python -m pipeline\.run .*=\w+$")
EXPERIMENT, LAUNCHER = "experiment", "hydra/launcher"
MOST_COLUMNS = 120
USAGE = {
    "[GROUP=OPTION] [GROUP.KEY=VALUE] [KEY=VALUE]": "a run",
    "-m KEY=VALUE,VALUE …": "a sweep: each combination is a run",
    "--help GROUP": "the options of a group, each with its keys",
    "--cfg job [KEY=VALUE] …": "the config that a command has, without a run",
    "KEY=VALUE … hydra.run.dir=FOLDER": "a folder of your choice; goes on with what is in it",
}
USAGE_COLUMNS = 68
VALUE_COLUMNS = 34  # of `  name=value`, before the comment


@dataclass(frozen=True)
class Key:
    """A key of a config file: its value as the file writes it, and the comment behind it."""

    name: str
    value: str
    comment: str

    def lines(self, prefix: str) -> Iterator[str]:
        value = "VALUE" if self.value == "???" else self.value.replace(", ", ",")
        comment = f"(required) {self.comment}" if self.value == "???" else self.comment
        yield from _columns(f"  {prefix}{self.name}={value}", comment)


@dataclass(frozen=True)
class Option:
    """One file of a group: what it says of itself, and its keys."""

    group: str
    name: str
    path: Path

    @property
    def description(self) -> str:
        """The comment at the head of the file, without the command that an experiment begins with."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            text = line.lstrip("# ")
            if not text.startswith("@package") and not COMMAND.match(text):
                lines.append(text)
        return " ".join(lines)

    @property
    def keys(self) -> list[Key]:
        """The keys of the file; of an experiment none, as it only sets those of others (`settings`)."""
        return [] if self.group == EXPERIMENT else keys_of(self.path.read_text(encoding="utf-8"))

    @property
    def settings(self) -> list[str]:
        """What an experiment stands for, as one would write it on the command line."""
        if self.group != EXPERIMENT:
            return []
        content = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        choices = [override for each in content.pop("defaults", []) for override in each.items()]
        words = [(key.removeprefix("override /"), value) for key, value in choices]
        return [f"{key}={_compact(value)}" for key, value in (*words, *_flat(content))]

    def page(self, mark: str = "") -> Iterator[str]:
        yield from _columns(f"{self.group}={self.name}{mark}", self.description)
        for key in self.keys:
            yield from key.lines(f"{self.group.replace('/', '.')}.")
        if self.settings:
            yield from _columns("  stands for", " ".join(self.settings))


def keys_of(text: str) -> list[Key]:
    """The keys of a config file that have a value on their line."""
    found = (match.groupdict("") for match in KEY.finditer(text))
    return [Key(**each) for each in found if each["value"]]


def groups() -> dict[str, tuple[str, str]]:
    """The option of each group that is chosen by default, and what the group is about; in the order of the config."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return {
        match["group"]: (match["choice"], match["comment"] or "")
        for match in DEFAULT.finditer(text)
        if (CONF / match["group"]).is_dir()
    }


def options_of(group: str, folders: Sequence[Path] = ()) -> list[Option]:
    """The options of a group, those of a person's own config folders among them."""
    paths = [path for folder in (CONF, *folders) for path in sorted((folder / group).glob("*.yaml"))]
    return [Option(group, path.stem, path) for path in paths]


def page_of(words: Sequence[str], program: str, folders: Sequence[Path] = ()) -> str:
    """The page that `--help WORDS` asks for: of everything, or of groups, options (model=mlp) and keys.

    folders: a person's own config folders.

    Raises:
        PipelineError: there is no such group, option or key.
    """
    if not words:
        return "\n".join(_overview(program, folders))
    return "\n\n".join("\n".join(_about(word.strip("+~"), folders)).strip("\n") for word in words)


def _overview(program: str, folders: Sequence[Path]) -> Iterator[str]:
    about = "exact Hessians of a neural network's loss, batch by batch, and their spectra."
    yield f"curvature-pipeline {__version__}: {about}"
    yield ""
    for arguments, meaning in USAGE.items():
        yield from _columns(f"{program} {arguments}", meaning, USAGE_COLUMNS)
    yield ""
    yield "Keys of no group, with their defaults"
    for key in keys_of((CONF / "config.yaml").read_text(encoding="utf-8")):
        yield from key.lines("")
    for group, (default, comment) in groups().items():
        yield ""
        yield f"{group}: {comment}" if comment else group
        for option in options_of(group, folders):
            if option.name == default:
                yield from option.page(" (default)")
        for option in options_of(group, folders):
            if option.name != default:
                yield from _columns(f"{group}={option.name}", option.description)
    yield ""
    yield from _columns(f"{LAUNCHER}=slurm", options_of(LAUNCHER)[0].description)
    yield from _columns(
        "--hydra-help", "the flags of Hydra, which reads the command line; shell completion is one of them"
    )


def _about(word: str, folders: Sequence[Path]) -> Iterator[str]:
    name, equals, choice = word.partition("=")
    group, _, key = name.partition(".")
    every, keys = options_of(name, folders), keys_of((CONF / "config.yaml").read_text(encoding="utf-8"))
    if every and (not equals or any(option.name == choice for option in every)):
        default, comment = groups().get(name, ("", ""))
        if not equals and comment:
            yield f"{name}: {comment}"
        for option in every:
            if not equals or option.name == choice:
                yield ""
                yield from option.page(" (default)" if option.name == default else "")
    elif every:
        names = [option.name for option in every]
        raise PipelineError(
            f"{word}: there is no such option{near(choice, names)} Choose one of {', '.join(names)}."
        )
    elif found := [each for each in keys if each.name == name]:
        yield from found[0].lines("")
    elif owners := [
        option for option in options_of(group, folders) if key in {each.name for each in option.keys}
    ]:
        for option in owners:
            yield f"{group}={option.name}"
            yield from next(each for each in option.keys if each.name == key).lines(f"{group}.")
    else:
        inside = sorted({each.name for option in options_of(group, folders) for each in option.keys})
        like = near(key, inside).replace("mean ", f"mean {group}.") if inside else "."
        if like == ".":
            like = near(word, [*groups(), LAUNCHER, *(each.name for each in keys)])
        raise PipelineError(f"{word}: there is no group or key of that name{like}")


def _columns(left: str, right: str, width: int = VALUE_COLUMNS) -> Iterator[str]:
    """Two columns; what is too long for the right one goes on below it."""
    total = min(MOST_COLUMNS, max(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, width + 40))
    lines = textwrap.wrap(right, total - width - 1, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) >= width:
        yield left
        left = ""
    yield f"{left:<{width}} {lines[0]}".rstrip()
    for line in lines[1:]:
        yield f"{'':<{width}} {line}"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _compact(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(_compact, value))}]" if isinstance(value, list) else str(value)
