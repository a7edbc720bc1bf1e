"""Kinds of blocks that every library has: linear maps, convolutions, norms, activations, attention, recurrence."""

from __future__ import annotations

import torch
from fuzz.parts import VOCABULARY, Part, Site, kind
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmin": lambda x: F.softmin(x, 1),
    "sin": torch.sin,
    "square": lambda x: 0.3 * x.square(),
    "normalize": lambda x: F.normalize(x + 2, dim=-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1, keepdim=True) - x,
    "cumsum": lambda x: x.cumsum(1).sin(),
    "cumprod": lambda x: (1 + 0.3 * x).cumprod(1),
    "fft": lambda x: torch.fft.rfft(x, dim=-1).abs(),
    "prod": lambda x: (1 + 0.2 * x).prod(-1, keepdim=True) * x,
    "var": lambda x: x / (1 + x.var(-1, keepdim=True, correction=0)).sqrt(),
    "erf": torch.erf,
    "pow": lambda x: (1 + x.square()) ** 0.3,
    "atan2": lambda x: torch.atan2(x, x.flip(-1).exp()),
}
KINKED = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "hardshrink": lambda x: F.hardshrink(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.7, 0.9),
    "maximum": lambda x: torch.maximum(x, x.flip(-1) * 0.5),
    "sort": lambda x: x.sort(-1).values * torch.arange(1, x.shape[-1] + 1).to(x),
    "topk": lambda x: x.topk(1, -1).values + x,
    "where": lambda x: torch.where(x > 0.2, x.sin(), x.square()),
    "amax": lambda x: x - x.amax(-1, keepdim=True),
    "median": lambda x: x * x.median(-1, keepdim=True).values,
}
ACTIVATIONS = {**SMOOTH, **KINKED}


@kind(width=(2, 3, 4), bias=(True, False), weight=4)
def linear(s: Site) -> Part:
    return Part(lambda p, x: p.map(x), map=nn.Linear(s.width, s.o.width, bias=s.o.bias))


@kind(which=tuple(ACTIVATIONS), weight=6)
def activation(s: Site) -> Part:
    name = s.o.which
    return Part(lambda p, x: ACTIVATIONS[name](x))


@kind(which=("prelu", "glu", "rrelu", "swish_beta", "softmax_temperature"))
def learned_activation(s: Site) -> Part:
    match s.o.which:
        case "prelu":
            channels = s.x.shape[1] if s.x.ndim > 1 else 1
            return Part(lambda p, x: p.act(x), act=nn.PReLU(channels))
        case "glu":
            return Part(lambda p, x: F.glu(p.map(x)), map=nn.Linear(s.width, 2 * s.width))
        case "rrelu":
            return Part(lambda p, x: F.rrelu(x, training=False) * p.scale, scale=torch.ones(()))
        case "swish_beta":
            return Part(lambda p, x: x * torch.sigmoid(p.beta * x), beta=torch.ones(()))
    return Part(lambda p, x: torch.softmax(x / p.t.exp(), -1), t=torch.zeros(()))


CONVOLUTION = {
    "channels": (2, 3),
    "kernel": (1, 2, 3),
    "stride": (1, 2),
    "dilation": (1, 2),
    "groups": (1, 2),
    "padding": (0, 1, "same"),
    "mode": ("zeros", "circular", "reflect", "replicate"),
    "bias": (True, False),
}


def _convolution(s: Site, layer: type[nn.Module], sizes: torch.Size, channels_in: int) -> nn.Module:
    o = s.o
    groups = o.groups if channels_in % o.groups == 0 else 1
    stride = 1 if o.padding == "same" else o.stride
    around = 0 if o.padding == "same" else 2 * o.padding
    most = min(sizes) if o.padding == "same" else min(sizes) + around
    kernel = max(k for k in range(1, o.kernel + 1) if o.dilation * (k - 1) + 1 <= most)
    channels = o.channels if o.channels % groups == 0 else 2
    mode = o.mode if min(sizes) > 1 else "zeros"
    options = {"groups": groups, "dilation": o.dilation, "bias": o.bias, "padding_mode": mode}
    return layer(channels_in, channels, kernel, stride, o.padding, **options)


@kind(rank=2, **CONVOLUTION)
def conv1d(s: Site) -> Part:
    layer = _convolution(s, nn.Conv1d, s.x.shape[1:2], s.width)
    return Part(lambda p, x: p.conv(x.transpose(1, 2)).transpose(1, 2), conv=layer)


@kind(rank=3, weight=2, **CONVOLUTION)
def conv2d(s: Site) -> Part:
    return Part(lambda p, x: p.conv(x), conv=_convolution(s, nn.Conv2d, s.x.shape[2:], s.x.shape[1]))


@kind(rank=3, channels=(1, 2), kernel=(1, 2), depth=(1, 2))
def conv3d(s: Site) -> Part:
    kernel = (1, min(s.o.kernel, s.x.shape[2]), min(s.o.depth, s.x.shape[3]))
    return Part(
        lambda p, x: p.conv(x[:, :, None]).squeeze(2), conv=nn.Conv3d(s.x.shape[1], s.o.channels, kernel)
    )


