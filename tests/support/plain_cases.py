"""Functions and modules that `Plain` spells out or passes through, each as a function of named tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn

Point = dict[str, Tensor]
Function = Callable[[Point], Any]
TABLE: dict[str, Callable[[], tuple[Function, Point]]] = {}


def entry(id: str, function: Function, **shapes: tuple[int, ...]) -> None:
    """A function of tensors of these shapes."""
    TABLE[id] = lambda: (function, {name: torch.randn(shape) for name, shape in shapes.items()})


class Call(nn.Module):
    """A module with the way in which it is called, as a module."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.model, x)


def module(
    id: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    call: Callable[[Any, Tensor], Any] = lambda model, x: model(x),
) -> None:
    """A module as a function of its weights and of its input."""

    def built() -> tuple[Function, Point]:
        run = Call(build(), call)
        weights = {name: value.detach() for name, value in run.named_parameters()}

        def function(point: Point) -> Any:
            return functional_call(run, {name: point[name] for name in weights}, (point["x"],))

        return function, {**weights, "x": torch.randn(shape)}

    TABLE[id] = built


def labels(*shape: int, below: int = 4) -> Tensor:
    return torch.arange(17, 17 + torch.Size(shape).numel()).mul(7).remainder(below).reshape(shape)


def unpooled(pool: Any, unpool: Any, x: Tensor, **options: Any) -> Tensor:
    return unpool(*pool(x, 2, return_indices=True), 2, **options)


def in_place(x: Tensor) -> tuple[Tensor, Tensor]:
    z = 3 * x
    return F.hardsigmoid(z, inplace=True), z


def from_packed(model: Any, x: Tensor) -> tuple[Tensor, Any]:
    output, last = model(rnn.pack_padded_sequence(x, [2, 3, 1], enforce_sorted=False))
    return rnn.pad_packed_sequence(output, padding_value=0.5, total_length=4)[0], last


def attending(model: Any, x: Tensor, **options: Any) -> Tensor:
    other = x if model.kdim == 4 else x[..., :2]
    found, weights = model(x, other, other, **options)
    return found if weights is None else torch.cat([found.flatten(), weights.flatten()])


LISTS = torch.tensor([[1, 3, -1, 2], [0, -1, 0, 0], [-1, 0, 1, 2]])
WORDS = torch.tensor([[1, 1, 2], [2, 3, 0], [3, 0, 0]])
TOKENS, OFFSETS = labels(3, 4, below=5), torch.tensor([0, 3, 3, 8])
KEEP = torch.tensor([[True, False, True], [True, True, False], [False, False, True], [True, True, True]])
NOWHERE = KEEP.index_fill(0, torch.tensor([2]), False)
LATER = torch.ones(3, 3, dtype=torch.bool).triu(1)
SDPA = F.scaled_dot_product_attention
# fmt: off

for how in ("mean", "sum", "none"):
    pair = {"f": (3, 2), "y": (3, 2)}
    entry(f"mse {how}", lambda p, how=how: F.mse_loss(p["f"], p["y"], reduction=how), **pair)
    entry(f"huber {how}", lambda p, how=how: F.huber_loss(p["f"], p["y"], how, 0.7), **pair)
    entry(f"soft margin {how}",
        lambda p, how=how: F.soft_margin_loss(p["f"], LISTS[:, :2].sign(), reduction=how), f=(3, 2))
    entry(f"multi margin {how}",
        lambda p, how=how: F.multi_margin_loss(p["f"], labels(3), 2, 0.8, reduction=how), f=(3, 4))
    entry(f"multilabel {how}", lambda p, how=how: F.multilabel_margin_loss(p["f"], LISTS, reduction=how), f=(3, 4))
    entry(f"ctc {how}",
        lambda p, how=how: F.ctc_loss(p["f"].log_softmax(-1), WORDS, (5, 4, 3), (3, 2, 0), 0, how), f=(5, 3, 4))
entry("mse weighted", lambda p: F.mse_loss(p["f"], p["y"], weight=p["w"].exp()), **pair, w=(3, 2))
entry("mse of old", lambda p: F.mse_loss(p["f"], p["y"], None, None, "sum"), **pair)
entry("huber weighted", lambda p: F.huber_loss(p["f"], p["y"], weight=p["w"].exp()), **pair, w=(3, 2))
entry("multi margin weighted",
    lambda p: F.multi_margin_loss(p["f"], labels(3), weight=torch.tensor([0.5, 2.0, 1.0, 0.1])), f=(3, 4))
entry("multi margin of one sample", lambda p: F.multi_margin_loss(p["f"], labels(1)[0], p=2), f=(4,))
entry("multilabel of one sample", lambda p: F.multilabel_margin_loss(p["f"], LISTS[0]), f=(4,))
entry("ctc, targets in a row",
    lambda p: F.ctc_loss(p["f"].log_softmax(-1), WORDS[:2, :2].flatten(), torch.tensor([5, 4]), torch.tensor([2, 2])),
    f=(5, 2, 4))
