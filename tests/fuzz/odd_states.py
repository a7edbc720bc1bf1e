"""Kinds of blocks in which samples influence each other, or that keep, write or decide something in a call."""

from __future__ import annotations

import torch
from fuzz.parts import Part, Site, kind
from torch import Tensor, nn
from torch.nn import functional as F

COUPLED = ("centred", "rolled", "pairs", "attention", "softmax", "deviation", "windows", "cumulative", "sorted",
           "graph", "two_halves", "whitened", "ends", "neighbors")  # fmt: skip


@kind(odd=True, rank=1, how=COUPLED, weight=3)
def coupled(s: Site) -> Part:
    """Samples that influence each other: all of them, neighbors, or those of a group."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y, n = p.map(x), len(x)
        index = torch.arange(n)
        match how:
            case "centred":
                return y - y.mean(0)
            case "rolled":
                return torch.tanh(y) * y.roll(1, 0)
            case "pairs":
                return y * y[torch.where(index ^ 1 < n, index ^ 1, index)].sin()
            case "attention":
                return (y @ y.T).softmax(1) @ y
            case "softmax":
                return y.softmax(0)
            case "deviation":
                return y / (0.5 + y.square().mean(0)).sqrt()
            case "windows":
                return torch.stack([y[max(0, k - 1) : k + 2].square().mean(0) for k in range(n)])
            case "cumulative":
                return y.sin().cumsum(0)
            case "sorted":
                return y * y.sort(0).values
            case "graph":
                source = torch.where(index // 2 * 2 + 1 < n, index // 2 * 2 + 1, index)
                return y + torch.zeros_like(y).index_add(0, index // 2 * 2, y[source].tanh())
            case "two_halves":
                half = n // 2
                return torch.cat([y[:half] - y[:half].sum(0).sin(), y[half:] - y[half:].sum(0).sin()])
            case "ends":
                return y * y[-1].tanh()
            case "neighbors":
                return y + F.pad(y[:-1].tanh(), (0, 0, 1, 0))
        return y @ torch.linalg.inv(y.T @ y / n + torch.eye(y.shape[1]).to(y))

    return Part(run, map=nn.Linear(s.width, 2))


BUFFERS = ("counter", "moving_mean", "replaced", "attribute", "module_state", "last_seen", "cached_weight")


@kind(odd=True, rank=1, how=BUFFERS, weight=1.5)
def stateful(s: Site) -> Part:
    """What a forward pass leaves behind in buffers and attributes, and reads the next time."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y = p.map(x)
        match how:
            case "counter":
                p.steps += 1
                return y / (1 + p.steps)
            case "moving_mean":
                p.mean.mul_(0.9).add_(0.1 * p.constant(lambda: y.mean(0)))
                return (y - p.mean.clone()).tanh()
            case "replaced":
                p.mean = 0.9 * p.mean + 0.1 * p.constant(lambda: y.mean(0))
                return (y - p.mean).tanh()
            case "attribute":
                p.calls = p.calls + 1
                return y.sin() * p.calls
            case "module_state":
                p.state = p.state + y.mean(0)  # carries its graph along, as recurrent models do
                return y + p.state.sin()
            case "last_seen":
                p.last = y
                return p.last.tanh() + y
        if p.cached is None:
            p.cached = p.map.weight * 2
        return F.linear(x, p.cached) + y

    part = Part(run, map=nn.Linear(s.width, 2))
    part.register_buffer("steps", torch.tensor(1))
    part.register_buffer("mean", torch.randn(2))
    part.calls, part.cached, part.last = 0, None, None
    part.register_buffer("state", torch.randn(2), persistent=False)
    return part


HOOKS = ("forward", "before", "backward", "tensor", "output_kept")