@kind(rank=3, channels=(1, 2), kernel=(1, 2), stride=(1, 2), padding=(0, 1), groups=(1, 2), dilation=(1, 2))
def conv_transpose2d(s: Site) -> Part:
    o, channels = s.o, s.x.shape[1]
    groups = o.groups if channels % o.groups == 0 and o.channels % o.groups == 0 else 1
    padding = o.padding if o.kernel > 1 and min(s.x.shape[2:]) > 2 else 0
    extra = 1 if o.stride > 1 else 0
    layer = nn.ConvTranspose2d(
        channels, o.channels, o.kernel, o.stride, padding, extra, groups, dilation=o.dilation
    )
    return Part(lambda p, x: p.conv(x), conv=layer)


@kind(rank=2, channels=(1, 2), kernel=(1, 2), stride=(1, 2))
def conv_transpose1d(s: Site) -> Part:
    layer = nn.ConvTranspose1d(s.width, s.o.channels, s.o.kernel, s.o.stride)
    return Part(lambda p, x: p.conv(x.transpose(1, 2)).transpose(1, 2), conv=layer)


@kind(
    which=("layer", "layer_all", "group", "rms", "batch_eval", "batch_training", "batch_no_statistics", "instance",
           "instance_statistics", "local_response"),
    affine=(True, False),
    weight=2,
)  # fmt: skip
def norm(s: Site) -> Part:
    shape, affine = s.x.shape[1:], s.o.affine
    channels = shape[0]
    match s.o.which:
        case "layer":
            layer: nn.Module = nn.LayerNorm(shape[-1], eps=0.1, elementwise_affine=affine)
        case "layer_all":
            layer = nn.LayerNorm(tuple(shape), eps=0.1, elementwise_affine=affine)
        case "group":
            layer = nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, eps=0.1, affine=affine)
        case "rms":
            layer = nn.RMSNorm(shape[-1], eps=0.1, elementwise_affine=affine)
        case "instance" | "instance_statistics" if len(shape) > 1:
            tracked = s.o.which == "instance_statistics"
            class_ = nn.InstanceNorm2d if len(shape) == 3 else nn.InstanceNorm1d
            layer = class_(channels, eps=0.1, affine=affine, track_running_stats=tracked)
        case "local_response" if len(shape) > 1:
            layer = nn.LocalResponseNorm(2, alpha=0.5, k=1.5)
        case _:
            class_ = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
            tracked = s.o.which != "batch_no_statistics"
            layer = class_(channels, eps=0.1, affine=affine, track_running_stats=tracked)
    part = Part(lambda p, x: p.norm(x), norm=layer)
    if s.o.which in {"batch_eval", "instance_statistics"}:
        layer.eval()
        part.mode = False
        for name, value in layer.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 * (name == "running_var"))
    elif s.o.which == "batch_training":
        part.mode = True
    return part


@kind(
    rank=3, which=("avg", "max", "adaptive_avg", "adaptive_max", "lp", "upsample", "shuffle", "unfold", "pad")
)
def pool(s: Site) -> Part:
    size = min(2, *s.x.shape[2:])
    match s.o.which:
        case "avg":
            layer: nn.Module = nn.AvgPool2d(size, 1)
        case "max":
            layer = nn.MaxPool2d(size, 1)
        case "adaptive_avg":
            layer = nn.AdaptiveAvgPool2d((size, 1))
        case "adaptive_max":
            layer = nn.AdaptiveMaxPool2d((size, 1))
        case "lp":
            layer = nn.LPPool2d(3, size, 1)
        case "upsample":
            layer = nn.Upsample((3, 2), mode="bilinear")
        case "shuffle":
            layer = nn.ChannelShuffle(2 if s.x.shape[1] % 2 == 0 else 1)
        case "unfold":
            layer = nn.Unfold(size)
        case _:
            layer = nn.ReflectionPad2d((size - 1, 0, 0, size - 1))
    return Part(
        lambda p, x: p.pool(x if p.pool.__class__ is not nn.LPPool2d else x.square() + 0.1), pool=layer
    )


@kind(p=(0.3,))
def dropout(s: Site) -> Part:
    part = Part(lambda p, x: p.drop(x), drop=nn.Dropout(s.o.p).eval())
    part.mode = False
    return part


@kind(rank=0, width=(2, 3), padded=(False, True), weight=0)
def embedding(s: Site) -> Part:
    if s.x.is_floating_point():
        return Part(lambda p, x: p.map(x), map=nn.Linear(s.width, s.o.width))
    layer = nn.Embedding(VOCABULARY, s.o.width, padding_idx=0 if s.o.padded else None)
    return Part(lambda p, x: p.table(x), table=layer)


@kind(rank=0, width=(2, 3), how=("mean", "sum", "max"), padded=(False, True), weight=0)
def embedding_bag(s: Site) -> Part:
    if s.x.is_floating_point():
        return Part(lambda p, x: p.map(x), map=nn.Linear(s.width, s.o.width))
    layer = nn.EmbeddingBag(VOCABULARY, s.o.width, mode=s.o.how, padding_idx=0 if s.o.padded else None)
    return Part(lambda p, x: p.table(x), table=layer)


