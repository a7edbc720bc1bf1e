"""Names and values as MLflow takes them, written the way they are typed on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

KEY_LENGTH = 250
VALUE_LENGTH = 6000
FORBIDDEN = re.compile(r"[^/\w.\- :]")


def flat_texts(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings with dotted keys: `{"model": {"bias": True}}` gives `{"model.bias": "true"}`."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flat_texts(value, f"{key}.")
        else:
            flat[key_text(key)] = value_text(value)
    return flat


def key_text(key: str) -> str:
    """A key that MLflow accepts: `_` for a character it refuses; `a` and `a/b` for `../a` and `a//b`."""
    text = FORBIDDEN.sub("_", str(key))
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return _cut("/".join(parts), KEY_LENGTH).strip("/").lstrip(".") or "_"


def value_text(value: object, length: int = VALUE_LENGTH) -> str:
    """`null`, `true`, `[32, 16]`, `1e-06`; past MLflow's limit cut, with the full length at the end."""
    return _cut(_plain(value), length)


def _plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"[{', '.join(_plain(entry) for entry in value)}]"
    return str(value)


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    note = f"… ({len(text)} characters)" if length > KEY_LENGTH else ""
    return text[: length - len(note)] + note
