"""From the config to the objects that it names.

`prepare` leaves in each group what its class is to be handed, `instantiate` builds the experiment, in a run and in each
of its workers.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.config import (
    SIZES,
    Config,
    Given,
    Stage,
    as_list,
    check_hydra,
    check_settings,
    check_top,
    checkpoint_steps,
    command,
    last_step,
    options_beside,
    stages_of,
    trim,
)
from pipeline.errors import PipelineError
from pipeline.system import RunFolder

if TYPE_CHECKING:
    from pipeline.data import Samples
    from pipeline.experiment.experiment import Experiment
    from pipeline.objective import Problem

GROUPS = (
    "data",
    "model",
    "criterion",
    "device",
    "training",
    "matrix",
    "strategy",
    "storage",
    "spectrum",
    "cluster",
    "tracking",
)
PATHS = ("data.path", "training.path", "tracking.root")
NEED_MODEL = {Stage.train, Stage.compute, Stage.slices}
# PyTorch's threads wait for each other by spinning; where others keep the cores busy, that can cost a hundred times the
# work itself. So few turns cost a tenth of small steps on idle cores (scripts/benchmark_busy.py). Read with torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def prepare(config: DictConfig) -> None:
    """Leave in each group the options that its class is to be handed.

    Raises:
        PipelineError: there is a key that nobody reads, a top-level value is wrong, or a class that is needed cannot
            be imported.
    """
    config.stages, config.parameters = as_list(config.stages), as_list(config.parameters)
    stages = stages_of(config.stages)
    with open_dict(config.data):  # the data says them when it has been loaded
        for size in SIZES:
            config.data.setdefault(size, None)
    check_settings(resolved_settings(config))
    hydra_config: Any = HydraConfig.get()
    _anchor_paths(config, Path(hydra_config.runtime.cwd))
    given = _given(hydra_config)
    added = [key for key, _ in _parsed(hydra_config.overrides.hydra)]
    check_hydra(OmegaConf.structured(HydraConf), hydra_config, added)
    check_top(config)
    unneeded = {
        "training": Stage.train not in stages,
        **dict.fromkeys(("model", "data", "criterion", "device"), not stages & NEED_MODEL),
    }
    for group in GROUPS if config.law is None else (*GROUPS, "law"):
        needed = not unneeded.get(group, False)
        target = config[group].get("_target_") if isinstance(config[group], DictConfig) else None
        trim(config, group, given, partial(_locate, group, str(target)) if needed else None)


def check_results(config: DictConfig, folder: RunFolder) -> None:
    """Refuse what stages that need no model cannot begin with.

    Raises:
        PipelineError: an option is wrong, or the folder holds no run that they could go on with.
    """
    for group in ("matrix", "strategy", "storage", "spectrum"):
        build(config, group)  # a value that is wrong is refused, whatever the stages
    stages = stages_of(config.stages)
    if config.law is None and stages <= {Stage.law, Stage.report} and Stage.law in stages:
        raise PipelineError("stages=law has no law to measure: choose one, such as law=duality (--help law).")
    if not folder.holds_results and (config.law is None or Stage.law not in stages):
        raise PipelineError(
            f"stages={','.join(config.stages)} goes on with what a run left, and {folder.path} holds none: "
            "name the folder of one with hydra.run.dir=FOLDER."
        )


def _anchor_paths(config: DictConfig, began: Path) -> None:
    """Let relative paths be of the folder where the command was given, also where Hydra has left it for the run's."""
    if Path.cwd() == began:
        return
    for key in PATHS:
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and "//" not in path and not path.startswith("runs:/"):
            OmegaConf.update(config, key, str(began / path))


def _given(hydra_config: Any) -> Given:
    folders = []
    for source in hydra_config.runtime.config_sources:
        if source.schema == "file":
            folders.append(Path(source.path))
        elif source.schema == "pkg" and source.provider != "hydra":
            found = find_spec(source.path.replace("/", "."))
            folders += [Path(place) for place in (found and found.submodule_search_locations) or ()]
    choices = hydra_config.runtime.choices
    return Given(choices, _parsed(hydra_config.overrides.task), folders, hydra_config.job.config_name)


def _parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Keys and values of the command line."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [(each.key_or_group, None if each.is_delete() else each.value()) for each in parsed]


