"""One description of a run, built once from its config."""

from typing import TYPE_CHECKING, Any

from pipeline.experiment.instantiate import (
    NEED_MODEL,
    as_config,
    build,
    build_experiment,
    build_training,
    check_results,
    law_settings,
    prepare,
    resolved_settings,
)

if TYPE_CHECKING:
    from pipeline.experiment.experiment import Experiment, MatrixSpec


def __getattr__(name: str) -> Any:
    """`Experiment` and `MatrixSpec`, imported when first used: they need torch, and checking a config needs none."""
    if name not in {"Experiment", "MatrixSpec"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.experiment import experiment

    return getattr(experiment, name)
