"""Whether jobs on several machines can share a store: SQLite's locks fail on a network disk, silently."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.tracking import store
from pipeline.tracking.error_messages import database, is_server

MOUNTS = Path("/proc/self/mountinfo")  # see proc(5)
KINDS = (
    "9p afs beegfs ceph cifs coda fhgfs gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3 smbfs "
    "wekafs fuse.ceph fuse.glusterfs fuse.juicefs fuse.s3fs fuse.sshfs"
)
NETWORK = frozenset(KINDS.split())


def network_disk(path: Path) -> str | None:
    """The kind of network file system that `path` is on, or will be, such as `nfs4`; None for a local disk."""
    there = path.absolute().resolve()
    kind, depth = "", -1
    try:
        lines = MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # of two on one point the later one counts
        if there.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = after.split()[0], len(point.parts)
    return kind if kind in NETWORK else None


def check_shared(uri: str | None, root: str, hosts: Collection[str], here: str) -> None:
    """Refuse a SQLite store for jobs on `hosts` that is not a file on the disk of the one machine they run on.

    Raises:
        PipelineError: what is wrong with it, and the server that takes its place.
    """
    address = store.resolve(uri, root)
    if is_server(address):
        return
    remedy = "start `mlflow server` where its disk is local and give tracking.uri=http://HOST:PORT, or tracking=none."
    path = database(address)
    if kind := network_disk(path):
        raise PipelineError(f"{path} is on a network disk ({kind}), where SQLite's locks fail: {remedy}")
    others = sorted({host.partition(".")[0] for host in hosts} - {here.partition(".")[0]})
    if others:
        more = ", …" if len(others) > 3 else ""
        raise PipelineError(
            f"{path} is a file of {here}, and SLURM may start jobs on {', '.join(others[:3])}{more}: {remedy}"
        )
