"""What a run left behind: all that it found, without what tells of its way there, and what betrays a rewriting."""

import json

import h5py
import numpy as np

from pipeline.system.run_folder import RunFolder


def results(folder):
    """All that a run found so far, by file; times, and HDF5's layout of the files, are left out."""
    run = RunFolder(folder)
    found = {path.name: path.read_bytes() for path in run.checkpoints.glob("*.safetensors")}
    slices = run.slices(0).parent
    for path in [*run.shards.rglob("*.h5"), *run.spectra.glob("*.h5"), *slices.glob("*.h5")]:
        with h5py.File(path) as file:
            attrs = {key: repr(value) for key, value in file.attrs.items()}
            arrays = {}
            file.visititems(lambda name, item, arrays=arrays: arrays.update({name: content(item)}))
        found[str(path.relative_to(folder))] = (attrs, arrays)
    if run.history.exists():
        found["history"] = run.history.read_bytes()
    if run.config.exists():
        found["config"] = run.config.read_text().partition("command:")[0].partition("stages:")[0]
    if run.summary.exists():
        summary = json.loads(run.summary.read_text())
        found["summary"] = {key: value for key, value in summary.items() if not key.startswith("seconds_")}
    return found


def content(item):
    if not isinstance(item, h5py.Dataset):
        return None
    if item.dtype.kind == "O":
        return item.asstr()[()].tolist()
    return item.dtype.str, item.shape, np.ascontiguousarray(item[()]).tobytes()


def differing(one, other):
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def unlike(found, expected):
    """Names of what is there and is not as it is in the end; the curve and the summary may still grow."""
    return [name for name in found if name not in ("history", "summary") and found[name] != expected[name]]


def complete(folder):
    """The inode and time of each file that is the fruit of work and complete: they change if it is made anew."""
    patterns = (
        "checkpoints/step-*.safetensors",
        "shards/step-*/*.h5",
        "spectra/step-*.h5",
        "slices/step-*.h5",
    )
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(paths)
    }


def names(folder):
    """Every file in a folder, but for Hydra's notes."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.startswith(".hydra"))