entry("ctc of one sample",
    lambda p: F.ctc_loss(p["f"].log_softmax(-1), torch.tensor([0, 2]), torch.tensor(5), torch.tensor(2), 3, "none"),
    f=(5, 4))
entry("ctc, too short",
    lambda p: F.ctc_loss(p["f"].log_softmax(-1), WORDS[:2], (3, 5), (3, 2), zero_infinity=True), f=(5, 2, 4))

entry("hardsigmoid", lambda p: F.hardsigmoid(3 * p["x"]), x=(3, 4))
entry("hardsigmoid in place", lambda p: in_place(p["x"]), x=(3, 4))
entry("rrelu in evaluation", lambda p: F.rrelu(p["x"]), x=(3, 4))
entry("bilinear", lambda p: F.bilinear(p["x"], p["y"], p["w"], p["b"]), x=(2, 3, 2), y=(2, 3, 4), w=(2, 2, 4), b=(2,))
for dim, scales in ((-1, ()), (0, (3, 1, 1)), (1, (1, 2, 1)), (2, (1, 1, 2))):
    entry(f"weight_norm {dim}", lambda p, dim=dim: torch._weight_norm(p["v"], p["g"], dim), v=(3, 2, 2), g=scales)
entry("layer_norm", lambda p: F.layer_norm(p["x"], (3, 2), p["w"], p["b"], 0.1), x=(4, 3, 2), w=(3, 2), b=(3, 2))
entry("layer_norm without shift", lambda p: F.layer_norm(p["x"], (3,), p["w"]), x=(2, 4, 3), w=(3,))
entry("layer_norm without scale", lambda p: F.layer_norm(p["x"], (3,), bias=p["b"]), x=(4, 3), b=(3,))
entry("layer_norm alone", lambda p: F.layer_norm(p["x"], (3,)), x=(4, 3))
for shape in ((4, 3), (2, 3, 2), (2, 3, 2, 2)):
    entry(f"batch_norm {shape}",
        lambda p: F.batch_norm(p["x"], None, None, p["w"], p["b"], True, 0.1, 0.01), x=shape, w=(3,), b=(3,))
entry("batch_norm alone", lambda p: F.batch_norm(p["x"], None, None, training=True), x=(4, 3))
entry("batch_norm in evaluation",
    lambda p: F.batch_norm(p["x"], torch.ones(3), torch.ones(3), p["w"], p["b"]), x=(4, 3), w=(3,), b=(3,))
entry("instance_norm",
    lambda p: F.instance_norm(p["x"], weight=p["w"], bias=p["b"], eps=0.1), x=(2, 3, 3), w=(3,), b=(3,))
entry("instance_norm of images", lambda p: F.instance_norm(p["x"]), x=(2, 2, 2, 2))
entry("instance_norm in evaluation",
    lambda p: F.instance_norm(p["x"], torch.ones(3), torch.ones(3), p["w"], None, False), x=(2, 3, 2), w=(3,))
for norm in (1.0, 1.5, 2.0, 3.0, float("inf")):
    entry(f"cdist {norm}", lambda p, norm=norm: torch.cdist(p["x"], p["y"], norm), x=(2, 3, 2), y=(2, 4, 2))
entry("pdist", lambda p: F.pdist(p["x"]), x=(4, 3))
for options in product(("bilinear", "nearest"), ("zeros", "border", "reflection"), (True, False)):
    entry(f"grid_sample {options}",
        lambda p, o=options: F.grid_sample(p["x"], p["grid"], *o), x=(2, 2, 3, 4), grid=(2, 2, 1, 2))
entry("grid_sample of volumes",
    lambda p: F.grid_sample(p["x"], p["grid"], align_corners=False), x=(1, 1, 2, 3, 2), grid=(1, 2, 1, 2, 3))
entry("max_unpool1d", lambda p: unpooled(F.max_pool1d, F.max_unpool1d, p["x"]), x=(2, 2, 4))
entry("max_unpool2d", lambda p: unpooled(F.max_pool2d, F.max_unpool2d, p["x"], output_size=(5, 4)), x=(2, 1, 5, 4))
entry("max_unpool3d", lambda p: unpooled(F.max_pool3d, F.max_unpool3d, p["x"]), x=(1, 2, 2, 4, 2))

for mode in ("sum", "mean", "max"):
    bag = partial(F.embedding_bag, mode=mode)
    entry(f"embedding_bag {mode}", lambda p, bag=bag: bag(TOKENS, p["w"]), w=(5, 3))
    entry(f"embedding_bag {mode}, offsets", lambda p, bag=bag: bag(TOKENS.flatten(), p["w"], OFFSETS), w=(5, 3))
    entry(f"embedding_bag {mode}, padding",
        lambda p, bag=bag: bag(TOKENS.flatten(), p["w"], OFFSETS, padding_idx=3), w=(5, 3))
    entry(f"embedding_bag {mode}, last offset",
        lambda p, bag=bag: bag(TOKENS.flatten()[:8], p["w"], OFFSETS, include_last_offset=True), w=(5, 3))
