"""Kinds of blocks that are differentiated in a way of their own, or take derivatives themselves."""

from __future__ import annotations

import torch
from fuzz.functions import FUNCTIONS, TwoInputs, cube, sine
from fuzz.parts import Part, Site, joined, kind
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@kind(odd=True, holds=True, how=("module", "function", "twice"))
def checkpointed(s: Site) -> Part:
    """What is thrown away and computed again in backward; use_reentrant=False, as PyTorch recommends."""

    def run(p: Part, x: Tensor) -> Tensor:
        if p.exact:
            return joined(x, p.body(x, p.given)) if s.o.how == "function" else p.body(x, p.given)
        given = p.given
        if s.o.how == "function":
            return checkpoint(lambda y: joined(y, p.body(y, given)), x, use_reentrant=False)
        if s.o.how == "twice":
            inner = p.body
            return checkpoint(
                lambda y: checkpoint(inner, y, given, use_reentrant=False), x, use_reentrant=False
            )
        return checkpoint(p.body, x, p.given, use_reentrant=False)

    return Part(run, body=s.chain())


@kind(odd=True, holds=True, how=("no_grad", "detach", "beside", "set_grad", "gate", "target", "data"))
def stopped(s: Site) -> Part:
    """Values through which no derivative is to flow, in the ways in which people write it."""
    body, how = s.chain(), s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        match how:
            case "no_grad" | "set_grad":
                h = p.constant(lambda: body(x, given), "no_grad")
                return p.map(h)
            case "detach":
                return p.map(p.constant(lambda: body(x, given)))
            case "data" if p.notes is None:
                return p.map(body(x, given).data)
            case "data":
                return p.map(p.constant(lambda: body(x, given)))
            case "beside":
                return p.map(joined(body(x, given), 0.5 * p.constant(lambda: body(x, given))))
            case "gate":
                y = body(x, given)
                return p.map(y * torch.sigmoid(p.constant(lambda: y)))
        y = body(x, given)
        weight = p.constant(lambda: p.map.weight)
        return p.map(y) + F.linear(y, weight).sin()

    example = body(s.x, s.room.given)
    return Part(run, body=body, map=nn.Linear(example.shape[-1], 2))


@kind(odd=True, holds=True, how=("norm", "body", "softmax", "loss_scale"))
def in_float32(s: Site) -> Part:
    """Single precision inside, whatever the net is in."""

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        inner = torch.float64 if p.exact else torch.float32
        y = body(x, given)
        match s.o.how:
            case "norm":
                h = y.to(inner)
                return p.scale * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.01)).to(y.dtype)
            case "softmax":
                return p.scale * torch.softmax(y.to(inner), -1).to(y.dtype)
            case "loss_scale":
                return (p.scale * y).to(inner).sinh().to(x.dtype)
        return F.linear(y.to(inner), p.scale.to(inner)[None]).tanh().to(y.dtype)

    body = s.chain()
    width = body(s.x, s.room.given).shape[-1]
    return Part(run, body=body, scale=torch.ones(width))


@kind(odd=True, how=(*FUNCTIONS, "two_inputs"), weight=2.5)
def own_function(s: Site) -> Part:
    if s.o.how == "two_inputs":
        return Part(lambda p, x: TwoInputs.apply(p.map(x), x, 0.8), map=s.square())
    function = FUNCTIONS[s.o.how]
    return Part(lambda p, x: function.apply(p.map(x)), map=nn.Linear(s.width, 2))


@kind(odd=True, how=("first", "twice_undefined"))
def own_operator(s: Site) -> Part:
    """Of torch.library, which knows no forward mode."""
    function = sine if s.o.how == "first" else cube
    return Part(lambda p, x: function(p.map(x)), map=nn.Linear(s.width, 2))


LINALG = ("cholesky_inverse", "det", "slogdet", "inverse", "solve", "matrix_exp", "cholesky", "eigvalsh", "qr", "pinv",
          "weight_det", "weight_slogdet", "weight_solve", "cholesky_solve", "svdvals", "lu", "lstsq",
          "matrix_power", "solve_triangular", "nuclear")  # fmt: skip


