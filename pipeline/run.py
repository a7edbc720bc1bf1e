"""The composition root: from the command line to a report. The only module that imports Hydra.

    python -m pipeline.run model=mlp strategy=func

Config -> data, model, criterion -> the five stages of `pipeline.stages`, in a folder that no other process
works in.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.config import Config, Stage, check_settings, flat, keep, run_name, settings_of, settle
from pipeline.errors import PipelineError
from pipeline.explain import CONF, explain
from pipeline.folder import RunFolder
from pipeline.given import SIZES, Given, check_hydra, check_top, trim
from pipeline.launcher import NAME, LaunchError, Slurm
from pipeline.multirun import launched
from pipeline.slurm_jobs import NOTES
from pipeline.status import is_finished, note_finished, told
from pipeline.sweep_jobs import has_jobs, job_name

if TYPE_CHECKING:
    from pipeline.elsewhere import Processes, Work

SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
log = logging.getLogger("pipeline")
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
TORCH = {Stage.train, Stage.compute, Stage.slices}  # stages that need the model and the samples
# PyTorch's threads wait for each other by spinning; where others keep the cores busy, that can cost a hundred times the
# work itself. So few turns cost a tenth of small steps on idle cores (scripts/benchmark_busy.py). Read with torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
ConfigStore.instance().store(name="schema", node=Config)
Plugins.instance().class_name_to_class[NAME] = Slurm  # Hydra's search misses plugins of editable installs


def run(config: DictConfig, folder: RunFolder) -> None:
    """Do what the config asks for, and leave it in the folder."""
    wanted = set(config.stages)
    with folder.lock(), told(folder):
        with open_dict(config.data):  # the data says them when it has been loaded
            for size in SIZES:
                config.data.setdefault(size, None)
        check_settings(plain(config))
        prepare(config, wanted)
        data: Any = OmegaConf.to_container(config.data, resolve=True)  # as it is to be built, in workers too
        tracking = build(config, "tracking")
        tracker = tracking.ready()
        subject = build_subject(config) if wanted & TORCH else None
        settings = settings_of(folder)
        if subject is not None:
            settings = settle(folder, plain(config), subject.hashes)
        from pipeline import (  # torch and the rest: not before the config is known to be right
            foresight,
            stages,
        )

        matrix, strategy, storage, spectrum = (
            build(config, group) for group in ("matrix", "strategy", "storage", "spectrum")
        )
        if subject is not None:
            foresight.check_plan(folder, subject, settings, matrix, strategy, spectrum, storage)
            keep(folder, settings)
            log.info(
                "run folder: %s (to go on after a kill: the same command, with hydra.run.dir=that folder)",
                folder.path,
            )
        with tracker.start(folder, *_labels(settings), _sweep()) as tracked:
            diary = stages.Diary(folder, tracked)
            if subject is not None and Stage.train in wanted:
                stages.train(diary, subject, settings, lambda: build_training(config, folder, tracking))
            if subject is not None and Stage.compute in wanted:
                processes = _processes(config, {**settings, "data": data}, folder)
                stages.compute(diary, subject, settings, matrix, strategy, processes, storage)
            if Stage.aggregate in wanted:
                stages.aggregate(diary, spectrum, build(config, "cluster"), config.num_batches)
            if subject is not None and Stage.slices in wanted:
                stages.slices(diary, subject, settings)
            if Stage.report in wanted:
                stages.report(diary, settings)
            diary.close()


def _processes(config: DictConfig, settings: dict[str, Any], folder: RunFolder) -> Processes | None:
    """How shards are computed by workers of a cluster; None for threads, which share this process's cores anyway."""
    from pipeline.cluster import Threads

    cluster = build(config, "cluster")
    if isinstance(cluster, Threads):
        return None

    def compute(work: Callable[[int], list[Work]]) -> None:
        from pipeline.cluster.fan_out import fan_out
        from pipeline.worker import compute_shard

        about = (settings, str(folder.path.absolute()))
        fan_out(
            cluster,
            folder.path / ".dask",
            compute_shard,
            lambda num_workers: [(*about, each) for each in work(num_workers)],
        )

    return compute


def as_config(settings: Mapping[str, Any]) -> DictConfig:
    """The config whose resolved settings these are, in a process that Hydra did not start."""
    known = {key: settings[key] for key in Config.__dataclass_fields__ if key in settings}
    return OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(known))  # type: ignore[return-value]


def build(config: DictConfig, group: str) -> Any:
    """The object that a group's options describe.

    What it is handed is what `prepare` has left there.
    """
    options = config[group]
    _locate(group, options._target_)
    return hydra.utils.instantiate(options, _convert_="all")


def prepare(config: DictConfig, wanted: set[Stage]) -> None:
    """Leave in each group the options that its class is to be handed.

    Raises:
        PipelineError: there is a key that nobody reads, or a class that is needed cannot be imported.
    """
    if not HydraConfig.initialized():
        return
    hydra_config: Any = HydraConfig.get()
    given = _given(hydra_config)
    added = [key for key, _ in _parsed(hydra_config.overrides.hydra)]
    check_hydra(OmegaConf.structured(HydraConf), hydra_config, added)
    check_top(config)
    unneeded = {
        "training": Stage.train not in wanted,
        **dict.fromkeys(("model", "data", "criterion", "device"), not wanted & TORCH),
    }
    for group in GROUPS:
        needed = not unneeded.get(group, False)
        target = config[group].get("_target_") if isinstance(config[group], DictConfig) else None
        trim(config, group, given, partial(_locate, group, str(target)) if needed else None)


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