entry("embedding_bag weighted",
    lambda p: F.embedding_bag(TOKENS, p["w"], mode="sum", per_sample_weights=p["s"]), w=(5, 3), s=(3, 4))
entry("embedding_bag weighted, offsets",
    lambda p: F.embedding_bag(TOKENS.flatten(), p["w"], OFFSETS, mode="sum", per_sample_weights=p["s"]),
    w=(5, 3), s=(12,))

qkv = {"q": (2, 2, 4, 3), "k": (2, 2, 3, 3), "v": (2, 2, 3, 2)}
entry("attention", lambda p: SDPA(p["q"], p["k"], p["v"]), **qkv)
entry("attention scaled", lambda p: SDPA(p["q"], p["k"], p["v"], scale=0.3), **qkv)
entry("attention causal", lambda p: SDPA(p["q"], p["k"], p["v"], is_causal=True), **qkv)
entry("attention masked", lambda p: SDPA(p["q"], p["k"], p["v"], KEEP), **qkv)
entry("attention, a query that looks nowhere", lambda p: SDPA(p["q"], p["k"], p["v"], NOWHERE), **qkv)
entry("attention with bias",
    lambda p: SDPA(p["q"], p["k"], p["v"], p["b"].masked_fill(~KEEP, -torch.inf)), **qkv, b=(4, 3))
entry("attention, grouped queries",
    lambda p: SDPA(p["q"], p["k"], p["v"], enable_gqa=True), q=(1, 4, 2, 2), k=(1, 2, 3, 2), v=(1, 2, 3, 2))
widths = {"kdim": 2, "vdim": 2, "batch_first": True}
for options in ({}, widths, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}):
    for shown in (True, False):
        module(f"MultiheadAttention {options} {shown}",
            lambda o=options: nn.MultiheadAttention(4, 2, **o), (3, 2, 4), partial(attending, need_weights=shown))
masks = {"key_padding_mask": LATER[:2], "attn_mask": LATER, "need_weights": False}
module("MultiheadAttention masked", lambda: nn.MultiheadAttention(4, 2), (3, 2, 4), partial(attending, **masks))
for first, training in product((True, False), (True, False)):
    layer = partial(nn.TransformerEncoderLayer, 3, 1, 2, 0.0, "gelu", norm_first=first, batch_first=True)
    module(f"TransformerEncoderLayer {first} {training}",
        lambda layer=layer, training=training: layer().train(training), (2, 3, 3))
module("TransformerDecoderLayer",
    lambda: nn.TransformerDecoderLayer(3, 1, 2, 0.0, "gelu"), (3, 2, 3), lambda model, x: model(x, x.flip(0)))

for kind in (nn.RNN, nn.GRU, nn.LSTM):
    for options in ({}, {"batch_first": True, "bias": False}, {"num_layers": 2, "bidirectional": True}):
        module(f"{kind.__name__} {options}", lambda kind=kind, o=options: kind(2, 2, **o), (3, 2, 2))
    module(f"{kind.__name__} of one sequence", lambda kind=kind: kind(2, 2), (3, 2))
    module(f"{kind.__name__} packed", lambda kind=kind: kind(2, 2, bidirectional=True), (3, 3, 2), from_packed)
module("RNN relu", lambda: nn.RNN(2, 2, nonlinearity="relu"), (3, 2, 2))
module("LSTM projected", lambda: nn.LSTM(2, 3, 2, proj_size=2, bidirectional=True), (3, 2, 2))
module("LSTM projected, no bias", lambda: nn.LSTM(2, 3, bias=False, proj_size=1), (3, 2, 2))
module("GRU from states", lambda: nn.GRU(2, 2, 2), (3, 2, 2), lambda model, x: model(x, x[:2].sin()))
module("LSTM from a state", lambda: nn.LSTM(2, 2), (3, 2, 2), lambda model, x: model(x, (x[:1].sin(), x[:1].cos())))
for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
    module(kind.__name__, lambda kind=kind: kind(2, 2), (2, 3, 2), lambda model, x: model(x[0], model(x[1])))
    module(f"{kind.__name__} of one sample", lambda kind=kind: kind(2, 2, bias=False), (2,))
module("RNNCell relu", lambda: nn.RNNCell(2, 2, nonlinearity="relu"), (3, 2))
module("weight_norm", lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2)), (2, 2, 3))
if hasattr(nn.modules, "LinearCrossEntropyOptions"):  # since 2.13
    chunks = nn.modules.LinearCrossEntropyOptions(batch_chunk_size=2)
    entry("linear_cross_entropy",
        lambda p: F.linear_cross_entropy(p["x"], p["w"], labels(3), options=chunks), x=(3, 2), w=(4, 2))
