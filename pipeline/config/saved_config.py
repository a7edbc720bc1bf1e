"""The settings that a run has left in its folder, as a report tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config.schema import ABOUT, settings_of
from pipeline.system import RunFolder


@dataclass(frozen=True)
class SavedConfig:
    """The settings that a run has left in its folder, as a report tells them; none, if no run did."""

    settings: Mapping[str, Any]

    @staticmethod
    def of(folder: RunFolder) -> SavedConfig:
        """Raises: as `settings_of`."""
        return SavedConfig(settings_of(folder))

    @property
    def command(self) -> str:
        """What began the run; empty if it is not known."""
        return str(self.settings.get("command", ""))

    @property
    def yaml(self) -> str:
        """All but the command and the environments."""
        rest = {key: value for key, value in self.settings.items() if key not in ABOUT}
        return yaml.safe_dump(rest, sort_keys=False) if rest else ""

    @property
    def storage(self) -> tuple[str, dict[str, Any]]:
        """The class that says how matrices lie on the disk, "" where none is told, and its options."""
        options = dict(self.settings.get("storage") or {})
        return str(options.pop("_target_", "")), options

    @property
    def environments(self) -> list[dict[str, str]]:
        """Commit, machine and threads of each start that differed; none in a folder of a version before 0.3."""
        return [dict(each) for each in self.settings.get("environments", [])]

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")

    @property
    def choices(self) -> dict[str, str]:
        """The class that was chosen in each group, without its package: {"model": "MLP", ...}."""
        return {
            group: str(options["_target_"]).rpartition(".")[2]
            for group, options in self.settings.items()
            if isinstance(options, Mapping) and "_target_" in options
        }

    @property
    def training(self) -> tuple[str, Mapping[str, Any]]:
        """The class of the training, and its options; empty if they are not known."""
        return self.choices.get("training", ""), self.settings.get("training") or {}