@kind(odd=True, rank=1, how=LINALG, weight=2)
def algebra(s: Site) -> Part:
    """Matrices of 2 × 2 made of each sample, or a square weight; kept away from where they are singular."""
    how = s.o.how
    if how.startswith("weight"):
        square = torch.linalg.qr(torch.randn(s.width, s.width))[0] + 0.1 * torch.randn(s.width, s.width)

        def of_weight(p: Part, x: Tensor) -> Tensor:
            if how == "weight_solve":
                return torch.linalg.solve(p.w, x.T).T
            log = (
                torch.linalg.slogdet(p.w)[1] if how == "weight_slogdet" else torch.linalg.det(p.w).abs().log()
            )
            return x @ p.w.T + log

        return Part(of_weight, w=square)

    def of_samples(p: Part, x: Tensor) -> Tensor:
        a = 0.4 * p.map(x).reshape(-1, 2, 2)
        unit = torch.eye(2).to(x)
        positive = a @ a.mT + unit
        b = x[:, :1, None] + x.new_tensor([[1.0], [0.5]])
        match how:
            case "cholesky_inverse":
                y = torch.cholesky_inverse(a.tril(-1) + 1.5 * unit)
            case "det":
                y = torch.linalg.det(a + 2 * unit)
            case "slogdet":
                y = torch.linalg.slogdet(a + 2 * unit)[1]
            case "inverse":
                y = torch.linalg.inv(a + 2 * unit)
            case "solve":
                y = torch.linalg.solve(a + 2 * unit, b)
            case "matrix_exp":
                y = torch.linalg.matrix_exp(a)
            case "cholesky":
                y = torch.linalg.cholesky(positive)
            case "cholesky_solve":
                y = torch.cholesky_solve(b, torch.linalg.cholesky(positive))
            case "eigvalsh":
                y = torch.linalg.eigvalsh(positive + torch.diag(x.new_tensor([0.0, 2.0])))
            case "svdvals":
                y = torch.linalg.svdvals(a + torch.diag(x.new_tensor([1.0, 3.0])))
            case "qr":
                y = torch.linalg.qr(a + 2 * unit)[1]
            case "pinv":
                y = torch.linalg.pinv(a[:, :, :1] + 1)
            case "lu":
                y = torch.linalg.lu_factor(a + 2 * unit)[0]
            case "lstsq":
                y = torch.linalg.lstsq(a + 2 * unit, b)[0]
            case "matrix_power":
                y = torch.linalg.matrix_power(a + unit, 3)
            case "solve_triangular":
                y = torch.linalg.solve_triangular(a.tril(-1) + 1.5 * unit, b, upper=False)
            case _:
                y = torch.linalg.matrix_norm(a + torch.diag(x.new_tensor([1.0, 3.0])), "nuc")
        return y.reshape(len(x), -1)

    return Part(of_samples, map=nn.Linear(s.width, 4))


DERIVATIVES = ("gradient", "second", "force", "func_grad", "func_jvp", "jacrev", "inner_step", "hutchinson")


@kind(odd=True, holds=True, rank=1, how=DERIVATIVES, weight=2)
def derivative(s: Site) -> Part:
    """Derivatives inside forward: by the inputs, as in physics-informed nets, and by the net's own weights."""
    how = s.o.how

    def run(p: Part, x: Tensor) -> Tensor:
        body, given = p.body, p.given
        if (
            how == "inner_step"
        ):  # one step of descent by a weight, on a loss of this batch, as in meta-learning
            w = p.map.weight
            inner = (F.linear(x, w, p.map.bias) - x.flip(-1)).square().mean()
            (g,) = torch.autograd.grad(inner, w, create_graph=True)
            return body(F.linear(x, w - 0.3 * g, p.map.bias), given)
        if how.startswith("func") and not p.exact:

            def total(y: Tensor) -> Tensor:
                return body(y, given).flatten(1).sum(1)

            if how == "func_jvp":
                return torch.cat(
                    [part[:, None] for part in torch.func.jvp(total, (x,), (torch.ones_like(x),))], 1
                )
            return torch.func.grad(lambda y: total(y).sum())(x)
        if how == "jacrev" and not p.exact:
            return torch.func.vmap(torch.func.jacrev(lambda y: body(y[None], given).sum()))(x)
        y = p.constant(lambda: x) if how in {"gradient", "second"} else x
        y = y.clone()
        if not y.requires_grad:
            y.requires_grad_()
        with torch.enable_grad():
            u = body(y, given).flatten(1).sum(1)
            (g,) = torch.autograd.grad(u.sum(), y, create_graph=True)
            match how:
                case "second":
                    (h,) = torch.autograd.grad(g[:, 0].sum(), y, create_graph=True)
                    return torch.cat([u[:, None], g - h], 1)
                case "hutchinson":
                    v = torch.linspace(-1, 1, y.shape[1]).to(y)
                    (h,) = torch.autograd.grad((g * v).sum(), y, create_graph=True)
                    return torch.cat([u[:, None], (h * v).sum(1, keepdim=True)], 1)
                case "func_jvp":
                    return torch.stack([u, g.sum(1)], 1)
                case "force":
                    return torch.cat([u[:, None], -g], 1)
        return g

    members = {"map": s.square()} if how == "inner_step" else {}
    return Part(run, body=s.chain(), **members)
