"""The top-level settings of a run: their types, their checks, and the hash that says whether two runs are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.command_line import command
from pipeline.errors import PipelineError
from pipeline.system import RunFolder, check_evidence, write_atomically
from pipeline.validation import check_count, check_counts, check_names

MISSING: Any = "???"  # as omegaconf writes it, which those who read what a run left behind do not need


class Dtype(Enum):
    """The floating-point type of weights, data and matrix."""

    float32 = "float32"
    float64 = "float64"


class Blocks(Enum):
    """Which part of the matrix is computed: all of it, or the diagonal blocks of the layers."""

    all = "all"
    layer = "layer"


class Keep(Enum):
    """What stays of the batches' matrices: each of them, or their weighted mean alone."""

    all = "all"
    mean = "mean"


class Verify(Enum):
    """What becomes of a matrix that fails its certificate: refused, stored with a warning, or never looked at."""

    error = "error"
    warn = "warn"
    off = "off"


class Stage(Enum):
    """The parts of a run, in the order in which they go."""

    train = "train"
    compute = "compute"
    aggregate = "aggregate"
    slices = "slices"
    law = "law"
    report = "report"


@dataclass
class Config:
    """The schema that Hydra checks every top-level key against; the groups are checked by the classes they name."""

    seed: int = 0
    dtype: Dtype = Dtype.float32
    stages: Any = field(default_factory=lambda: [stage.value for stage in Stage])  # list[str], or one
    num_batches: int | None = None
    checkpoint_steps: Any = field(default_factory=list)  # list[int], or "log"; check_settings is stricter
    parameters: Any = None  # list[str], one, or None
    blocks: Blocks = Blocks.all
    keep: Keep = Keep.all
    verify: Verify = Verify.error
    slice_points: int | None = 27
    figure_formats: Any = field(default_factory=lambda: ["png"])  # list[str], or one of them
    model: Any = MISSING
    data: Any = MISSING
    device: Any = MISSING
    criterion: Any = MISSING
    training: Any = MISSING
    matrix: Any = MISSING
    strategy: Any = MISSING
    storage: Any = MISSING
    spectrum: Any = MISSING
    cluster: Any = MISSING
    tracking: Any = MISSING
    law: Any = None
    experiment: Any = None


# What the numbers in a shard depend on. Not: how many batches or checkpoints there are, where it is computed,
# and all that comes after the shard.
HASHED = (
    "seed",
    "dtype",
    "parameters",
    "blocks",
    "model",
    "data",
    "criterion",
    "training",
    "matrix",
    "strategy",
    "storage",
)
# How fast, how often looked at, how often saved; and estimates, which are no part of a shard.
OF_STRATEGIES = (
    *("chunk_size", "few_weights", "megabytes", "rows_at_once", "some_weights", "tangents_per_product"),
    *("very_few_weights", "keep_products", "num_density_steps", "num_density_vectors", "num_trace_products"),
)
NOT_HASHED = (
    "storage._target_",
    "storage.tile",
    *(f"strategy.{option}" for option in OF_STRATEGIES),
    "training.evaluate_every",
    "training.save_every",
)

ADDED: dict[
    str, dict[str, Any]
] = {  # options of later versions, by their class, and the values at which a config has the hash that it had before
    "pipeline.criterion.CrossEntropy": {"classes_last": False},
    "pipeline.data.Arrays": {"channels_last": False, "scale": False, "as_float": False, "map_labels": False},
    "pipeline.strategy.MatrixFree": {"each_batch": False},
    "pipeline.training.Pretrained": {"prefix": None},
}
ABOUT = ("command", "environments")  # in config.yaml beside the settings
FIGURE_FORMATS = ("png", "pdf", "svg")
LOG = "log"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the values that the schema's types let through.

    Raises:
        PipelineError: naming the key, its value and what it takes.
    """
    check_count("seed", settings["seed"], minimum=0)
    check_count("num_batches", settings["num_batches"], or_null="all of them")
    checkpoint_steps(settings)
    check_count("slice_points", settings["slice_points"], minimum=3, or_null="no slices of the loss")
    check_names("parameters", settings["parameters"], such_as="fc1.*", or_null="all that require grad")
    figure_formats(settings["figure_formats"])
    stages_of(settings["stages"])


def as_list(value: Any) -> Any:
    """A value that may be given alone, in a list; None and a list stay as they are."""
    return value if value is None or (isinstance(value, Sequence) and not isinstance(value, str)) else [value]


def stages_of(names: Any) -> frozenset[Stage]:
    """The stages of these names.

    Raises:
        PipelineError: there is none, or one that does not exist.
    """
    known, names = [stage.value for stage in Stage], as_list(names)
    if not names or not all(name in known for name in names):
        given = names[0] if len(names) == 1 else f"[{','.join(map(str, names))}]"
        raise PipelineError(f"stages={given}: choose one of {', '.join(known)}, or a list of them.")
    return frozenset(map(Stage, names))


def figure_formats(value: Any) -> tuple[str, ...]:
    """The formats of the files in figures/, from a list or one word; with an empty list there are no such files.

    >>> figure_formats("pdf")
    ('pdf',)

    Raises:
        PipelineError: one of them is none of png, pdf, svg.
    """
    formats = as_list(value)
    if formats is None or not set(formats) <= set(FIGURE_FORMATS):
        raise PipelineError(
            f"figure_formats={value!r}: give any of {', '.join(FIGURE_FORMATS)}, such as [png,pdf]."
        )
    return tuple(dict.fromkeys(formats))


def checkpoint_steps(settings: Mapping[str, Any]) -> list[int]:
    """The steps that `checkpoint_steps` asks for; `log` stands for 0, 1, 2, 5, 10, 20, 50, … up to the last one.

    >>> checkpoint_steps({"checkpoint_steps": "log", "training": {"num_steps": 30}})
    [0, 1, 2, 5, 10, 20]

    Raises:
        PipelineError: it is neither `log` nor a list of whole numbers.
    """
    steps = settings["checkpoint_steps"]
    if steps == LOG:
        last = last_step(settings)
        spaced = (first * 10**power for power in range(len(str(last))) for first in (1, 2, 5))
        return [0, *(step for step in spaced if step <= last)]
    return list(check_counts("checkpoint_steps", steps, minimum=0, or_word=LOG))


def last_step(settings: Mapping[str, Any]) -> int:
    """The step at which training ends; 0 where it has none."""
    steps = settings["training"].get("num_steps")
    return steps if isinstance(steps, int) else 0


def config_hash(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of the resolved settings that a shard's numbers depend on."""
    relevant = _hashed(settings)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:16]


