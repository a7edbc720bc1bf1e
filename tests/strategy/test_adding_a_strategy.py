"""A strategy that is not exact to rounding, with options that are no counts, is added in three files."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import central_differences
from support.central_differences import CentralDifferences
from support.command import PROJECT, SMALL, environment, fail, succeed
from torch import Tensor, nn

from pipeline.compute.dense import hessian
from pipeline.errors import PipelineError
from pipeline.objective import certificate
from pipeline.shards.shard import open_shard

YAML = """# Central differences of the gradient.
_target_: pipeline.strategy.CentralDifferences
step: 1e0  # in units of the third root of the machine epsilon
extrapolate: false
"""
OWN = (
    *SMALL,
    "num_batches=1",
    "stages=[train,compute]",
    "strategy._target_=central_differences.CentralDifferences",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the strategy added as CONTRIBUTING says."""
    for name in ("pipeline", "conf", "tests"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    group = tmp_path / "pipeline" / "strategy"
    shutil.copy(central_differences.__file__, group)
    registry = group / "__init__.py"
    text = registry.read_text().replace(
        "STRATEGIES: dict[str, type[Strategy]] = {",
        "from pipeline.strategy.central_differences import CentralDifferences\n\n"
        'STRATEGIES: dict[str, type[Strategy]] = {\n    "central_differences": CentralDifferences,',
    )
    registry.write_text(text)
    (tmp_path / "conf" / "strategy" / "central_differences.yaml").write_text(YAML)
    return tmp_path


def outcome_of_tests(project: Path, *selection: str) -> tuple[int, int]:
    """How many tests pass and fail of those that walk `conf/` and name the strategy."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *selection]
    done = subprocess.run(
        command, cwd=project, env=environment() | {"PYTHONPATH": str(project)}, capture_output=True, text=True
    )
    passed, failed = (
        int(number[1]) if (number := re.search(rf"(\d+) {word}", done.stdout)) else 0
        for word in ("passed", "failed")
    )
    assert passed + failed > 0, done.stdout + done.stderr
    return passed, failed


def test_the_tests_that_walk_conf_hold_it_to_its_own_tolerance(project: Path) -> None:
    files = [
        "tests/strategy/test_options.py",
        "tests/strategy/test_closed_forms.py",
        "tests/config/test_groups.py",
        "tests/test_architecture.py",
    ]
    chosen = ["-vrN", *files, "-k", "central_differences or every_strategy"]
    passed, failed = outcome_of_tests(project, *chosen)
    assert (passed >= 18, failed) == (True, 0)
    source = project / "pipeline" / "strategy" / "central_differences.py"
    source.write_text(source.read_text().replace("return 100 * (", "return 1e-6 * ("))
    assert outcome_of_tests(project, *chosen)[1] >= 5


def net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(7, 3).double(), torch.randint(2, (7,))


def by(strategy: CentralDifferences, **options: torch.dtype | bool) -> Tensor:
    model, x, y = net()
    return hessian(model, nn.CrossEntropyLoss(), x, y, strategy, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_accepts_it_at_its_tolerance_and_says_so(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    certificate.log_declared.cache_clear()
    model, x, y = net()
    exact = hessian(model, nn.CrossEntropyLoss(), x, y, "autograd")
    with caplog.at_level(logging.INFO):
        found = by(CentralDifferences(), dtype=dtype)
    declared = CentralDifferences().tolerance(dtype)
    assert 0 < (found - exact).norm() / exact.norm() < declared
    assert f"allows the error {declared:.2g} that it declares" in caplog.text


def test_one_that_is_worse_than_it_declares_is_refused() -> None:
    class Boastful(CentralDifferences):
        def tolerance(self, dtype: torch.dtype) -> float:
            return 1e-9

    with pytest.raises(
        PipelineError, match=r"1e-09 of it for a strategy that is not exact to rounding\): choose"
    ):
        by(Boastful(step=300.0))
    assert by(Boastful(step=300.0, extrapolate=True)).isfinite().all()


def test_one_that_declares_too_much_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"declares an error of \S+ of the matrix.*or verify=False takes"):
        by(CentralDifferences(step=1e4))
    assert by(CentralDifferences(step=1e4), verify=False).isfinite().all()


def test_a_run_takes_it_from_elsewhere_and_its_shards_say_what_it_declares(tmp_path: Path) -> None:
    elsewhere = Path(central_differences.__file__).parent
    lines = succeed(tmp_path / "run", *OWN, "+strategy.step=0.5", paths=[elsewhere])
    declared = CentralDifferences(0.5).tolerance(torch.float64)
    assert any(f"allows the error {declared:.2g} that it declares" in line for line in lines)
    [path] = (tmp_path / "run").rglob("batch-*.h5")
    attrs = open_shard(path).attrs
    assert attrs["strategy_tolerance"] == declared
    assert declared < attrs["probe_tolerance"] < 1e-6
    assert attrs["probe_error"] < declared


def test_a_run_that_declares_too_much_names_verify(tmp_path: Path) -> None:
    elsewhere = Path(central_differences.__file__).parent
    options = (*OWN, "+strategy.step=1e4")
    line = fail(tmp_path / "run", *options, paths=[elsewhere])
    assert "declares an error of" in line
    assert line.endswith("or verify=warn stores the matrix as it is.")
    succeed(tmp_path / "run", *options, "verify=warn", paths=[elsewhere])