def build_experiment(config: DictConfig, worker: int | None = None) -> Experiment:
    """The experiment that a config describes; what the data says of its sizes is put into the config.

    worker: the number of this process among the workers of its machine; None in the run itself.

    Raises:
        PipelineError: a class cannot be imported or refuses an option, or model, data and criterion do not fit.
    """
    import_torch()
    from pipeline.experiment.experiment import Experiment, MatrixSpec

    handed = OmegaConf.to_container(config.data, resolve=True)
    problem = _problem(config, worker)
    settings = resolved_settings(config)
    matrix = MatrixSpec(
        matrix=build(config, "matrix"),
        strategy=build(config, "strategy"),
        parameters=settings["parameters"],
        verify=config.verify,
        blocks=config.blocks,
        storage=build(config, "storage"),
        keep=config.keep,
        settings=settings,
    )
    return Experiment(
        problem=problem,
        matrix=matrix,
        spectrum=build(config, "spectrum"),
        checkpoint_steps=checkpoint_steps(settings),
        last_step=last_step(settings),
        num_batches=config.num_batches,
        seed=config.seed,
        slice_points=config.slice_points,
        stages=stages_of(config.stages),
        recipe={**settings, "data": handed, **problem.hashes},
    )


def _problem(config: DictConfig, worker: int | None) -> Problem:
    """Model, data and criterion on their device."""
    import torch

    from pipeline.device import Auto
    from pipeline.objective import Problem

    device = build(config, "device")
    if worker is not None and isinstance(device, Auto):
        device = device.of_worker(worker)
    place, dtype = device.setup(), getattr(torch, config.dtype.value)
    samples, batch_size = _samples(config)
    with open_dict(config):
        config.data.input_shape = list(samples.input_shape)
        config.data.num_outputs = samples.num_outputs
    torch.manual_seed(config.seed)
    model, criterion = build(config, "model"), build(config, "criterion")
    return Problem.on(place, dtype, model, criterion, samples.train, samples.test, batch_size)


def _samples(config: DictConfig) -> tuple[Samples, int | None]:
    """The samples, and how many make a batch; options that a person's class does not take are the pipeline's."""
    from pipeline.data import samples_of

    config = copy.deepcopy(config)
    beside = options_beside(_locate("data", config.data._target_), "data")
    with open_dict(config.data):
        ours = {key: config.data.pop(key) for key in list(config.data) if key in beside}
    return samples_of(build(config, "data"), OmegaConf.to_container(OmegaConf.create(ours)))  # type: ignore[arg-type]


def build(config: DictConfig, group: str) -> Any:
    """The object that a group's options describe.

    What it is handed is what `prepare` has left there.
    """
    options = config[group]
    target = _locate(group, options._target_)
    given = [key for key in options if key not in {"_target_", "_partial_"}]
    is_loss = group == "criterion" and isfunction(target) and not _can_be_called(target, given)
    return hydra.utils.instantiate(options, _convert_="all", **({"_partial_": True} if is_loss else {}))


def _can_be_called(function: Callable[..., Any], names: Sequence[str]) -> bool:
    """Whether a function needs no more than these arguments; one that does is the loss itself, not what makes it."""
    try:
        signature(function).bind(**dict.fromkeys(names))
    except TypeError:
        return False
    return True


def build_training(config: DictConfig, folder: RunFolder, tracking: Any) -> Any:
    """The training; weights that are named by an MLflow run are copied into the run folder first."""
    path = config.training.get("path")
    if isinstance(path, str) and path.startswith("runs:/"):
        config.training.path = str(tracking.fetch(path, folder.checkpoints / "fetched"))
    return build(config, "training")


def as_config(settings: Mapping[str, Any]) -> DictConfig:
    """The config whose resolved settings these are, in a process that Hydra did not start."""
    known = {key: settings[key] for key in Config.__dataclass_fields__ if key in settings}
    return OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(known))  # type: ignore[return-value]


def law_settings(config: DictConfig) -> dict[str, Any]:
    """What is recorded of a run that measures a law on nets of its own; nothing, if it measures none."""
    settings = resolved_settings(config)
    own = {key: settings[key] for key in ("seed", "law", "stages")}
    return {**own, "command": command()} if settings["law"] is not None else {}


def resolved_settings(config: DictConfig) -> dict[str, Any]:
    """The config as nested dicts, with every interpolation resolved."""
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, enum_to_str=True)  # type: ignore[assignment]
    return settings


def import_torch() -> None:
    """Import PyTorch, with what its optimizers and transforms import when they are first used.

    Python looks for garbage whenever so many objects are new, and nothing of this million is: without that search, and
    later without looking at them again, it takes a sixth less time.
    """
    if "torch" not in sys.modules:
        gc.disable()
        import_module("torch._dynamo")
        gc.freeze()
        gc.enable()


def _locate(group: str, target: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise PipelineError(
            f"{group}._target_={target} cannot be imported ({error}): "
            "check its name, and that its folder is on PYTHONPATH."
        ) from None
    if not callable(found):
        raise PipelineError(f"{group}._target_={target} is no class: give one, such as {target}.Class.")
    return found
