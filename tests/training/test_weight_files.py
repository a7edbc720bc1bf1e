"""Weights that others wrote: Lightning, DataParallel, torch.compile, a Trainer of Hugging Face."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import PipelineError
from pipeline.training import Pretrained


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


class Config:
    pass


torch.manual_seed(0)
MODEL = Tied()
STATE = MODEL.state_dict()


def under(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


def prepared(path, prefix=None, model=None):
    """A model with the weights of the file."""
    model = model or Tied()
    Pretrained(str(path), prefix).prepare(model)
    return model


def assert_same(model, other=MODEL):
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


CHECKPOINTS = {
    "lightning": {
        "epoch": 1,
        "state_dict": under("model."),
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    },
    "lightning with a loss that has weights": {"state_dict": {**under("net."), "loss.weight": torch.ones(2)}},
    "data parallel": under("module."),
    "compiled": under("_orig_mod."),
    "both": {"model_state_dict": under("module._orig_mod."), "optimizer": {"state": {}}},
    "under another key": {"weights_of_epoch_3": STATE, "epoch": 3},
    "compiled inside": {name.replace("first.", "first._orig_mod."): value for name, value in STATE.items()},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_prefix_is_taken_off_and_told(tmp_path, kind, caplog):
    torch.save(CHECKPOINTS[kind], tmp_path / "epoch=3-step=60.ckpt")
    with caplog.at_level("INFO", "pipeline"):
        assert_same(prepared(tmp_path / "epoch=3-step=60.ckpt"))
    told = "lightning" in kind or kind in ("data parallel", "both")
    assert len(caplog.messages) == told
    if "loss" in kind:
        assert re.search(
            r"9 weights are called net\.…, as the model's .*; left out: loss\.weight\.$", caplog.messages[0]
        )


def test_a_model_that_wraps_takes_the_weights_of_what_it_wraps(tmp_path, caplog):
    torch.save(STATE, tmp_path / "a.pt")
    outer = nn.Sequential()
    outer.add_module("net", Tied())
    with caplog.at_level("INFO", "pipeline"):
        assert_same(prepared(tmp_path / "a.pt", model=outer).net)
    assert caplog.messages[0].endswith("a.pt: 9 weights are called as the model's without 'net.'.")


def test_a_compiled_model_takes_plain_weights(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    compiled = nn.Module()  # as torch.compile names the weights of what it wraps
    compiled.add_module("_orig_mod", Tied())
    prepared(tmp_path / "a.pt", model=compiled)
    assert_same(compiled._orig_mod)


def test_of_several_prefixes_one_is_chosen(tmp_path):
    other = Tied()
    torch.save(
        {"state_dict": {**under("student."), **under("teacher.", other.state_dict())}}, tmp_path / "a.ckpt"
    )
    with pytest.raises(
        PipelineError, match=r"weights of Tied under student and teacher: choose with training.prefix=st"
    ):
        prepared(tmp_path / "a.ckpt")
    assert_same(prepared(tmp_path / "a.ckpt", "student"))
    assert_same(prepared(tmp_path / "a.ckpt", "teacher."), other)
    with pytest.raises(
        PipelineError, match=r"^training.prefix=pupil: no name in .*a.ckpt begins so: student.first"
    ):
        prepared(tmp_path / "a.ckpt", "pupil")


def test_a_trainers_folder(tmp_path):
    tied_once = {name: value for name, value in STATE.items() if name != "last.weight"}
    save_file(tied_once, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(prepared(tmp_path))


def test_a_trainers_older_folder(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    (tmp_path / "training_args.bin").write_bytes(b"other")
    assert_same(prepared(tmp_path))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_trainers_folder_in_parts(tmp_path, kind):
    names = [name for name in STATE if name != "last.weight"]
    index = {name: f"part-{i % 2}.{kind}" for i, name in enumerate(names)}
    for part in set(index.values()):
        values = {name: STATE[name] for name in names if index[name] == part}
        save_file(values, tmp_path / part) if kind == "safetensors" else torch.save(values, tmp_path / part)
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_same(prepared(tmp_path))
    (tmp_path / f"{stem}.index.json").write_text("{}")
    with pytest.raises(
        PipelineError, match=r"index\.json is no index of parts of a model: save the model anew"
    ):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a.weight": torch.zeros(2)},
            r"does not fit Tied: it holds a.weight, the model has first.weight, first.bias, ",
        ),
        (
            under("model.", {**STATE, "first.bias": torch.zeros(4)}),
            r"does not fit Tied: first.bias has shape \(4,\), not \(3,\)",
        ),
        (
            under("model.", {name: value for name, value in STATE.items() if name != "norm.bias"}),
            r"does not fit Tied: norm.bias is missing\.$",
        ),
        (
            under("model.", {**STATE, "first.bias": torch.full((3,), torch.nan)}),
            r"are NaN or infinite in first.bias: give another file",
        ),
        (
            {"encoder": STATE, "decoder": STATE},
            r"holds several state dicts \(encoder, decoder\): save the model's alone",
        ),
        (
            {"state_dict": STATE, "config": Config()},
            r"holds objects of [\w.]*Config, .* python -c \".*torch.save\(",
        ),
        (
            MODEL,
            r"holds objects of [\w.]*Tied, .*: if you trust the file, take its weights out with python -c",
        ),
        ([1, 2], r"holds no state dict: save model.state_dict\(\)"),
    ],
)
def test_what_does_not_fit_gets_one_line_and_changes_nothing(tmp_path, content, message):
    torch.save(content, tmp_path / "a.ckpt")
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PipelineError, match=message) as told:
        prepared(tmp_path / "a.ckpt", model=model)
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_command_that_takes_weights_out_of_a_pickle_does_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (MODEL, {"state_dict": STATE, "config": Config()}):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(PipelineError) as told:
            prepared(tmp_path / "a.ckpt")
        exec(re.search(r'python -c "(.*)", and', str(told.value))[1])
        assert_same(prepared(tmp_path / "weights.pt"))


def test_what_is_not_there_gets_one_line(tmp_path):
    torch.save(STATE, tmp_path / "last.ckpt")
    with pytest.raises(
        PipelineError, match=r"lst.ckpt: no such file of weights, did you mean .*/last.ckpt\?"
    ):
        prepared(tmp_path / "lst.ckpt")
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(
        PipelineError, match=r"without model.safetensors .*: checkpoint-100, checkpoint-20, last.ckpt"
    ):
        prepared(tmp_path)
    with pytest.raises(PipelineError, match=r"training.prefix=3: give a text such as model"):
        Pretrained("a.pt", 3)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about the machine
def test_lightnings_own_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters()
            self.net = Tied()

        def training_step(self, batch, index):
            return self.net.first(batch[0]).square().mean() + self.net.norm(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=4)
    options = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(**options, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(module, data)
    [path] = tmp_path.rglob("epoch=0-step=2.ckpt")
    assert_same(prepared(path), module.net)


def test_a_folder_that_transformers_saved(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def make():
        config = transformers.GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=8)
        return transformers.GPT2LMHeadModel(config)

    model = make()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="2KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    for name in ("whole", "parts"):
        assert_same(prepared(tmp_path / name, model=make()), model)