def build_subject(config: DictConfig) -> Any:
    """Model, data and criterion on their device; what the data says of its sizes is put into the config."""
    torch = import_torch()
    from pipeline.data import as_samples
    from pipeline.subject import Subject

    device, dtype = build(config, "device").setup(), getattr(torch, config.dtype.value)
    data = build(config, "data")
    samples = as_samples(data.load())
    with open_dict(config):
        config.data.input_shape = list(samples.input_shape)
        config.data.num_outputs = samples.num_outputs
    torch.manual_seed(config.seed)
    model, criterion = build(config, "model"), build(config, "criterion")
    return Subject.on(device, dtype, model, criterion, samples, getattr(data, "batch_size", None))


def import_torch() -> Any:
    """PyTorch, with what its optimizers and transforms import when they are first used.

    Python looks for garbage whenever so many objects are new, and nothing of this million is: without that search, and
    later without looking at them again, it takes a sixth less time.
    """
    if "torch" not in sys.modules:
        gc.disable()
        import_module("torch._dynamo")
        gc.freeze()
        gc.enable()
    return import_module("torch")


def build_training(config: DictConfig, folder: RunFolder, tracking: Any) -> Any:
    """The training; weights that are named by an MLflow run are copied into the run folder first."""
    path = config.training.get("path")
    if isinstance(path, str) and path.startswith("runs:/"):
        config.training.path = str(tracking.fetch(path, folder.checkpoints / "fetched"))
    return build(config, "training")


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as nested dicts, with every interpolation resolved."""
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, enum_to_str=True)  # type: ignore[assignment]
    return settings


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


def _labels(settings: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The run's name, params and tags in the tracker."""
    hydra_config = HydraConfig.get()
    choices = {
        group: str(choice) for group, choice in hydra_config.runtime.choices.items() if "/" not in group
    }
    told = {key: value for key, value in settings.items() if key != "command"}
    sweep = _sweep()
    name = job_name(sweep, int(hydra_config.job.num)) if sweep else None
    return (
        name or run_name(choices, hydra_config.overrides.task, settings),
        {**flat(told), **choices},  # model=mlp beside model.hidden_sizes=[32]
        {"command": settings.get("command", "")},
    )


def _sweep() -> Path | None:
    hydra_config = HydraConfig.get()
    return Path(hydra_config.sweep.dir).absolute() if hydra_config.mode == RunMode.MULTIRUN else None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """What Hydra calls once for a run, and once for each job of a sweep."""
    hydra_config = HydraConfig.get()
    folder, overrides = RunFolder(Path(hydra_config.runtime.output_dir)), list(hydra_config.overrides.task)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    if sweeping:
        log.info("job %s: %s", hydra_config.job.num, " ".join(overrides))
        if is_finished(folder, overrides):
            log.info("it is finished: taken as it is.")
            return
    try:
        if hydra_config.launcher._target_ == NAME and not sweeping:
            raise PipelineError("hydra/launcher=slurm is for sweeps: add -m (a sweep may have a single job).")
        run(config, folder)
        if sweeping:
            note_finished(folder, overrides)
    except Exception as error:
        if line := explain(error):
            log.error("%s", line)
        else:
            log.exception("unexpected %s: %s (the traceback is in run.log)", type(error).__name__, error)
        error.add_note("told")
        if sweeping or SHOW_TRACEBACKS:
            raise  # the other jobs of a sweep go on, and Hydra ends with status 1
        sys.exit(1)


def main() -> None:
    """The command: mistakes are told in one line, with status 1; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    logging.raiseExceptions = (
        SHOW_TRACEBACKS  # a line that does not reach run.log is no reason for a traceback
    )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would otherwise print in a form of its own
    status, untold = 0, None
    try:
        job()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        status, untold = 1, error
    refused = isinstance(untold, LaunchError)
    sweep = (
        [] if refused else [folder for folder in launched if has_jobs(folder) or (folder / NOTES).exists()]
    )
    if untold and SHOW_TRACEBACKS:
        traceback.print_exception(untold)
    elif untold and not (sweep and _is_a_jobs(untold)):  # the table of a sweep tells what became of its jobs
        print(explain(untold) or f"unexpected {type(untold).__name__}: {untold}", file=sys.stderr)
    for folder in sweep:
        status = conclude(folder) or status
    gc.freeze()  # else Python looks for cycles among all that torch has imported, half a second at the very end
    sys.exit(status)


def _is_a_jobs(error: Exception) -> bool:
    """Whether a job has told it; else it is the launcher's, and keeps jobs from beginning."""
    return isinstance(error, PipelineError) or bool(getattr(error, "__notes__", ()))


def conclude(folder: Path) -> int:
    """Sum up the sweep in a folder; 1 if a job is not finished or the table cannot be made."""
    from pipeline import sweep

    try:
        return 1 if sweep.conclude(folder).unfinished else 0
    except PipelineError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    main()
