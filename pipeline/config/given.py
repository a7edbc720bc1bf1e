"""Which options a person gave: on the command line, or in YAML of his own. And which keys nobody reads.

The file of an option, such as `conf/model/mlp.yaml`, lists what its own class takes, and the defaults of that class.
Where another class takes its place (`model._target_=his_package.HisNet`), they are none of his: he gets what was given,
and his own defaults for the rest. Sizes go to parameters that are called so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.config.schema import Config
from pipeline.config.suggestions import CONF, near, unknown_top
from pipeline.errors import PipelineError

SIZES = ("input_shape", "num_outputs")  # what the data says of itself, and a model is built from
PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)
OWN = "own"  # in a group: the options that the pipeline reads itself where the class is a person's
OPEN = ("pipeline.model.hugging_face_net", "pipeline.model.timm_net")  # hand on what their file does not list
NO_OPTIONS = ("_target_", "_args_", "_recursive_", "_convert_")  # Hydra's own


@dataclass(frozen=True)
class Given:
    """What Hydra composed a config from.

    choices: the option of each group. overrides: keys and values of the command line. folders: of configs, the
    pipeline's own among them. main: the name of the main config.
    """

    choices: Mapping[str, str | None]
    overrides: Sequence[tuple[str, Any]]
    folders: Sequence[Path]
    main: str | None

    def in_group(self, group: str) -> set[str]:
        """The options of a group that a person gave."""
        found: set[str] = set()
        for key, value in self.overrides:
            if key == group and isinstance(value, Mapping):
                found |= {str(name) for name in value}
            elif key.startswith(f"{group}."):
                found.add(key.split(".")[1])
        for package, content in self._files:
            here: Any = content
            for name in [] if package == group else [group]:
                here = here.get(name) if package == "_global_" and isinstance(here, Mapping) else None
            if isinstance(here, Mapping):
                found |= {str(name) for name in here if name != "defaults"}
        return found

    @cached_property
    def _files(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The person's own files that were taken, and the group that each is of, or `_global_`."""
        taken = [*self._read(Path(f"{self.main}"), "_global_")]
        for group, choice in self.choices.items():
            if choice and not group.startswith("hydra/"):
                taken += self._read(Path(group, choice), group.replace("/", "."))
        return taken

    def _read(self, name: Path, package: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """A file and those that it includes by name alone; what it chooses in groups is among the choices."""
        paths = [
            folder / name.with_name(f"{name.name.removesuffix('.yaml')}.yaml") for folder in self.folders
        ]
        path = next((path for path in paths if path.is_file()), None)
        if path is None or path.is_relative_to(CONF):
            return
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        if not isinstance(content, Mapping):
            return
        for included in content.get("defaults") or []:
            if isinstance(included, str) and included != "_self_":
                inside = Path(included.lstrip("/")) if included.startswith("/") else name.parent / included
                yield from self._read(inside, package)
        match = PACKAGE.search(text)
        yield (package if match is None or match[1] == "_group_" else match[1]), content


def trim(
    config: DictConfig, group: str, given: Given, located: Callable[[], Callable[..., Any]] | None
) -> None:
    """Leave of a group's options what its class is to be handed, and refuse what it does not take.

    located: imports the class; None where it is not needed, and only options of the group's own file are checked.

    Raises:
        PipelineError: there is no class, or it takes no option of that name.
    """
    options, choice = config[group], given.choices.get(group)
    if not isinstance(options, DictConfig) or "_target_" not in options:
        raise PipelineError(
            f"{group}._target_ has no value: give the class with {group}._target_=package.Class."
        )
    file = CONF / group / f"{choice}.yaml"
    ours: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if ours and ours["_target_"] == options._target_:
        if options._target_ not in OPEN:
            _check(group, options, [str(key) for key in ours])
        return
    mine = given.in_group(group)
    known = _parameters(located()) if located is not None else {}
    anything = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    sizes = [size for size in SIZES if group == "model" and (anything or size in known)]
    left_out = [key for key in options if key not in mine and key not in (*NO_OPTIONS, *sizes)]
    with open_dict(config):
        for key in left_out:
            del options[key]
        for size in sizes:
            if size not in options:
                options[size] = f"${{data.{size}}}"
    if located is not None and not anything:
        _check(group, options, [*known, *options_beside(located(), group)])


def options_beside(target: Callable[..., Any], group: str) -> list[str]:
    """Options of a group that the pipeline reads where a person's class or function does not take them by name.

    A class with a method `load` reads all of its options itself.
    """
    file = CONF / group / f"{OWN}.yaml"
    if not file.is_file() or hasattr(target, "load"):
        return []
    known = _parameters(target)
    return [
        str(key)
        for key in yaml.safe_load(file.read_text(encoding="utf-8"))
        if key not in (*known, *NO_OPTIONS)
    ]


def _parameters(target: Callable[..., Any]) -> Mapping[str, Parameter]:
    try:
        return signature(target).parameters
    except ValueError:  # written in C, and does not say
        return {"options": Parameter("options", Parameter.VAR_KEYWORD)}


def _check(group: str, options: DictConfig, names: Sequence[str]) -> None:
    takes = [name for name in names if name not in NO_OPTIONS]
    for key in map(str, options):
        if key not in (*takes, *NO_OPTIONS):
            like = near(key, takes)
            like = f": it takes {', '.join(takes) or 'none'}." if like == "." else like
            raise PipelineError(f"{group}.{key}: {options._target_} takes no such option{like}")


def check_top(config: DictConfig) -> None:
    """Refuse keys beside those of the schema, unless another option takes its value from there.

    Raises:
        PipelineError: with the nearest key that exists.
    """
    for key in map(str, config):
        if key not in Config.__dataclass_fields__:
            text = OmegaConf.to_yaml(config, resolve=False)
            if not re.search(rf"\$\{{\s*{re.escape(key)}\b", text):
                raise PipelineError(unknown_top(key))


def check_hydra(schema: DictConfig, composed: DictConfig, keys: Sequence[str]) -> None:
    """Refuse keys of Hydra's own config that it does not have: with a `+` it takes any.

    schema: what it has. composed: what there is now. keys: those of the command line, with dots.

    Raises:
        PipelineError: with the nearest key that exists.
    """
    for key in keys:
        _, *path = key.split(".")
        known: Any = schema
        for depth, name in enumerate(path):
            if not isinstance(known, DictConfig) or not hasattr(
                OmegaConf.get_type(known), "__dataclass_fields__"
            ):
                break
            names = [str(each) for each in known.keys()]  # noqa: SIM118, as `in` does not see what has no value yet
            if name not in names:
                like = near(name, names)
                raise PipelineError(
                    f"{'.'.join(['hydra', *path[: depth + 1]])}: there is no such option{like}"
                )
            known = known._get_node(name)
        if len(path) == 2 and path[0] in ("launcher", "sweeper"):
            _check_plugin(path[0], path[1], composed)


def _check_plugin(kind: str, name: str, composed: DictConfig) -> None:
    defaults = {"launcher": set[str](), "sweeper": {"max_batch_size", "params"}}
    if "basic" in str(composed[kind]._target_).lower() and name not in (*defaults[kind], *NO_OPTIONS):
        raise PipelineError(
            f"hydra.{kind}.{name}: the {kind} that was chosen takes no such option{near(name, sorted(defaults[kind]))}"
        )