def merge_with_saved(
    folder: RunFolder,
    settings: dict[str, Any],
    samples: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The settings with which shards are computed in this folder, with their hash and the command that began it.

    samples: their checksums, which become settings too. environment: commit, machine and threads of this process; each
    that differs from the earlier ones of the folder is kept beside them.

    Raises:
        PipelineError: the folder holds what was computed with other settings or of other samples.
    """
    saved = settings_of(folder)
    settings = {
        **settings,
        "checkpoint_steps": checkpoint_steps(settings),
        "config_hash": config_hash(settings),
        **(samples or {}),
    }
    if saved and saved["config_hash"] != settings["config_hash"]:
        changes = "; ".join(differences(settings, saved)[:3])
        raise PipelineError(
            f"{folder.path} holds another config ({changes}): one folder holds one config; "
            "choose another with hydra.run.dir=FOLDER."
        )
    check_evidence(folder.path, saved, samples or {})
    settings["command"] = saved.get("command") or command()
    known = list(saved.get("environments", []))
    new = [dict(environment)] if environment and dict(environment) not in known else []
    return settings | ({"environments": [*known, *new]} if known or new else {})


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """The settings of the run that computed what is in the folder; none, if no run did.

    Raises:
        PipelineError: the file that holds them is damaged.
    """
    if not folder.config.exists():
        return {}
    try:
        saved = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        saved = None
    if not is_config(folder.config):
        raise PipelineError(
            f"{folder.config} is not that of a run: choose another folder with hydra.run.dir=FOLDER."
        )
    if not isinstance(saved, dict) or "config_hash" not in saved:
        raise PipelineError(
            f"{folder.config} is damaged: delete it and run again with the stage compute, which writes it anew; "
            "each shard says too what it belongs to."
        )
    return saved


def is_config(path: Path) -> bool:
    """Whether a file is the settings of a run, or may have been before it was damaged; not YAML of another program."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, yaml.YAMLError, ValueError):
        return True
    return not isinstance(found, dict) or not found or bool(found.keys() & Config.__dataclass_fields__.keys())


def save_settings(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    """Leave the settings in the folder."""
    write_atomically(folder.config, yaml.safe_dump(dict(settings), sort_keys=False))


def run_name(choices: Mapping[str, str], overrides: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A name that a person can read: the choices that matter (of a law alone that), the seed, and what else was given.

    >>> choices = {"model": "mlp", "data": "digits", "matrix": "hessian", "strategy": "hvp"}
    >>> run_name(choices, ["strategy=hvp", "model.hidden_sizes=[64]"], {"seed": 1})
    'mlp digits hessian hvp seed=1 hidden_sizes=[64]'
    """
    chosen = [choices[group] for group in ("model", "data", "matrix", "strategy") if group in choices]
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    extra = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in pairs
        if key not in choices
        and key.partition(".")[0]
        not in ("seed", "stages", "hydra", "tracking", "cluster", "device", "figure_formats")
    ]
    return " ".join([*(chosen or [choices.get("law", "")]), f"seed={settings.get('seed', 0)}", *extra])


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with dotted keys, and without the command and the environments."""
    return flatten({key: value for key, value in settings.items() if key not in ABOUT})


def command_of(settings: Mapping[str, Any]) -> str:
    """The command that began the run; empty if it is not known."""
    return str(settings.get("command", ""))


def differences(here: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """The hashed settings in which two configs differ, as `key: value here, value there`."""
    mine, yours = _hashed(here), _hashed(saved)
    absent = "absent"
    return [
        f"{key} is {mine.get(key, absent)}, was {yours.get(key, absent)}"
        for key in sorted(mine.keys() | yours.keys())
        if mine.get(key, absent) != yours.get(key, absent)
    ]


def _hashed(settings: Mapping[str, Any]) -> dict[str, Any]:
    relevant = flatten({key: settings.get(key) for key in HASHED})
    return {
        key: value
        for key, value in relevant.items()
        if key not in NOT_HASHED and not _is_added(key, relevant)
    }


def _is_added(key: str, settings: Mapping[str, Any]) -> bool:
    group, _, option = key.partition(".")
    added = ADDED.get(settings.get(f"{group}._target_", ""), {})
    return option in added and settings[key] == added[option]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys: {"model": {"bias": True}} gives {"model.bias": True}."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
