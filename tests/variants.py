"""Every strategy that `conf/strategy/` offers, with the chunk sizes at which it is tested: a new YAML is found here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import OmegaConf
from pipeline.strategy import Strategy

FOLDER = Path(__file__).parents[1] / "conf" / "strategy"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CHUNK_SIZES = (1, 3, 10_000)  # one, a ragged number, more than there are


def options(name: str) -> dict[str, Any]:
    return dict(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")))


def strategy(name: str, **changes: Any) -> Strategy:
    return instantiate(options(name), **changes)


class Variant(NamedTuple):
    """A strategy with its own chunk size, or with another one."""

    name: str
    chunk_size: int | None = None

    @property
    def id(self) -> str:
        return self.name if self.chunk_size is None else f"{self.name}-{self.chunk_size}"

    def build(self) -> Strategy:
        return (
            strategy(self.name)
            if self.chunk_size is None
            else strategy(self.name, chunk_size=self.chunk_size)
        )


VARIANTS = [Variant(name) for name in NAMES] + [
    Variant(name, size) for name in NAMES if "chunk_size" in options(name) for size in CHUNK_SIZES
]
