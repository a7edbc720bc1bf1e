from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import PipelineError
from pipeline.objective import checkpoints
from pipeline.objective.checkpoints import load_state, load_torch, load_weights, save_weights


class Tied(nn.Module):
    """A tied weight, a buffer with an infinity in it, and a count."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_back_bit_for_bit(tmp_path, dtype):
    model, other = Tied().to(dtype), Tied().to(dtype)
    save_weights(tmp_path / "a.safetensors", model)
    load_weights(tmp_path / "a.safetensors", other)
    assert_equal(weights(other), weights(model))
    assert other.last.weight is other.first.weight
    assert_equal(
        dict(sorted(load_file(tmp_path / "a.safetensors").items())), dict(sorted(weights(model).items()))
    )


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
def test_torch_files_are_read_and_unwrapped(tmp_path, wrap):
    model, other = Tied(), Tied()
    torch.save(wrap(model.state_dict()), tmp_path / "a.pt")
    load_weights(tmp_path / "a.pt", other)
    assert_equal(weights(other), weights(model))


def test_a_tied_weight_needs_one_of_its_names(tmp_path):
    model, other = Tied(), Tied()
    state = weights(model)
    del state["first.weight"]
    save_file(state, tmp_path / "a.safetensors")
    load_weights(tmp_path / "a.safetensors", other)
    assert_equal(weights(other), weights(model))


def change(name, value=None):
    def changed(state):
        state[name] = value if value is not None else torch.zeros(2, 2)
        return state

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "first.bias"},
            r"does not fit Tied: first.bias is missing\.$",
        ),
        (change("fc.weight"), r"does not fit Tied: fc.weight is unexpected\.$"),
        (change("first.bias"), r"first.bias has shape \(2, 2\), not \(3,\)\.$"),
        (change("last.weight", torch.zeros(3, 3)), r"first.weight differs from last.weight, the same weight"),
        (
            change("first.bias", torch.tensor([0, np.nan, 0])),
            r"are NaN or infinite in first.bias: give another file",
        ),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, r"(; .* is missing){4} and \d+ more\.$"),
        (lambda s: {}, r"first.weight is missing; .* and \d more"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_what_does_not_fit_is_named_in_one_line_and_changes_nothing(tmp_path, name, changed, message):
    state, model = changed(weights(Tied())), Tied()
    before = weights(model)
    save_file(state, tmp_path / name) if name.endswith("s") else torch.save(state, tmp_path / name)
    with pytest.raises(PipelineError, match=message) as error:
        load_weights(tmp_path / name, model)
    assert "\n" not in str(error.value)
    assert_equal(weights(model), before)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_damaged_files_get_one_line(tmp_path, name):
    path = tmp_path / name
    state = weights(Tied())
    save_file(state, path) if name.endswith("s") else torch.save(state, path)
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:40], content[: len(content) // 2], content[:-1], b"\xff" * 99):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"cannot be read") as error:
            load_state(path)
        assert "\n" not in str(error.value)


def test_files_with_something_else_get_one_line(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(Tied(), path)
    with pytest.raises(PipelineError, match=r"a.pt holds objects of [\w.]*Tied, and reading these"):
        load_state(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(PipelineError, match=r"a.pt holds no state dict: save model.state_dict\(\)"):
        load_state(path)
    with pytest.raises(PipelineError, match=r"b.pt: no such file of weights"):
        load_state(tmp_path / "b.pt")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = Tied()
    with torch.no_grad():
        model.last.bias[1] = torch.inf
    with pytest.raises(PipelineError, match=r"NaN or infinite in last.bias: lower training.learning_rate"):
        save_weights(tmp_path / "a.safetensors", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_the_weights_is_found(tmp_path, seed):
    path, rng = tmp_path / "step-000020.safetensors", np.random.default_rng(seed)
    save_weights(path, nn.Linear(3, 4))
    content = bytearray(path.read_bytes())
    content[-1 - int(rng.integers(64))] ^= 1 << int(rng.integers(8))  # of 16 weights of 4 bytes
    path.write_bytes(content)
    with pytest.raises(
        PipelineError, match=r"step-000020\.safetensors is damaged .*: delete it and train again"
    ):
        load_state(path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to open file </a.safetensors> in read-only mode: Input/output error (5)"),
        SafetensorError("Error while reading: Input/output error (os error 5)"),
        OSError(5, "Input/output error"),
    ],
)
def test_a_fault_of_the_disk_says_nothing_of_the_file(tmp_path, monkeypatch, error):
    save_weights(tmp_path / "a.safetensors", Tied())

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints, "safe_open", fail)
    with pytest.raises(PipelineError, match=r"could not be read \(Input/output error\): look after the disk"):
        load_state(tmp_path / "a.safetensors")


def test_a_torch_file_that_the_disk_does_not_give():
    with pytest.raises(PipelineError, match=r"could not be read \(Input/output error\): look after the disk"):
        load_torch(Path("/proc/self/mem"), "give another file")


def test_memory_that_runs_out_says_nothing_of_the_file(tmp_path, monkeypatch):
    save_weights(tmp_path / "a.safetensors", Tied())

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(checkpoints, "safe_open", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_state(tmp_path / "a.safetensors")
