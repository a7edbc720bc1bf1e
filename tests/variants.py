"""Every strategy that `conf/strategy/` offers, with sizes of chunks at which it is tested; a new YAML is found here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import OmegaConf

from pipeline.strategy import Strategy

FOLDER = Path(__file__).parents[1] / "conf" / "strategy"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SIZES = (1, 3, 10_000)  # of chunks: one, a ragged number, more than there are


def options(name: str) -> dict[str, Any]:
    return dict(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")))


def strategy(name: str, **changes: Any) -> Strategy:
    return instantiate(options(name), **changes)


class Variant(NamedTuple):
    """A strategy with its own options, or with one of them changed."""

    name: str
    option: str | None = None
    value: int = 0

    @property
    def id(self) -> str:
        return self.name if self.option is None else f"{self.name}-{self.option}={self.value}"

    def build(self) -> Strategy:
        return (
            strategy(self.name) if self.option is None else strategy(self.name, **{self.option: self.value})
        )


SIZE_OPTIONS = [(name, option) for name in NAMES for option in options(name) if option != "_target_"]
VARIANTS = [Variant(name) for name in NAMES] + [
    Variant(name, option, size) for name, option in SIZE_OPTIONS for size in SIZES
]
