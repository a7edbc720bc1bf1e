"""`python -m pipeline.shards verify FOLDER`: is every tile of every shard what was written?"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DamagedFile, NotAShard, PipelineError
from pipeline.shards.shard import open_shard
from pipeline.system import RunFolder, progress, set_aside


def damages(paths: Sequence[Path]) -> list[DamagedFile | NotAShard]:
    """Read all of each shard, and give what is wrong with those that are damaged, or are none.

    Raises:
        PipelineError: a file cannot be read.
    """
    found: list[DamagedFile | NotAShard] = []
    for path in progress(paths, "shards"):
        try:
            deque(open_shard(path).tiles(), maxlen=0)
        except (DamagedFile, NotAShard) as fault:
            found.append(fault)
    return found


def verify(folder: Path, only_look: bool = False) -> list[DamagedFile | NotAShard]:
    """What is wrong with the shards of a run folder, of a folder of these, or with one file.

    In a run folder damaged shards are set aside, unless only_look, so that the next run makes them again. Files of
    somebody else's stay where they are.

    Raises:
        PipelineError: there are no shards, a file cannot be read, or another run is at work in the folder.
    """
    paths = [folder] if folder.is_file() else sorted(folder.glob("**/step-*/*.h5"))
    if not paths:
        raise PipelineError(f"{folder} holds no shards: give a run folder, or a shard.")
    run = RunFolder(folder)
    if only_look or not run.shards.is_dir():
        return damages(paths)
    with run.lock():
        return [set_aside(each) if isinstance(each, DamagedFile) else each for each in damages(paths)]


def main() -> None:
    """The command; status 1 where anything is damaged."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.shards", description=__doc__)
    parser.add_argument("command", choices=["verify"])
    parser.add_argument("folder", type=Path, help="a run folder, a folder of run folders, or a shard")
    parser.add_argument("--only-look", action="store_true", help="do not set damaged shards of a run aside")
    options = parser.parse_args()
    try:
        found = verify(options.folder, options.only_look)
    except PipelineError as error:
        sys.exit(str(error))
    if found:
        sys.exit("\n".join(map(str, found)))
    print(f"{options.folder}: every tile is what was written.")
