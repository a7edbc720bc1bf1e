"""Nets as they stand in public code, that need PyTorch alone."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.graphs import batched_graphs, graph_net, graph_object, masked_graph_net, on_dict
from zoo.images import resnet, unet
from zoo.problem import Net, Problem, labels
from zoo.sequences import (
    einsum_attention,
    experts,
    lstm_tagger,
    nano_gpt,
    nano_gpt_training,
    nano_gpt_with_loss,
    tutorial_tagger,
)


def tanh_net(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class PINN(nn.Module):
    """Burgers' equation: u and the residual u_t + u u_x - ν u_xx at points (t, x), by autograd in the forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = tanh_net(2, width, width, 1)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.clone().requires_grad_(True)
        u = self.net(points)
        slope = torch.autograd.grad(u, points, torch.ones_like(u), create_graph=True)[0]
        u_t, u_x = slope[:, :1], slope[:, 1:]
        u_xx = torch.autograd.grad(u_x, points, torch.ones_like(u_x), create_graph=True)[0][:, 1:]
        return u, u_t + u * u_x - 0.05 * u_xx


class FunctionalPINN(nn.Module):
    """The same by torch.func."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = tanh_net(2, width, width, 1)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        def u(point: Tensor) -> Tensor:
            return self.net(point[None])[0, 0]

        def residual(point: Tensor) -> tuple[Tensor, Tensor]:
            value, (u_t, u_x) = u(point), torch.func.grad(u)(point)
            u_xx = torch.func.hessian(u)(point)[1, 1]
            return value, u_t + value * u_x - 0.05 * u_xx

        return torch.func.vmap(residual)(points)


def equation_loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    u, residual = outputs
    return F.mse_loss(u, targets) + residual.square().mean()


def pinn(kind: type[nn.Module]):
    def make(n: int, width: int) -> Problem:
        points = torch.rand(n, 2) * 2 - 1
        values = -torch.sin(math.pi * points[:, 1:])
        return Problem(kind(5 * width), equation_loss, points, values if kind is PINN else values[:, 0])

    return make


class Coupling(nn.Module):
    def __init__(self, num_dims: int, width: int, first: bool) -> None:
        super().__init__()
        mask = torch.arange(num_dims) % 2 == int(first)
        self.register_buffer("mask", mask.float())
        self.scale, self.shift = tanh_net(num_dims, width, num_dims), tanh_net(num_dims, width, num_dims)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = x * self.mask
        s, t = self.scale(seen) * (1 - self.mask), self.shift(seen) * (1 - self.mask)
        return seen + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(-1)


class RealNVP(nn.Module):
    """A normalizing flow: log-densities of samples."""

    def __init__(self, num_dims: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Coupling(num_dims, width, bool(i % 2)) for i in range(3)])
        self.register_buffer("mean", torch.zeros(num_dims))
        self.register_buffer("covariance", torch.eye(num_dims))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, logdet = layer(x)
            total = total + logdet
        prior = torch.distributions.MultivariateNormal(self.mean, self.covariance)
        return prior.log_prob(x) + total


def flow(n: int, width: int) -> Problem:
    return Problem(RealNVP(4, 2 * width), lambda outputs, _: -outputs.mean(), torch.randn(n, 4), None)


class VAE(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = (
            nn.Linear(16, 2 * width),
            nn.Linear(2 * width, 3),
            nn.Linear(2 * width, 3),
        )
        self.fc3, self.fc4 = nn.Linear(3, 2 * width), nn.Linear(2 * width, 16)

    def reparameterize(self, mu: Tensor, logvar: Tensor, eps: Tensor | None) -> Tensor:
        std = torch.exp(0.5 * logvar)
        return mu + (torch.randn_like(std) if eps is None else eps) * std

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x.view(-1, 16)))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = self.reparameterize(mu, logvar, eps)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def elbo(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    reconstruction, mu, logvar = outputs
    cross = F.binary_cross_entropy(reconstruction, x.view(-1, 16), reduction="sum")
    return cross - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def vae(drawn: bool):
    def make(n: int, width: int) -> Problem:
        x = torch.rand(n, 1, 4, 4)
        return Problem(VAE(2 * width), elbo, x if drawn else (x, torch.randn(n, 3)), x)

    return make


class Autoencoder(nn.Module):
    """Convolutions down and transposed ones up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * width, 6),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(6, 4 * width), nn.ReLU(), nn.Unflatten(1, (width, 2, 2)),
            nn.ConvTranspose2d(width, width, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 3, 2, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def autoencoder(n: int, width: int) -> Problem:
    images = torch.rand(n, 1, 8, 8)
    return Problem(Autoencoder(width), nn.MSELoss(), images, images)


class PointNet(nn.Module):
    """A map of each point, the maximum over points, and a classifier of the set."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, width, 1), nn.Conv1d(width, 2 * width, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(width), nn.BatchNorm1d(2 * width)
        self.fc1, self.fc2 = nn.Linear(2 * width, width), nn.Linear(width, 4)

    def forward(self, points: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(points.transpose(2, 1))))
        x = torch.max(self.bn2(self.conv2(x)), 2, keepdim=True)[0]
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.view(-1, x.size(1))))), dim=-1)


def point_net(n: int, width: int) -> Problem:
    return Problem(PointNet(2 * width).eval(), nn.NLLLoss(), torch.randn(n, 9, 3), labels(n, 4))


class DeepSets(nn.Module):
    """ρ(Σ φ(x)) over sets of different sizes, padded, with a mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        return self.rho((self.phi(points) * mask.unsqueeze(-1)).sum(1)).squeeze(-1)


def deep_sets(n: int, width: int) -> Problem:
    mask = torch.arange(6) < torch.randint(2, 7, (n, 1))
    return Problem(DeepSets(3 * width), nn.MSELoss(), (torch.randn(n, 6, 3), mask), torch.randn(n))


class Siren(nn.Module):
    """Sines of a linear map, for a field of coordinates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 3)])
        self.register_buffer("frequencies", torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(self.frequencies * layer(x))
        return self.layers[-1](x)


def siren(n: int, width: int) -> Problem:
    return Problem(Siren(5 * width), nn.MSELoss(), torch.rand(n, 2), torch.rand(n, 3))


class NeuralODE(nn.Module):
    """Runge-Kutta steps with one vector field, whose weights are used eight times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field, self.head = tanh_net(5, width, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        step = 0.5
        for i in range(2):

            def slope(x: Tensor, t: float) -> Tensor:
                return self.field(torch.cat([x, torch.full_like(x[:, :1], t)], 1))

            t = i * step
            k1 = slope(x, t)
            k2 = slope(x + step / 2 * k1, t + step / 2)
            k3 = slope(x + step / 2 * k2, t + step / 2)
            k4 = slope(x + step * k3, t + step)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.head(x)


def neural_ode(n: int, width: int) -> Problem:
    return Problem(NeuralODE(12 * width), nn.CrossEntropyLoss(), torch.randn(n, 4), labels(n, 2))


class LoRALinear(nn.Module):
    """A frozen map and a product of two thin matrices that is learned."""

    def __init__(self, num_inputs: int, num_outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, num_inputs) / num_inputs**0.5)
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * 2


def lora(n: int, width: int) -> Problem:
    model = nn.Sequential(LoRALinear(10, 8 * width, width), nn.ReLU(), LoRALinear(8 * width, 3, width))
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(n, 10), labels(n, 3))


