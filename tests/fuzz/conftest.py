"""One thread for small nets, and the table of what all nets of a session came to."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzz.outcomes import FAULTS, STRATEGIES
from fuzz.reference import MATRICES

ROWS: list[dict] = []


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def record(record_property):
    """Takes the outcomes of a net into the table, also from another process."""
    return lambda rows: record_property("outcomes", json.dumps(rows))


def pytest_runtest_logreport(report):
    if report.when == "call":
        for name, value in report.user_properties:
            ROWS.extend(json.loads(value) if name == "outcomes" else [])


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    write = terminalreporter.write_line
    if os.environ.get("FUZZ_RESULTS"):
        Path(os.environ["FUZZ_RESULTS"]).write_text(json.dumps(ROWS, indent=0))
    nets = {row["seed"]: row["redrawn"] for row in ROWS}
    left = Counter(reason for redrawn in nets.values() for reason in redrawn)
    if not (len(nets) > 100 or any(row["kind"] in FAULTS for row in ROWS)):
        return
    write(f"{len(nets)} nets; drawn again: {dict(left)}")
    kinds = ("right", "refused", *FAULTS)
    write(f"{'strategy':12}{'matrix':18}" + "".join(f"{kind:>9}" for kind in kinds))
    counts = Counter((row["strategy"], row["matrix"], row["kind"]) for row in ROWS)
    for strategy in STRATEGIES:
        for matrix in MATRICES:
            row = [counts[strategy, matrix, kind] for kind in kinds]
            if any(row):
                write(f"{strategy:12}{matrix:18}" + "".join(f"{count:9}" for count in row))
    for kind in ("refused", *FAULTS):
        for reason, count in Counter(row["reason"] for row in ROWS if row["kind"] == kind).most_common(40):
            write(f"{kind:8} {count:6}  {reason}")
