"""Nets that timm and transformers make of a name or a config: right matrices, options, and mistakes in one line."""

import builtins
import json

import pytest
import torch

import pipeline
from pipeline.criterion import CrossEntropy, NextToken
from pipeline.errors import PipelineError
from pipeline.model import hugging_face_net, timm_net

GPT2 = {
    "n_layer": 1,
    "n_embd": 4,
    "n_head": 2,
    "n_positions": 6,
    "vocab_size": 5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VIT = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "intermediate_size": 4,
}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (the extra nets)")


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed (the extra nets)")


def by_autograd(model, criterion, inputs, targets, names):
    """Rows of the Hessian by two reverse passes."""
    weights = [value for name, value in model.named_parameters() if name in names]
    slopes = torch.autograd.grad(criterion(model(inputs), targets), weights, create_graph=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])
    rows = [torch.autograd.grad(each, weights, retain_graph=True, materialize_grads=True) for each in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def test_a_language_model_of_a_config(transformers):
    torch.manual_seed(0)
    model = hugging_face_net("gpt2", (6,), 5, **GPT2).double().eval()
    assert type(model).__name__ == "GPT2LMHeadModel"
    ids = torch.randint(0, 5, (3, 6))
    theirs = model(ids, labels=ids).loss.double()  # taken in single precision
    torch.testing.assert_close(NextToken()(model(ids), ids), theirs, rtol=1e-6, atol=0)
    found = pipeline.hessian(model, NextToken(), ids, ids, parameters="*.ln_*")
    names = [name for name, _ in model.named_parameters() if ".ln_" in name]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.testing.assert_close(
            found, by_autograd(model, NextToken(), ids, ids, names), rtol=0, atol=1e-10
        )


def test_a_net_for_images_gets_the_sizes_of_the_data(transformers):
    model = hugging_face_net("vit", (1, 8, 8), 3, "ImageClassification", **VIT)
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 3)
    wider = hugging_face_net("vit", (1, 8, 8), 3, "ImageClassification", **VIT, num_labels=7)
    assert wider(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 7)


def test_a_folder_with_a_config(transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **GPT2}))
    model = hugging_face_net(str(tmp_path), (6,), 5, n_layer=2)
    assert (model.config.n_layer, model.config.n_embd, model.config.use_cache) == (2, 4, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config": "gtp2"},
            r"^model.config=gtp2: neither a folder .* nor a type of model .*, did you mean gpt2",
        ),
        (
            {"config": "gpt2", "n_layr": 3},
            r"^model.n_layr: the config of gpt2 has no such option, .* n_layer",
        ),
        ({"config": "vit"}, r"^model.head=CausalLM: transformers has none of vit: .*ImageClassification"),
        (
            {"config": "gpt2", "head": "Anything"},
            r"^model.head=Anything: transformers has none of gpt2: .*CausalLM",
        ),
        ({"config": "gpt2", "n_head": 7}, r"^model=huggingface cannot make gpt2: .*look at model.n_head\."),
        ({"config": None}, r"^model.config=None: give a text such as gpt2"),
    ],
)
def test_mistakes_with_a_config_get_one_line(transformers, options, message):
    with pytest.raises(PipelineError, match=message) as told:
        hugging_face_net(input_shape=(6,), num_outputs=5, **options)
    assert "\n" not in str(told.value)


def test_a_net_of_timm(timm):
    torch.manual_seed(0)
    model = timm_net("resnet10t", (1, 8, 8), 3, stem_width=8, channels=[4, 4, 4, 4]).double().eval()
    images, labels = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = pipeline.hessian(model, CrossEntropy(), images, labels, parameters="fc.*")
    names = [name for name, _ in model.named_parameters() if name.startswith("fc.")]
    torch.testing.assert_close(
        found, by_autograd(model, CrossEntropy(), images, labels, names), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet10"},
            r"^model.name=resnet10: timm has no net of that name, did you mean .*resnet10t",
        ),
        (
            {"name": "resnet10t", "widht": 3},
            r"^model=timm cannot make resnet10t: .*'widht': look at model.widht\.",
        ),
        ({"name": 3}, r"^model.name=3: give a text such as resnet10t"),
        (
            {"name": "resnet10t", "input_shape": (64,)},
            r"^model=timm needs images .*data.input_shape=\[1,8,8\]",
        ),
    ],
)
def test_mistakes_with_a_name_get_one_line(timm, options, message):
    with pytest.raises(PipelineError, match=message) as told:
        timm_net(**{"input_shape": (1, 8, 8), "num_outputs": 3, **options})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("choice", "library", "make"),
    [
        ("timm", "timm", lambda: timm_net("resnet10t", (1, 8, 8), 3)),
        ("huggingface", "transformers", lambda: hugging_face_net("gpt2", (6,), 3)),
    ],
)
def test_a_library_that_is_not_there_is_told(monkeypatch, choice, library, make):
    def missing(name, *args):
        if name == library:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *args)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    message = rf"^model={choice} needs the library {library}, which cannot be imported \(No module named .*pip install"
    with pytest.raises(PipelineError, match=message):
        make()
