"""Every storage format beside HDF5: that of `npy_storage`, and those of options in `conf/storage/`; a new YAML is found
here.
"""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf
from support.npy_storage import NpyStore

from pipeline.shards import HDF5, TileStore

FOLDER = Path(__file__).parents[2] / "conf" / "storage"
OF_OPTIONS: dict[str, TileStore] = {
    path.stem: store
    for path in sorted(FOLDER.glob("*.yaml"))
    if (store := instantiate(OmegaConf.load(path)).store) != HDF5
}
STORES: dict[str, TileStore] = {"npy": NpyStore(), **OF_OPTIONS}
OVERRIDES = ["storage._target_=npy_storage.Npy", *(f"storage={name}" for name in OF_OPTIONS)]
