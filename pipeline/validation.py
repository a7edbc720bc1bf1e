"""Checks of options, since plain YAML lets any type through: every class says in one line what it takes. And names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import TypeVar

from pipeline.errors import PipelineError

Kind = TypeVar("Kind")


def check_count(name: str, value: object, minimum: int = 1, or_null: str | None = None) -> None:
    """Refuse what is not a whole number of at least `minimum`.

    or_null: what null stands for, where the option may be null.
    """
    if value is None and or_null is not None:
        return
    if not _is_whole(value) or int(value) < minimum:  # type: ignore[call-overload]
        remedy = f", or null ({or_null})" if or_null is not None else ""
        raise PipelineError(f"{name}={value!r}: give a whole number of at least {minimum}{remedy}.")


def check_counts(name: str, value: object, minimum: int = 1, or_word: str | None = None) -> tuple[int, ...]:
    """The list as a tuple; refuse what is not a list of whole numbers of at least `minimum`.

    or_word: what the caller takes besides, for the message.
    """
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    if fits:
        items = list(value)  # type: ignore[call-overload]
        fits = all(_is_whole(item) and item >= minimum for item in items)
    if not fits:
        other = f", or {or_word}" if or_word is not None else ""
        raise PipelineError(
            f"{name}={value!r}: give a list of whole numbers of at least {minimum}, such as [32]{other}."
        )
    return tuple(int(item) for item in items)


def check_number(
    name: str,
    value: object,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse what is not a finite number within the bounds: > above, ≥ minimum, < below."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = (
            (above is None or number > above)
            and (minimum is None or number >= minimum)
            and (below is None or number < below)
        )
    if not fits:
        bounds = {"above": above, "of at least": minimum, "below": below}
        rule = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        raise PipelineError(f"{name}={value!r}: give a number {rule}".rstrip() + ".")


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Refuse what is not one of the options."""
    if value not in options:
        raise PipelineError(f"{name}={value!r}: choose one of {', '.join(options)}.")


def check_bool(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise PipelineError(f"{name}={value!r}: give true or false.")


def check_text(name: str, value: object, example: str) -> None:
    """Refuse what is not a string, or is an empty one."""
    if not isinstance(value, str) or not value:
        raise PipelineError(f"{name}={value!r}: give a text such as {example}.")


def check_names(name: str, value: object, such_as: str, or_null: str) -> None:
    """Refuse what is neither a text nor a list of texts; or_null: what null stands for."""
    names = [value] if isinstance(value, str) else value
    fits = isinstance(names, Sequence) and bool(names) and all(isinstance(each, str) for each in names)
    if value is not None and not fits:
        raise PipelineError(
            f"{name}={value!r}: give a name such as {such_as}, a list of them, or null ({or_null})."
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def name_of(choice: object, kinds: Mapping[str, type]) -> str:
    """The name of a choice in `conf/`; that of its class, where it is the user's own."""
    return next((name for name, kind in kinds.items() if type(choice) is kind), type(choice).__name__)


def named(choice: str | Kind, kinds: Mapping[str, type[Kind]], what: str) -> Kind:
    """The choice with its defaults, if it is a name; else the object itself.

    Raises:
        PipelineError: no choice has that name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in kinds:
        raise PipelineError(f"{what} {choice!r} is unknown: choose one of {', '.join(kinds)}.")
    return kinds[choice]()
