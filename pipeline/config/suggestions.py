"""The nearest option that exists, for one that does not: by spelling, by initials, or by its name in other programs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
RUN_FOLDER, STEPS, WEIGHTS = (
    "hydra.run.dir=FOLDER",
    "training.num_steps",
    "training=pretrained training.path=FILE",
)
OTHER_NAMES = {  # what other programs call it
    **dict.fromkeys(("output_dir", "out_dir", "outdir", "run_dir", "save_dir", "log_dir", "output", "out"), RUN_FOLDER),
    **dict.fromkeys(("folder", "dir", "workdir", "work_dir", "run_folder"), RUN_FOLDER),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "max_steps", "steps", "iterations", "n_steps"), STEPS),
    **dict.fromkeys(("checkpoint", "ckpt", "ckpt_path", "checkpoint_path", "weights", "pretrained"), WEIGHTS),
    **dict.fromkeys(("optimizer", "optim", "trainer"), "training"),
    **dict.fromkeys(("loss", "loss_fn", "loss_function"), "criterion"),
    **dict.fromkeys(("dataset", "datamodule"), "data"),
    **dict.fromkeys(("net", "network", "arch", "architecture"), "model"),
    **dict.fromkeys(("gpu", "cuda", "accelerator"), "device"),
    **dict.fromkeys(("k", "top_k", "topk", "num_eigenvalues", "neigs"), "spectrum.num_top"),
    **dict.fromkeys(("method", "algorithm", "backend"), "strategy"),
    **dict.fromkeys(("precision", "float"), "dtype"),
    **dict.fromkeys(("logger", "mlflow", "wandb"), "tracking"),
    **dict.fromkeys(("params", "layers"), "parameters"),
    "batch_size": "data.batch_size, or training.batch_size",
    "random_seed": "seed",
}  # fmt: skip


def near(name: str, names: Sequence[str], likeness: float = 0.6) -> str:
    """The end of a line about a name that does not exist: the nearest one that does."""
    close = difflib.get_close_matches(name, names, 1, likeness) or [
        each for each in names if name == _initials(each)
    ]
    close = close or [each for each in names if OTHER_NAMES.get(name, "").partition(".")[2] == each]
    return f", did you mean {close[0]}?" if close else "."


def _initials(name: str) -> str:
    """Those of the words of a name that has several: lr for learning_rate."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


@cache
def group_names() -> frozenset[str]:
    return frozenset(path.parent.name for path in CONF.glob("*/*.yaml"))


def option_names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def top_names() -> frozenset[str]:
    """The groups, and the keys of no group."""
    keys = {str(key) for key in OmegaConf.load(CONF / "config.yaml")} - {"defaults", "hydra"}
    return group_names() | keys


def unknown(key: str, beside: Iterable[str] = ()) -> str:
    """About a key that does not exist, with the dots or slashes of where it was given.

    beside: the keys that there are in its place.
    """
    if "/" in key:
        return f"{key}: there is no such group{near(key, ['hydra/launcher', 'hydra/sweeper', 'hydra/job_logging'])}"
    group, _, name = key.rpartition(".")
    if not group:
        return unknown_top(key)
    known = sorted(each for each in beside if not each.startswith("_"))
    owners = [option for option in option_names(group) if name in _keys(group, option)]
    if owners:
        return f"{key}: the {group} that was chosen has no such option, {group}={' or '.join(owners)} has it."
    like = near(name, known, likeness=0.55)
    if like == ".":  # the options of the group that were not chosen
        like = near(name, sorted({each for option in option_names(group) for each in _keys(group, option)}))
    if like == "." and not group.startswith("hydra"):
        like = f"; one that a class of your own takes is given as +{key}=VALUE."
    return f"{key}: there is no such option{like}"


def unknown_top(key: str) -> str:
    """About a key beside those of the config: the nearest of its keys, or of those in its groups."""
    leaves: dict[str, str] = {}
    initials: dict[str, str] = {}
    for group in sorted(group_names() - {"experiment"}, key=lambda group: (group != "training", group)):
        for name in (name for option in option_names(group) for name in _keys(group, option)):
            leaves.setdefault(name, f"{group}.{name}")
            initials.setdefault(_initials(name), f"{group}.{name}")
    if key in OTHER_NAMES:
        return f"{key}: there is no such option, did you mean {OTHER_NAMES[key]}?"
    close = difflib.get_close_matches(key, [*sorted(top_names()), *leaves], n=1)
    found = leaves.get(key) or next((name if name in top_names() else leaves[name] for name in close), None)
    if found := found or initials.get(key):
        return f"{key}: there is no such option, did you mean {found}?"
    return f"{key}: there is no such option: --help lists them."


def unknown_word(word: str) -> str:
    """About an argument that is neither a flag nor KEY=VALUE."""
    choices = [f"{group}={word}" for group in sorted(group_names()) if word in option_names(group)]
    like = f", such as {word}=VALUE" if word in top_names() else ""
    like = f", did you mean {' or '.join(choices)}?" if choices else f"{like}; --help lists them."
    return f"{word}: options are given as KEY=VALUE{like}"


@cache
def _keys(group: str, option: str) -> tuple[str, ...]:
    path = CONF / group / f"{option}.yaml"
    return tuple(key for key in map(str, OmegaConf.load(path)) if not key.startswith("_"))
