"""Small nets around one kind of layer each, for `cases.py`; built under the default dtype of the caller."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def perturb(model: nn.Module) -> nn.Module:
    """Take scales and shifts of norms away from 1 and 0."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return model


class Net(nn.Module):
    """Submodules, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in modules.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def conv1d_dilated_in_groups() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 2, groups=2, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 2, stride=(1, 2, 1), bias=False), nn.Tanh(), nn.Conv3d(2, 2, 1), nn.Flatten()
    )


def padded_convolutions() -> nn.Module:
    def conv(mode: str) -> nn.Module:
        return nn.Conv2d(1, 1, 2, padding=1, padding_mode=mode)

    return nn.Sequential(
        conv("circular"), nn.Tanh(), conv("reflect"), nn.Tanh(), conv("replicate"), nn.Tanh(),
        nn.Conv2d(1, 1, (2, 3), padding="same", dilation=(2, 1)), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def transposed_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(2, 2, 2, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(2, 1, (1, 2), dilation=2),
        nn.Flatten(2),
        nn.ConvTranspose1d(1, 2, 3, padding=1),
        nn.Tanh(),
        nn.Unflatten(2, (3, 5, 1)),
        nn.ConvTranspose3d(2, 1, (1, 1, 2)),
        nn.AdaptiveAvgPool3d((1, 3, 1)),
        nn.Flatten(),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.PReLU(2), nn.MaxPool2d(2, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveAvgPool2d((2, 1)), nn.PixelShuffle(1), nn.Flatten(), nn.Hardswish(), nn.Linear(4, 2),
    )  # fmt: skip


def norms() -> nn.Module:
    return perturb(
        nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm(4, eps=0.1), nn.Tanh(),
            nn.Linear(4, 4, bias=False), nn.GroupNorm(2, 4, eps=0.1), nn.RMSNorm(4),
            nn.Linear(4, 2),
        )
    )  # fmt: skip


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return perturb(nn.Sequential(nn.Conv1d(1, 2, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)))


def batchnorm_training() -> nn.Module:
    return perturb(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.1), nn.Tanh(), nn.Linear(4, 2)))


def batchnorm_2d_training() -> nn.Module:
    return perturb(
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    )


def self_attention() -> nn.Module:
    return Net(
        lambda net, x: net.head(net.attention(x, x, x)[0].mean(1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2),
    )  # fmt: skip


def cross_attention() -> nn.Module:
    """Time first, keys and values of widths of their own, a mask, and no weights wanted."""
    mask = torch.tensor([[False, True], [False, False], [True, False]])

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = x.transpose(0, 1)[:3, :, :2], x.transpose(0, 1)[1:], x.transpose(0, 1)[:2, :, :1]
        return net.attention(q, k, v, attn_mask=mask, need_weights=False)[0].transpose(0, 1)

    return Net(forward, attention=nn.MultiheadAttention(2, 1, kdim=3, vdim=1))


def fused_attention() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).unflatten(-1, (3, 1, 2)).permute(2, 0, 3, 1, 4)
        return net.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1))

    return Net(forward, qkv=nn.Linear(3, 6), out=nn.Linear(6, 2, bias=False))


def transformer_layer(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(3, 1, 2, 0.0, "gelu", 0.3, True, norm_first)
    return perturb(Net(lambda net, x: net.layer(x).mean(1), layer=layer))


def padded_words() -> nn.Module:
    """Repeated tokens; the padding is left out of the mean."""

    def forward(net: Net, tokens: Tensor) -> Tensor:
        kept = (tokens != 0)[..., None]
        return net.head(torch.tanh(net.embedding(tokens).mul(kept).sum(1) / kept.sum(1).clamp(min=1)))

    return Net(forward, embedding=perturb(nn.Embedding(4, 2, padding_idx=0)), head=nn.Linear(2, 3))


def tied_decoder() -> nn.Module:
    """One matrix embeds and decodes."""
    return Net(
        lambda net, tokens: F.linear(torch.tanh(net.hidden(net.embedding(tokens).sum(1))), net.embedding.weight),
        embedding=nn.Embedding(5, 2), hidden=nn.Linear(2, 2),
    )  # fmt: skip


def bags(mode: str) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(5, 2, mode=mode, padding_idx=1), nn.Tanh(), nn.Linear(2, 3))


def functional() -> nn.Module:
    """Weights without modules: a convolution, a product from each side, a bias by broadcasting, a bilinear form."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv1d(x[:, None], net.kernel, net.shift, stride=2)) * net.scale
        x = torch.sigmoid(x.flatten(1) @ net.matrix + net.bias)
        return F.bilinear(x, x.sin(), net.form)

    shapes = {
        "kernel": (2, 1, 2),
        "shift": (2,),
        "scale": (2, 1),
        "matrix": (4, 2),
        "bias": (2,),
        "form": (2, 2, 2),
    }
    return Net(forward, **{name: torch.randn(shape) for name, shape in shapes.items()})


def looped(time_first: bool) -> nn.Module:
    """A recurrent net written by hand, whose weights are used at each step."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 2)
        if time_first:
            for step in torch.tanh(net.enter(x.transpose(0, 1))):
                h = torch.tanh(step + net.stay(h))
        else:
            for t in range(x.shape[1]):
                h = torch.tanh(net.enter(x[:, t]) + net.stay(h))
        return h

    return Net(forward, enter=nn.Linear(3, 2), stay=nn.Linear(2, 2, bias=False))


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    width = (options.get("proj_size") or 2) * (2 if options.get("bidirectional") else 1)
    return Net(
        lambda net, x: net.head(net.layer(x)[0][:, -1]),
        layer=kind(2, 3 if "proj_size" in options else 2, batch_first=True, **options),
        head=nn.Linear(width, 2),
    )  # fmt: skip


def cells() -> nn.Module:
    """An LSTM cell under a GRU cell, step by step."""

    def forward(net: Net, x: Tensor) -> Tensor:
        lower, upper = None, None
        for t in range(x.shape[1]):
            lower = net.lower(x[:, t], lower)
            upper = net.upper(lower[0], upper)
        return upper

    return Net(forward, lower=nn.LSTMCell(1, 2), upper=nn.GRUCell(2, 1, bias=False))


def weight_norm(old: bool) -> nn.Module:
    """Of a linear map by its rows and of a convolution by its inputs."""
    linear, conv = nn.Linear(3, 4), nn.Conv1d(1, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old one is deprecated, and in use
        normed = nn.utils.weight_norm if old else parametrizations.weight_norm
        return nn.Sequential(
            normed(linear), nn.Tanh(), nn.Unflatten(1, (1, 4)), normed(conv, dim=1), nn.Flatten()
        )


def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).eval()


def folded() -> nn.Module:
    """Samples and tokens in one dimension, then time first, then samples first again."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.tanh(net.first(x.reshape(-1, 2))).reshape(*x.shape[:2], 3)
        x = torch.tanh(net.second(x.transpose(0, 1)))
        return net.third(x.transpose(0, 1).flatten(1))

    return Net(forward, first=nn.Linear(2, 3), second=nn.Linear(3, 2), third=nn.Linear(4, 2))


def speech() -> nn.Module:
    """Log-probabilities of three symbols at each of four times, samples first."""
    return Net(lambda net, x: net.layer(x).log_softmax(-1), layer=nn.Linear(2, 3))


def alignment_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = torch.full((len(outputs),), outputs.shape[1])
    return F.ctc_loss(
        outputs.transpose(0, 1), targets, lengths, torch.full((len(outputs),), targets.shape[1])
    )
