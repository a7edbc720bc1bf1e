"""What a run left behind, from Python: `pipeline.open_run`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pipeline.config import SavedConfig, is_config
from pipeline.errors import PipelineError
from pipeline.results.law_file import LawFile
from pipeline.results.quantities import QUANTITIES
from pipeline.results.spectra_file import SpectraFile
from pipeline.shards import HDF5, Shard, TileStore, open_shard
from pipeline.system import RunFolder, refuse_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Run:
    """A finished or unfinished run folder, read as it is asked for."""

    folder: RunFolder

    def __repr__(self) -> str:
        steps = self.folder.shard_steps()
        num_shards = sum(len(self.folder.shard_paths(step)) for step in steps)
        spectra = ", ".join(map(str, self.folder.spectrum_steps())) or "none"
        return (
            f"Run({self.folder.path}: {num_shards} shards of {len(steps)} steps, spectra of steps {spectra})"
        )

    @cached_property
    def shards(self) -> dict[int, list[Shard]]:
        """The shards of each step, in batch order."""
        return {
            step: [open_shard(path, store_of(self.folder)) for path in self.folder.shard_paths(step)]
            for step in self.folder.shard_steps()
        }

    @cached_property
    def spectra(self) -> dict[int, SpectraFile]:
        """The spectra file of each step: `.mean.eigenvalues`, `.numbers["trace"]`, and so on."""
        return {step: SpectraFile.read(self.folder.spectrum(step)) for step in self.folder.spectrum_steps()}

    @cached_property
    def law(self) -> LawFile | None:
        """The law that was measured, with its verdict: `.law.outcome.held`; None where the run has none."""
        return LawFile.read(self.folder.law) if self.folder.law.exists() else None

    @property
    def table(self) -> pd.DataFrame:
        """A row for each step that has spectra: its headline numbers, those of the report first."""
        import pandas as pd  # slow to import, and few need it

        rows = {step: file.numbers for step, file in self.spectra.items()}
        keys = dict.fromkeys([*QUANTITIES, *(key for row in rows.values() for key in row)])
        known = [key for key in keys if any(key in row for row in rows.values())]
        index = pd.Index(list(rows), name="step")
        return pd.DataFrame([{key: row.get(key) for key in known} for row in rows.values()], index, known)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The headline numbers of the last step; empty before the run has aggregated."""
        path = self.folder.summary
        try:
            summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            return dict(summary)
        except (TypeError, ValueError) as error:
            raise PipelineError(
                f"{path} is damaged ({error}): delete it and run the stage report again."
            ) from error


def store_of(folder: RunFolder) -> TileStore:
    """The storage format of a run's shards, by the option `storage` in its config.yaml; HDF5 where no class is named.

    An option of this package that is not there is one of another version, which kept shards in HDF5.

    Raises:
        PipelineError: the option is a class of somebody's own that cannot be imported here.
    """
    target, options = SavedConfig.of(folder).storage
    if not target:
        return HDF5
    try:
        option = resolve_name(target)
        if not isinstance(option, type):  # a function is not called here, where a folder is only read
            return HDF5
        if not hasattr(option, "store"):
            raise ValueError(f"{target} is no class with a store")
        store: TileStore = option(**options).store
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        if target.startswith("pipeline."):
            return HDF5
        raise PipelineError(
            f"{folder.config} has storage._target_={target}, which cannot be used ({error}): "
            "check that its folder is on PYTHONPATH."
        ) from error
    return store


def open_run(folder: str | Path) -> Run:
    """Open a run folder: `.shards`, `.spectra`, `.law`, `.summary`.

    Raises:
        PipelineError: there is no such folder, or no run has written to it.
    """
    run = RunFolder(Path(folder))
    refuse_file(run.path, "a run folder")
    if not any(path.exists() for path in (run.shards, run.spectra, run.law)) and not is_config(run.config):
        raise PipelineError(f"{folder} is not a run folder: it has neither config.yaml nor shards.")
    return Run(run)
