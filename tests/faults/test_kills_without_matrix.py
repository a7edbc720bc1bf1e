"""SIGKILL at random moments of a run that computes no matrix; the same command again ends with the same bits."""

import os
import random
import time

from support.command import SMALL, run, start, succeed
from support.outcome import results, unlike

NUM_KILLS = int(os.environ.get("FAULTS_KILLS", "100")) // 5
LONGER = (
    *SMALL,
    "strategy=matrix_free",
    "strategy.each_batch=true",
    "data.num_samples=600",
    "data.batch_size=200",
    "model.hidden_sizes=[60,60]",
    "spectrum=slq",
    "spectrum.tolerance=1e-8",
    "training.num_steps=30",
    "checkpoint_steps=[0]",
)


def test_random_kills_of_a_run_without_matrices(tmp_path):
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nrepeat these moments with KILL_SEED={seed}")
    chance = random.Random(seed)
    began = time.monotonic()
    succeed(tmp_path / "undisturbed", *LONGER, fresh=True)
    seconds, expected = time.monotonic() - began, results(tmp_path / "undisturbed")
    num_kills, num_runs = 0, 0
    while num_kills < NUM_KILLS:
        folder = tmp_path / f"run-{num_runs}"
        num_runs += 1
        for _ in range(3):
            with start(folder, *LONGER) as process:
                time.sleep(chance.uniform(0.2, 1.0) * seconds)
                num_kills += process.poll() is None
                process.kill()
            assert not unlike(results(folder), expected), f"KILL_SEED={seed}"
        done = run(folder, *LONGER, fresh=True)
        assert done.returncode == 0, done.stdout
        assert results(folder).keys() == expected.keys()
        assert not unlike(results(folder), expected), f"KILL_SEED={seed}"
        assert not list(folder.glob("spectra/.step-*"))
    print(f"{num_kills} kills in {num_runs} runs of {seconds:.1f} s")
