"""The Python API from its docstrings: the public functions, and the classes of what they return."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import pipeline
from generators.markdown import escaped
from pipeline import errors

TOPICS = {
    "Matrices": ("hessian", "layer_hessians", "sample_hessians"),
    "Products and what is estimated from them": (
        "curvature_operator", "eigenpairs", "density", "trace", "diagonal", "solve", "gram_spectrum",
    ),
    "Spectra of stored matrices": ("eigenvalues", "plot_spectrum"),
    "What runs left": ("open_run", "open_sweep", "open_shard"),
}  # fmt: skip
OTHERS = "Other functions"
BESIDE = (  # classes that users hold beside those that functions return
    ("pipeline.spectrum.random_traces", "Estimate"),
    ("pipeline.objective.certificate", "Certificate"),
    ("pipeline.layout", "Layout"),
    ("pipeline.results.spectra_file", "SpectraFile"),
    ("pipeline.results.spectra_file", "MeanSpectrum"),
    ("pipeline.results.spectra_file", "Density"),
    ("pipeline.results.spectra_file", "BatchSpectra"),
    ("pipeline.results.spectra_file", "LayerBlocks"),
    ("pipeline.results.spectra_file", "ModuleBlocks"),
    ("pipeline.sweep.jobs", "Job"),
)
PARTS = {"Cost", "Memory", "Source"}  # words that begin a part of a docstring as names of arguments do
NAMES = re.compile(r"(?:^|(?<=[.;] ))((?:\w+)(?:, \w+)*): (?=\S)")


def python_reference() -> str:
    """All public functions by topic, then classes and exceptions."""
    named = {name for names in TOPICS.values() for name in names}
    rest = tuple(name for name in pipeline.__all__ if name not in named)
    parts = []
    for topic, names in {**TOPICS, **({OTHERS: rest} if rest else {})}.items():
        parts += [f"## {topic}", *(part for name in names for part in _function(name))]
    parts += ["## Classes", *(part for each in classes() for part in _class(each))]
    parts += ["## Exceptions", *(part for each in _exceptions() for part in _class(each, "Exceptions"))]
    return "\n\n".join(parts)


def classes() -> list[type]:
    """What public functions return, where it is of this package, and what hangs on it."""
    found = {}
    for name in pipeline.__all__:
        function = getattr(pipeline, name)
        returned = getattr(import_module(function.__module__), str(function.__annotations__["return"]), None)
        if inspect.isclass(returned) and returned.__module__.startswith("pipeline."):
            found[returned.__name__] = returned
    found |= {name: getattr(import_module(module), name) for module, name in BESIDE}
    return list(found.values())


def _exceptions() -> list[type]:
    return [
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.PipelineError)
    ]


def _function(name: str) -> Iterator[str]:
    function = getattr(pipeline, name)
    yield f"### `{name}`"
    yield _signature(f"pipeline.{name}", function)
    yield from _docstring(function.__doc__, set(inspect.signature(function).parameters))


def _class(kind: type, topic: str = "") -> Iterator[str]:
    yield f"### `{kind.__name__}`"
    names = (
        [field.name for field in fields(kind) if not field.name.startswith("_")] if is_dataclass(kind) else []
    )
    yield from _docstring(kind.__doc__ or "", set(names))
    if undescribed := [name for name in names if not re.search(rf"\b{name}\b[^.]*:", kind.__doc__ or "")]:
        comments = _comments(kind)
        yield "\n".join(
            f"- **{name}**" + (f": {escaped(comments[name])}" if name in comments else "")
            for name in undescribed
        )
    for name, member in vars(kind).items():
        if not name.startswith("_") and not topic:
            yield from _member(kind, name, member)


def _member(kind: type, name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property | cached_property):
        getter = member.fget if isinstance(member, property) else member.func
        yield f"`.{name}`"
        if getter.__doc__:
            yield _quoted(getter.__doc__, set())
    elif inspect.isfunction(member):
        yield _signature(f".{name}", member, without_self=True)
        if member.__doc__:
            yield _quoted(member.__doc__, set(inspect.signature(member).parameters))
    elif isinstance(member, classmethod):
        yield _signature(f"{kind.__name__}.{name}", member.__func__, without_self=True)
        if member.__doc__:
            yield _quoted(member.__doc__, set())


def _signature(name: str, function: Any, without_self: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if without_self else 0 :]
    words = [_parameter(each) for each in parameters]
    returned = f" -> {signature.return_annotation}" if isinstance(signature.return_annotation, str) else ""
    line = f"{name}({', '.join(words)}){returned}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returned}"
    return f"```python\n{line}\n```"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
        parameter.kind, ""
    )
    annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    default = parameter.default
    if default is parameter.empty:
        return f"{stars}{parameter.name}{annotation}"
    shown = (
        repr(default)
        if isinstance(default, str | int | float | bool | None)
        else f"{type(default).__name__}()"
    )
    return f"{parameter.name}{annotation}{' = ' if annotation else '='}{shown}"


def _comments(kind: type) -> dict[str, str]:
    """The comments behind the fields of a dataclass."""
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(kind), re.MULTILINE))


def _quoted(text: str, names: set[str]) -> str:
    """A docstring set in below a member."""
    lines = "\n\n".join(_docstring(text, names)).splitlines()
    return ":::{container} member\n" + "\n".join(lines) + "\n:::"


def _docstring(text: str, names: set[str]) -> Iterator[str]:
    """Paragraphs of Markdown: arguments as lists, examples as code."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith(">>>"):
            yield f"```python\n{block}\n```"
        elif block.startswith("Raises:"):
            yield from _raises(block)
        else:
            yield _paragraph(block, names | PARTS)


def _raises(block: str) -> Iterator[str]:
    items = re.split(r"\n(?=    \S)", block)[1:]
    told = [" ".join(item.split()).partition(": ") for item in items]
    yield "\n".join(f"- **Raises** `{name}`: {escaped(why)}" for name, _, why in told)


def _paragraph(block: str, names: set[str]) -> str:
    """Text, and a list of what it says of each argument or field."""
    lines = block.splitlines()
    starts = [i for i, line in enumerate(lines) if _is_item(line, names)]
    text = "\n".join(
        (("\n" if i in starts else " ") + line.strip() if i else line.strip()) for i, line in enumerate(lines)
    ).replace("\n ", " ")
    parts: list[str] = []
    for line in text.split("\n"):
        parts += _split(line.strip(), names)
    if not parts:
        return ""
    listed = [part.startswith("- ") for part in parts]
    joined = parts[0]
    for before, now, part in zip(listed, listed[1:], parts[1:], strict=False):
        joined += ("\n" if before and now else "\n\n") + part
    return joined


def _is_item(line: str, names: set[str]) -> bool:
    found = NAMES.match(line)
    return bool(found) and set(found[1].split(", ")) <= names


def _split(text: str, names: set[str]) -> list[str]:
    """The text before the first name, and an item for each name or group of names."""
    cuts = [match for match in NAMES.finditer(text) if set(match[1].split(", ")) <= names]
    if not cuts:
        return [escaped(text)] if text else []
    parts = [escaped(text[: cuts[0].start()].strip())] if cuts[0].start() else []
    ends = [*(match.start() for match in cuts[1:]), len(text)]
    for match, end in zip(cuts, ends, strict=True):
        shown = ", ".join(name if name in PARTS else f"`{name}`" for name in match[1].split(", "))
        parts.append(f"- **{shown}**: {escaped(text[match.end() : end].strip())}")
    return parts
