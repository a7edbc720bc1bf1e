import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.model import CNN, MLP, ResNet, Transformer
from pipeline.model.activation import ACTIVATIONS

IMAGE = (1, 8, 8)
SIZES = {MLP: 2410, CNN: 1898, ResNet: 2932, Transformer: 2762}
SMALL = {
    "mlp": lambda: MLP((2, 3), 3, [4]),
    "linear": lambda: MLP((5,), 3, []),
    "without bias": lambda: MLP((5,), 3, [4, 3], "softplus", bias=False),
    "cnn": lambda: CNN((1, 5, 4), 3, [2, 2], activation="silu"),
    "resnet": lambda: ResNet((2, 4, 5), 3, [2, 4], activation="gelu"),
    "transformer": lambda: Transformer((1, 4, 6), 3, width=4, hidden_size=3),
}
INPUT_SHAPES = {"mlp": (2, 3), "cnn": (1, 5, 4), "resnet": (2, 4, 5), "transformer": (1, 4, 6)}


@pytest.mark.parametrize(("model", "size"), SIZES.items())
def test_the_default_has_as_many_weights_as_its_docstring_says(model, size):
    net = model(IMAGE, 10)
    assert sum(weight.numel() for weight in net.parameters()) == size
    assert f"{size:,}" in model.__doc__
    assert net(torch.rand(3, *IMAGE)).shape == (3, 10)


def test_mlp_is_the_formula():
    torch.manual_seed(0)
    net = MLP((2, 3), 4, [5, 7], "sigmoid").double()
    x = torch.rand(6, 2, 3, dtype=torch.float64)
    w = {name: weight.detach().numpy() for name, weight in net.named_parameters()}
    hidden = x.numpy().reshape(6, 6)
    for i in (1, 2):
        hidden = 1 / (1 + np.exp(-(hidden @ w[f"fc{i}.weight"].T + w[f"fc{i}.bias"])))
    np.testing.assert_allclose(
        net(x).detach().numpy(), hidden @ w["fc3.weight"].T + w["fc3.bias"], rtol=1e-13
    )


def test_attention_agrees_with_torchs_own():
    torch.manual_seed(0)
    block = Transformer(IMAGE, 10, width=6, num_heads=3).double().blocks[0].attention
    own = nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64)
    own.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(block(tokens), own(tokens, tokens, tokens)[0], rtol=1e-12, atol=1e-12)


def test_patches_are_squares_of_the_image_row_by_row():
    net = Transformer((2, 4, 6), 3, patch_size=2)
    images = torch.arange(2 * 2 * 4 * 6.0).reshape(2, 2, 4, 6)
    expected = [images[1, :, r : r + 2, c : c + 2].reshape(-1) for r in (0, 2) for c in (0, 2, 4)]
    torch.testing.assert_close(net.patches(images)[1], torch.stack(expected))


@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives_exist_in_every_mode_and_agree_with_finite_differences(name):
    torch.manual_seed(1)
    net = SMALL[name]().double()
    x = torch.randn(3, *INPUT_SHAPES.get(name, (5,)), dtype=torch.float64)
    params = dict(net.named_parameters())
    flat = nn.utils.parameters_to_vector(params.values()).detach()

    def loss(vector):
        sizes = [value.numel() for value in params.values()]
        shaped = [
            part.view_as(value) for part, value in zip(vector.split(sizes), params.values(), strict=True)
        ]
        outputs = torch.func.functional_call(net, dict(zip(params, shaped, strict=True)), (x,))
        return outputs.logsumexp(1).square().mean()

    gradient = torch.func.grad(loss)
    basis = torch.eye(len(flat), dtype=torch.float64)
    forward = torch.func.vmap(lambda v: torch.func.jvp(gradient, (flat,), (v,))[1])(basis)
    at = flat.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(at), at, create_graph=True)
    reverse = torch.stack([torch.autograd.grad(entry, at, retain_graph=True)[0] for entry in first])
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)
    v = torch.randn_like(flat) / len(flat) ** 0.5
    h = 1e-5  # the error of the difference is of order h² + 1e-16 / h
    difference = (gradient(flat + h * v) - gradient(flat - h * v)) / (2 * h)
    torch.testing.assert_close(forward @ v, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SMALL)
def test_samples_do_not_mix(name):
    torch.manual_seed(0)
    net = SMALL[name]().double()
    x = torch.randn(4, *INPUT_SHAPES.get(name, (5,)), dtype=torch.float64)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", [CNN, ResNet, Transformer])
def test_flat_samples_are_no_images(model):
    with pytest.raises(
        PipelineError, match=r"needs images .* shape \(20,\): .*data.input_shape=\[1,4,5\]\.$"
    ):
        model((20,), 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((5,), 3, 32), r"model.hidden_sizes=32: give a list of whole numbers"),
        (
            lambda: MLP((5,), 3, [4, -1]),
            r"model.hidden_sizes=\[4, -1\]: give a list of whole numbers of at least 1",
        ),
        (lambda: MLP((5,), 3, "32"), r"model.hidden_sizes='32'"),
        (lambda: MLP((5,), 3, [4.0]), r"model.hidden_sizes=\[4.0\]"),
        (lambda: MLP((5,), 0), r"model.num_outputs=0: give a whole number of at least 1\.$"),
        (lambda: MLP(None, 3), r"model.input_shape=None"),
        (lambda: MLP((5,), 3, bias="no"), r"model.bias='no': give true or false"),
        (
            lambda: MLP((5,), 3, activation="elu"),
            rf"model.activation='elu': choose one of {', '.join(ACTIVATIONS)}",
        ),
        (lambda: CNN(IMAGE, 3, kernel_size=2), r"model.kernel_size=2: give an odd number"),
        (lambda: CNN(IMAGE, 3, 8), r"model.num_channels=8: give a list"),
        (
            lambda: ResNet(IMAGE, 3, [6, 9]),
            r"model.num_channels=\[6, 9\]: .* divisible by model.num_groups=2",
        ),
        (lambda: ResNet(IMAGE, 3, []), r"model.num_channels=\[\]: give at least one"),
        (lambda: Transformer(IMAGE, 3, patch_size=3), r"model.patch_size=3 does not divide images of 8 x 8"),
        (lambda: Transformer(IMAGE, 3, width=9), r"model.width=9: give a multiple of model.num_heads=2"),
        (lambda: Transformer(IMAGE, 3, num_blocks=True), r"model.num_blocks=True: give a whole number"),
    ],
)
def test_wrong_options_get_one_line(build, message):
    with pytest.raises(PipelineError, match=message):
        build()
