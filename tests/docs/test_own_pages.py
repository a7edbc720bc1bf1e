"""The pages about what a user brings: their files do what they say, and their commands are commands."""

import re
import shlex
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from support.command import PROJECT

import pipeline.run  # registers the schema
from pipeline.criterion import CrossEntropy
from pipeline.data import Arrays, samples_of
from pipeline.training import Pretrained

PAGES = ("own_data", "own_net", "own_loss", "huggingface", "checkpoint")
TEXT = "\n".join((PROJECT / "docs" / "howto" / f"{name}.md").read_text() for name in PAGES)
FILES = dict(re.findall(r"`(\w+)\.py`:\n\n```python\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [
    line.replace("\\\n", " ")
    for line in re.findall(r"^    \$ python -m pipeline\.run ((?:[^\n\\]|\\\n)*)", TEXT, re.MULTILINE)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With both files, and those that the first one writes."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    subprocess.run([sys.executable, "his_package.py"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command):
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        config = compose("config", shlex.split(command))
    for name in re.findall(r"his_\w+\.\w+", str(config)):
        module, _, attribute = name.partition(".")
        assert re.search(rf"^(class|def) {attribute}\b", FILES[module], re.MULTILINE), name


def test_the_samples(folder):
    his = import_module("his_package")
    for given, batch_size in ((his.HisDataset(), 256), (his.loader(), 32)):
        samples, found = samples_of(given, {})
        assert (samples.input_shape, samples.num_outputs, found) == ((16,), 3, batch_size)
    pictures, _ = samples_of(his.HisPictures(), {"channels_last": True, "scale": True})
    assert pictures.input_shape == (3, 8, 8)
    assert pictures.train.inputs.max() <= 1
    tokens = Arrays(path="tokens.npz", inputs="ids", targets="kind").load()
    assert tokens.train.inputs.dtype == torch.int64
    model = his.HisTagger(tokens.num_outputs)
    Pretrained(path="epoch=3-step=60.ckpt").prepare(model)
    assert model(tokens.train.inputs[:2]).shape == (2, 3)


def test_the_choices(folder):
    his = import_module("his_choices")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    inputs, targets = torch.rand(9, 4, dtype=torch.float64), torch.arange(9) % 3
    outputs = model(inputs)
    torch.testing.assert_close(his.FocalLoss(gamma=0)(outputs, targets), CrossEntropy()(outputs, targets))
    exact = pipeline.hessian(model, his.FocalLoss(), inputs, targets, strategy="hvp")
    found = pipeline.hessian(model, his.FocalLoss(), inputs, targets, strategy=his.Differences())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6 * float(exact.norm()))
    weights = dict(model.named_parameters())
    parts = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, inputs))(weights)
    jacobian = torch.cat([part.reshape(27, -1) for part in parts.values()], 1)
    gram = pipeline.hessian(model, his.FocalLoss(), inputs, targets, matrix=his.OutputGram())
    torch.testing.assert_close(gram, jacobian.T @ jacobian / 9, rtol=0, atol=1e-13)
    values = np.linalg.eigvalsh(exact.numpy())

    class Matrix:
        num_rows = len(values)

        def dense(self):
            return exact.numpy()

        def matvec(self, vectors):
            return exact.numpy() @ vectors

    for num_top in (3, 10):
        spectrum = his.Arpack(num_top).decompose(Matrix())
        np.testing.assert_allclose(spectrum.top_eigenvalues, values[::-1][:num_top], atol=1e-10)
        assert np.all(spectrum.residuals < 1e-8)


def test_every_page_has_a_command():
    assert sorted(FILES) == ["his_choices", "his_package"]
    assert len(COMMANDS) >= 12


def test_the_pages_are_linked():
    readme = (PROJECT / "README.md").read_text()
    assert [name for name in PAGES if f"(docs/howto/{name}.md)" not in readme] == []
