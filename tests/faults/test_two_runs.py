"""Several processes on one folder at the same time, and a sweep of which a job fails."""

import json
import subprocess

from support.command import SMALL, command, environment, start
from support.outcome import complete, differing, results

OPTIONS = (*SMALL, "stages=[train,compute,aggregate]")
NUM_PROCESSES = 3


def test_runs_that_are_started_together(tmp_path):
    """One has the folder; the others go when it has it, or come after it and find all done."""
    folder = tmp_path / "run"
    together = [start(folder, *OPTIONS) for _ in range(NUM_PROCESSES)]
    outputs = [process.communicate(timeout=300)[0] for process in together]
    codes = [process.returncode for process in together]
    assert 0 in codes, outputs
    for code, output in zip(codes, outputs, strict=True):
        assert code in (0, 1), output
        if code == 1:
            assert output.startswith(
                f"another run is at work in {folder}: wait for it to end, or choose another"
            ), output
            assert len(output.splitlines()) == 1
    alone = tmp_path / "alone"
    subprocess.run(
        command(alone, *OPTIONS), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, check=True
    )
    assert differing(results(folder), results(alone)) == []
    assert complete(folder).keys() == complete(alone).keys()
    assert json.loads((folder / "summary.json").read_text())["num_batches"] == 3