MASKS = ("none", "bool", "float", "causal", "padding")


@kind(rank=2, heads=(1, 2), mask=MASKS, needs=(True, False), time_first=(False, True), bias=(True, False))
def attention(s: Site) -> Part:
    """MultiheadAttention over two or more positions; of an odd width there is one head."""
    heads = s.o.heads if s.width % s.o.heads == 0 else 1
    layer = nn.MultiheadAttention(s.width, heads, batch_first=not s.o.time_first, bias=s.o.bias)
    n, length = s.x.shape[:2]
    options: dict[str, object] = {"need_weights": s.o.needs}
    if s.o.mask in {"bool", "causal"}:
        options["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
        options["is_causal"] = s.o.mask == "causal"
    elif s.o.mask == "float":
        options["attn_mask"] = torch.arange(length * length).reshape(length, length).double().sin()
    elif s.o.mask == "padding":
        lengths = 1 + torch.arange(n) % length
        options["key_padding_mask"] = torch.arange(length) >= lengths[:, None]

    def attend(p: Part, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) if s.o.time_first else x
        chosen = {name: v.to(x.dtype) if name == "attn_mask" and v.is_floating_point() else v
                  for name, v in options.items()}  # fmt: skip
        y = p.attention(y, y, y, **chosen)[0]
        return y.transpose(0, 1) if s.o.time_first else y

    if s.o.mask == "padding":  # a constant of N samples inside the model would not be a function of the batch
        return Part(
            lambda p, x, mask: p.attention(x, x, x, key_padding_mask=mask, need_weights=s.o.needs)[0],
            asks=s.room.give("padding_mask", options["key_padding_mask"]),
            attention=nn.MultiheadAttention(s.width, heads, batch_first=True, bias=s.o.bias),
        )
    return Part(attend, attention=layer)


@kind(rank=2, mask=("none", "causal", "bool", "float"), heads=(1, 2), scale=(None, 0.7))
def sdpa(s: Site) -> Part:
    length, heads = s.x.shape[1], s.o.heads
    masks = {
        "bool": torch.ones(length, length, dtype=torch.bool).tril(),
        "float": torch.linspace(-1, 1, length * length).reshape(length, length),
    }

    def attend(p: Part, x: Tensor) -> Tensor:
        q, k, v = p.qkv(x).unflatten(-1, (3, heads, 2)).permute(2, 0, 3, 1, 4)
        mask = masks.get(s.o.mask)
        mask = mask.to(x.dtype) if mask is not None and mask.is_floating_point() else mask
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=s.o.mask == "causal", scale=s.o.scale)
        return y.transpose(1, 2).flatten(2)

    return Part(attend, qkv=nn.Linear(s.width, 6 * heads, bias=False))


@kind(rank=2, norm_first=(False, True), activation=("relu", "gelu"), weight=0.5)
def transformer_layer(s: Site) -> Part:
    layer = nn.TransformerEncoderLayer(s.width, 1, 2, 0.0, s.o.activation, 0.1, True, s.o.norm_first)
    return Part(lambda p, x: p.layer(x), layer=layer)


@kind(
    rank=2,
    which=("rnn", "gru", "lstm"),
    two_ways=(False, True),
    layers=(1, 2),
    time_first=(False, True),
    last=(False, True),
    begins=(False, True),
    weight=2,
)
def recurrent(s: Site) -> Part:
    class_ = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[s.o.which]
    layers = s.o.layers if s.width <= 2 and not s.o.two_ways else 1
    layer = class_(s.width, 2, layers, batch_first=not s.o.time_first, bidirectional=s.o.two_ways)

    def run(p: Part, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) if s.o.time_first else x
        state = None
        if s.o.begins:
            zero = x.new_zeros(layers * (1 + s.o.two_ways), len(x), 2) + 0.1
            state = (zero, zero) if s.o.which == "lstm" else zero
        y = p.layer(y, state)[0]
        y = y.transpose(0, 1) if s.o.time_first else y
        return y[:, -1] if s.o.last else y

    return Part(run, layer=layer)


@kind(rank=2, which=("gru", "lstm", "rnn", "by_hand"))
def cells(s: Site) -> Part:
    """A cell in a loop over time."""
    if s.o.which == "by_hand":
        cell: nn.Module = nn.ModuleDict({"enter": nn.Linear(s.width, 2), "stay": nn.Linear(2, 2, bias=False)})
    else:
        cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}[s.o.which](s.width, 2)

    def run(p: Part, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), 2), x.new_zeros(len(x), 2)
        for step in x.unbind(1):
            if s.o.which == "by_hand":
                h = torch.tanh(p.cell["enter"](step) + p.cell["stay"](h))
            elif s.o.which == "lstm":
                h, c = p.cell(step, (h, c))
            else:
                h = p.cell(step, h)
        return h

    return Part(run, cell=cell)
