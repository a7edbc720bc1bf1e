"""The benchmarks: peers and strategies compute the same matrix, and the scripts end with tables and a figure."""

import json
import sys

import pytest
import torch
from support.command import PROJECT
from support.command import script as run_script

from pipeline.compute.dense import hessian

sys.path.insert(0, str(PROJECT / "scripts"))
import benchmark_figure
import benchmark_nets
import benchmark_peers
import benchmark_storage


def script(*arguments):
    done = run_script(*arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("matrix", benchmark_peers.PEERS)
@pytest.mark.parametrize("net", ["line", "softmax"])
def test_peers_compute_the_same_matrix(net, matrix):
    problem = benchmark_nets.NETS[net]().to(torch.device("cpu"), torch.float64)
    expected = hessian(problem.model, problem.criterion, *problem.batch, strategy="triangular", matrix=matrix)
    num_right = 0
    for name, peer in benchmark_peers.PEERS[matrix].items():
        try:
            found = peer(problem, 3)()
        except (ImportError, benchmark_peers.NotApplicable):
            continue
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max(), name
        num_right += 1
    assert num_right >= 1


@pytest.mark.parametrize("name", benchmark_nets.NETS)
def test_nets_are_as_large_as_they_say(name):
    problem = benchmark_nets.problem_of(name)
    sizes = {
        "line": (10, 16), "thread": (49, 100), "softmax": (90, 64), "tiny": (610, 64), "deep": (370, 64),
        "main": (2410, 256), "mlp": (7510, 128), "conv": (6754, 128), "residual": (7370, 128),
        "block": (7882, 128), "wide_block": (27210, 32), "large": (20035, 256),
    }  # fmt: skip
    assert (problem.num_parameters, problem.batch.num_samples) == sizes[name]
    assert problem.criterion(problem.model(problem.batch.inputs), problem.batch.targets).ndim == 0


def test_a_net_by_its_width():
    problem = benchmark_nets.problem_of("64-12-10@9")
    assert (problem.num_parameters, problem.batch.num_samples) == (910, 9)
    with pytest.raises(SystemExit, match="'64-12' is unknown"):
        benchmark_nets.problem_of("64-12")


@pytest.mark.slow
def test_the_script_ends_with_a_table_and_a_figure(tmp_path, monkeypatch):
    figures, picture = tmp_path / "cost.json", tmp_path / "cost.png"
    earlier = {"P": 160, "N": 5, "gemm": 1e9, "write": 1e9, "methods": {"hvp": {"times": [0.1]}}}
    figures.write_text(json.dumps({"64-2-10@5": earlier}))
    methods = "khatri_rao,khatri_rao (blocks),chunked jvp(grad)"
    tiny = ("--rounds", "1", "--side", "256", "--start", "fork")
    options = ("--nets", "64-4-10@5", "--methods", methods, *tiny, "--json", figures)
    told = script("scripts/benchmark.py", *options)
    assert "64-4-10 tanh, cross-entropy: P = 310, N = 5" in told
    before, net = json.loads(figures.read_text()).values()
    assert before == earlier
    assert net["P"] == 310
    assert all(len(row["times"]) == 1 and row["times"][0] > 0 for row in net["methods"].values())
    assert net["methods"]["khatri_rao"]["error"] < 1e-5
    monkeypatch.setattr(sys, "argv", ["benchmark_figure.py", str(figures), str(picture)])
    benchmark_figure.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_check_on_a_gpu_runs_without_one():
    options = (
        "--device",
        "cpu",
        "--cases",
        "thread",
        "--real-nets",
        "forward-of-dict",
        "--sizes",
        "64-4-10@5",
    )
    told = script("scripts/gpu_check.py", *options, "--rows", "300", "--width", "16", "--side", "256")
    assert told.count(" 0 wrong") == 3
    assert "operators: 2 right, 0 refused" in told
    assert "operator, P = 13,002, " in told
    assert " 0 right" not in told
    assert "1 nets: 2 right" in told
    assert "64-4-10@5: P = 310, N = 5: limits: products" in told
    assert "eigenvalues, P = 300: cpu" in told


@pytest.mark.slow
def test_a_real_net_has_its_row(tmp_path):
    file = tmp_path / "figures.json"
    options = ("--nets", "forward-of-dict", "--samples", "4", "--rounds", "1", "--json", file)
    row = script("scripts/benchmark_zoo.py", *options).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["forward-of-dict", "1,505", "4"]
    assert 0 <= float(cells[3]) < 1e-4
    assert all(float(cells[i]) > 0 for i in (4, 5, 7, 8))
    methods = json.loads(file.read_text())["forward-of-dict"]["methods"]
    assert set(methods) >= {"verified", "unverified", "torch.func.hessian", "chunked jvp(grad)"}


@pytest.mark.slow
def test_every_figure_of_storage_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_storage, "PROBE", 8 * 2**20)
    monkeypatch.chdir(PROJECT)
    measured = benchmark_storage.measure(tmp_path, hidden=2)
    assert "the Hessian of P = 1,600, end to end" in measured
    assert len(measured) == 9
    assert not list(tmp_path.glob("probe*"))