class Towers(nn.Module):
    """Two encoders of one space; the loss compares every pair of the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = tanh_net(8, 2 * width, 6), nn.EmbeddingBag(10, 6)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        one, other = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return self.logit_scale.exp() * one @ other.t()


def contrastive(n: int, width: int) -> Problem:
    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2

    inputs = {"image": torch.randn(n, 8), "text": torch.randint(10, (n, 3))}
    return Problem(Towers(4 * width), criterion, inputs, torch.arange(n))


class Dueling(nn.Module):
    """A Q-network; the loss looks at the action that was taken."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.value, self.advantage = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, state: Tensor) -> Tensor:
        h = self.body(state)
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(1, keepdim=True)


def dueling(n: int, width: int) -> Problem:
    def criterion(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        actions, returns = targets
        return F.smooth_l1_loss(outputs.gather(1, actions[:, None]).squeeze(1), returns)

    return Problem(Dueling(5 * width), criterion, torch.randn(n, 4), (labels(n, 3), torch.randn(n)))


WRITTEN = [
    Net("graph-nodes", graph_net, samples="mean", mixes=True, draws_targets=True),
    Net("graph-nodes-masked", masked_graph_net),
    Net("graph-batched", batched_graphs, wide=6, samples="mean", mixes=True, draws_targets=True),
    Net("graph-object", graph_object, wide=6, samples="mean", mixes=True, draws_targets=True, castable=False),
    Net("forward-of-dict", on_dict, samples="mean"),
    Net("u-net", unet, samples="mean", draws_targets=True),
    Net("resnet-eval", resnet(training=False), samples="mean", draws_targets=True),
    Net("resnet-training", resnet(training=True), width=2, samples="mean", mixes=True, draws_targets=True),
    Net("pinn-autograd", pinn(PINN), samples="mean"),
    Net("pinn-func", pinn(FunctionalPINN), samples="mean"),
    Net("nano-gpt", nano_gpt, samples="mean"),
    Net("nano-gpt-with-loss", nano_gpt_with_loss),
    Net("nano-gpt-training", nano_gpt_training, refused="draws random numbers"),
    Net("flow", flow, samples="mean"),
    Net("vae-drawn", vae(drawn=True), refused="draws random numbers"),
    Net("vae", vae(drawn=False), samples="sum"),
    Net("autoencoder", autoencoder, samples="mean", draws_targets=True),
    Net("point-net", point_net, width=5, samples="mean"),
    Net("deep-sets", deep_sets, width=5, samples="mean", draws_targets=True),
    Net("lstm-tagger", lstm_tagger(packed=False), width=5),
    Net("lstm-tagger-packed", lstm_tagger(packed=True), width=3),
    Net("lstm-tutorial", tutorial_tagger, samples="mean"),
    Net("experts", experts, samples="mean", draws_targets=True),
    Net("einsum-attention", einsum_attention, samples="mean"),
    Net("siren", siren, samples="mean", draws_targets=True),
    Net("neural-ode", neural_ode, samples="mean", draws_targets=True),
    Net("lora", lora, width=5, samples="mean", draws_targets=True),
    Net("contrastive", contrastive),
    Net("dueling", dueling, samples="mean"),
]