@kind(odd=True, how=HOOKS)
def hooked(s: Site) -> Part:
    layer = nn.Linear(s.width, 2)
    match s.o.how:
        case "forward":
            layer.register_forward_hook(lambda module, args, output: output.tanh() * 2)
        case "before":
            layer.register_forward_pre_hook(lambda module, args: (args[0].sin(),))
        case "backward":
            layer.register_full_backward_hook(lambda module, inputs, outputs: None)
        case "output_kept":
            layer.seen = []
            layer.register_forward_hook(lambda module, args, output: module.seen.append(output.detach()))
        case _:

            def seen(p: Part, x: Tensor) -> Tensor:
                y = p.map(x)
                if y.requires_grad:
                    y.register_hook(lambda g: g.clone())
                return y

            return Part(seen, map=layer)
    return Part(lambda p, x: p.map(x), map=layer)


WRITES = (
    "add",
    "relu",
    "item",
    "zero_column",
    "copy",
    "out",
    "masked_fill",
    "index_put",
    "scatter",
    "expand",
    "narrow",
)


@kind(odd=True, rank=1, how=WRITES, weight=1.5)
def written(s: Site) -> Part:
    """Writes in place, into what a layer gave."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        y = p.map(x)
        match how:
            case "add":
                y += x[:, :1].sin()
                y *= 0.7
            case "relu":
                y = F.relu_(y)
            case "item":
                y = y * (1.0 if y.shape[0] > 0 else 0.0)
                y[:, 0] = y[:, 0] * 2
            case "zero_column":
                y[:, -1].zero_()
            case "copy":
                z = torch.empty_like(y)
                z.copy_(y.sin())
                y = z
            case "out":
                z = torch.zeros(len(y), y.shape[1], dtype=y.dtype)
                for k in range(y.shape[1]):
                    z[:, k] = y[:, k].tanh()
                y = z
            case "masked_fill":
                y = y.masked_fill_(y.detach() > 0.5, 0.1)
            case "index_put":
                y[torch.zeros(1, dtype=torch.long)] = y[:1].sin()
            case "scatter":
                z = torch.zeros(len(y), 3, dtype=y.dtype)
                y = z.scatter_add_(1, torch.arange(y.shape[1]).remainder(3).expand(len(y), -1), y)
            case "expand":
                y = y.unsqueeze(1).expand(-1, 2, -1).flatten(1).tanh()
            case _:
                a, b = y.narrow(1, 0, 1), y.narrow(1, 1, 1)
                a.sigmoid_()
                y = a.clone() * b.tanh()
        return y

    return Part(run, map=nn.Linear(s.width, 2))


CONTROL = (
    "branch",
    "loop_of_samples",
    "early_exit",
    "python_number",
    "newton",
    "while",
    "vmap",
    "functional_call",
)


@kind(odd=True, rank=1, how=CONTROL, weight=1.5)
def controlled(s: Site) -> Part:
    """Python decides, by values or sample by sample; transforms of torch.func inside."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        match how:
            case "branch":
                return p.map(x).tanh() if x.sum() > -1e9 else x
            case "loop_of_samples":
                return torch.stack([p.map(one).tanh() for one in x])
            case "early_exit":
                y = p.map(x)
                return y if float(y.detach().norm()) < 0 else y.sin()
            case "python_number":
                return p.map(x) * (1 + len(x)) + x.mean().item()
            case "newton":
                z = p.map(x)
                for _ in range(3):
                    z = z - (z + z.sin() * 0.3 - p.map(x)) / (1 + 0.3 * z.cos())
                return z
            case "while":
                z, k = p.map(x), 0
                while k < 2 and bool(torch.isfinite(z).all()):
                    z, k = torch.tanh(z + p.map(x)), k + 1
                return z
            case "vmap":
                return torch.func.vmap(lambda one: p.map(one).sin())(x)
        weights = {name: value * 1.1 for name, value in p.map.named_parameters()}
        return torch.func.functional_call(p.map, weights, (x,)).tanh()

    return Part(run, map=nn.Linear(s.width, 2))
