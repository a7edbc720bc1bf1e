"""Files that appear whole, the run folder, its status, the terminal, memory and disk, SLURM's commands."""

from pipeline.system import slurm
from pipeline.system.evidence import (
    CHECKSUMS,
    Evidence,
    OtherExperiment,
    check_evidence,
    difference,
    shared_evidence,
)
from pipeline.system.file_lock import locked
from pipeline.system.provenance import git_commit, machine, versions
from pipeline.system.resources import (
    available_memory,
    check_disk,
    check_memory,
    format_bytes,
    format_seconds,
    num_cores,
)
from pipeline.system.run_folder import (
    RunFolder,
    discard,
    fault_behind,
    flush,
    is_of_shards,
    partial_of,
    refuse_file,
    remedy,
    replacing,
    set_aside,
    unreadable,
    write_atomically,
)
from pipeline.system.status import (
    CANCELLED,
    FAILED,
    FINISHED,
    KILLED,
    Status,
    is_finished,
    note_finished,
    recorded_status,
    status_of,
    write_status,
)
from pipeline.system.terminal import (
    LOG_ONLY,
    prepare_terminal,
    print_line,
    print_rows,
    product_counter,
    progress,
    spelled,
    table,
)
from pipeline.system.version import __version__
