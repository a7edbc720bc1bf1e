"""Every group, option and key of `conf/`, with the comments that stand there."""

from __future__ import annotations

from collections.abc import Iterator

from generators.markdown import code, table
from pipeline.config.help import EXPERIMENT, LAUNCHER, Key, Option, groups, keys_of, options_of
from pipeline.config.suggestions import CONF


def configuration() -> str:
    """The keys of no group, then each group with its options, the default one first."""
    keys = keys_of((CONF / "config.yaml").read_text(encoding="utf-8"))
    parts = ["## Keys of no group", _table(keys)]
    for group, (default, comment) in {
        **groups(),
        LAUNCHER: ("", "how the jobs of a sweep are started"),
    }.items():
        if group != EXPERIMENT:
            parts += [f"## `{group}`: {comment}", *_options(group, default)]
    parts += [f"## `{EXPERIMENT}`: {groups()[EXPERIMENT][1]}", _experiments()]
    return "\n\n".join(parts)


def _options(group: str, default: str) -> Iterator[str]:
    for option in sorted(options_of(group), key=lambda each: each.name != default):
        mark = " (default)" if option.name == default else ""
        yield f"### `{group}={option.name}`{mark}"
        yield _sentence(option.description)
        if option.keys:
            yield _table(option.keys, f"{group.replace('/', '.')}.")


def _table(keys: list[Key], prefix: str = "") -> str:
    rows = [
        (code(prefix + key.name), "required" if key.value == "???" else code(key.value), key.comment)
        for key in keys
    ]
    return table(("key", "default", "meaning"), rows)


def _experiments() -> str:
    rows = [(code(f"experiment={option.name}"), _settings(option)) for option in options_of(EXPERIMENT)]
    return table(("option", "stands for"), rows)


def _settings(option: Option) -> str:
    return " ".join(map(code, option.settings))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
