"""Nets as they stand in public code, that need PyTorch alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.problem import Net, Problem, labels


class GraphConvolution(nn.Module):
    """Kipf and Welling's layer on an edge list: Â X W, Â with self-loops and normalized by the degrees."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        loops = torch.arange(x.size(0), device=x.device)
        source, target = torch.cat([edge_index, torch.stack([loops, loops])], 1)
        degree = torch.zeros(x.size(0), dtype=x.dtype, device=x.device).scatter_add_(
            0, target, torch.ones_like(target, dtype=x.dtype)
        )
        norm = degree[source].rsqrt() * degree[target].rsqrt()
        x = torch.mm(x, self.weight)
        out = torch.zeros_like(x).index_add_(0, target, x[source] * norm[:, None])
        return out + self.bias


class GCN(nn.Module):
    """Classes of the nodes of one graph."""

    def __init__(self, num_inputs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = GraphConvolution(num_inputs, width)
        self.conv2 = GraphConvolution(width, num_classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


def random_edges(num_nodes: int, num_edges: int) -> Tensor:
    return torch.randint(num_nodes, (2, num_edges))


def graph_net(n: int, width: int) -> Problem:
    num_nodes = 4 * n
    model = GCN(12, 7 * width, 3)
    inputs = (torch.randn(num_nodes, 12), random_edges(num_nodes, 3 * num_nodes))
    return Problem(model, nn.CrossEntropyLoss(), inputs, labels(num_nodes, 3))


def masked_graph_net(n: int, width: int) -> Problem:
    """Cora's training loop: the loss is taken on the labelled nodes alone."""
    model, _, inputs, targets, *_ = graph_net(n, width)
    mask = torch.rand(len(targets)) < 0.5
    mask[0] = True

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(outputs, 1)[mask], targets[mask])

    return Problem(model, criterion, inputs, targets)


class MessagePassing(nn.Module):
    """Messages MLP([x_i, x_j, e_ij]) added up at each node, graphs pooled by their mean: (num_graphs, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.message = nn.Sequential(nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Linear(width, width))
        self.update = nn.GRUCell(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:
        h = self.embed(x)
        source, target = edge_index
        for _ in range(2):
            messages = self.message(torch.cat([h[target], h[source], edge_attr], -1))
            total = torch.zeros_like(h).scatter_add_(0, target[:, None].expand_as(messages), messages)
            h = self.norm(self.update(total, h))
        num_graphs = int(batch.max()) + 1
        sums = h.new_zeros(num_graphs, h.size(1)).index_add(0, batch, h)
        counts = torch.bincount(batch, minlength=num_graphs).to(h.dtype)
        return self.head(sums / counts[:, None])


def graphs(n: int) -> dict[str, Tensor]:
    """Graphs of three to six nodes, as one: nodes, edges and the graph of each node."""
    sizes = [3 + i % 4 for i in range(n)]
    starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
    edges = torch.cat(
        [random_edges(size, 2 * size) + start for size, start in zip(sizes, starts, strict=True)], 1
    )
    batch = torch.repeat_interleave(torch.arange(n), torch.tensor(sizes))
    return {
        "x": torch.randn(sum(sizes), 5),
        "edge_index": edges,
        "edge_attr": torch.randn(edges.size(1), 2),
        "batch": batch,
    }


def batched_graphs(n: int, width: int) -> Problem:
    return Problem(MessagePassing(2 * width), nn.MSELoss(), graphs(n), torch.randn(n, 1))


@dataclass
class Data:
    """An object of tensors, as graph libraries hand it to a model."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor


class OnData(MessagePassing):
    def forward(self, data: Data) -> Tensor:  # type: ignore[override]
        return super().forward(data.x, data.edge_index, data.edge_attr, data.batch)


def graph_object(n: int, width: int) -> Problem:
    return Problem(OnData(2 * width), nn.MSELoss(), Data(**graphs(n)), torch.randn(n, 1))


class OnDict(nn.Module):
    """`forward(batch)` with a dict, as in many training loops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(9, width), nn.Embedding(11, width)
        self.mlp = nn.Sequential(nn.Linear(2 * width + 3, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pair = torch.cat([self.user(batch["user"]), self.item(batch["item"]), batch["context"]], -1)
        return {"logit": self.mlp(pair).squeeze(-1), "pair": pair}


def on_dict(n: int, width: int) -> Problem:
    inputs = {
        "user": torch.randint(9, (n,)),
        "item": torch.randint(11, (n,)),
        "context": torch.randn(n, 3),
    }

    def criterion(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs["logit"], targets)

    return Problem(
        OnDict(2 * width), criterion, (inputs,), torch.rand(n).round(), lambda model, inputs: model(*inputs)
    )


class DoubleConv(nn.Sequential):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(
            nn.Conv2d(num_inputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Down, up by a transposed convolution, a skip connection, classes of pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.down = DoubleConv(1, width), DoubleConv(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave, self.head = DoubleConv(2 * width, width), nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.enter(images)
        x = self.up(self.down(F.max_pool2d(skip, 2)))
        x = F.pad(x, [0, skip.size(3) - x.size(3), 0, skip.size(2) - x.size(2)])
        return self.head(self.leave(torch.cat([skip, x], 1)))


def unet(n: int, width: int) -> Problem:
    return Problem(
        UNet(width // 2).eval(), nn.CrossEntropyLoss(), torch.randn(n, 1, 6, 6), labels(n, 2, 6, 6)
    )


class BasicBlock(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), nn.BatchNorm2d(num_outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """The usual ResNet for CIFAR, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2 = BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2)
        self.linear = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def resnet(training: bool):
    def make(n: int, width: int) -> Problem:
        model = ResNet(width // 2).train(training)
        return Problem(model, nn.CrossEntropyLoss(), torch.randn(n, 3, 8, 8), labels(n, 3))

    return make


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


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.num_heads, self.fused = num_heads, fused
        if not fused:
            mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
            self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (part.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2) for part in (q, k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class GPTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, num_heads, block_size, fused)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    """As in nanoGPT: the head is the embedding, logits and loss are returned together."""

    def __init__(self, width: int, vocabulary: int, block_size: int, fused: bool) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(block_size, width),
                "h": nn.ModuleList([GPTBlock(width, 2, block_size, fused)]),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss


def nano_gpt(n: int, width: int) -> Problem:
    tokens = torch.randint(13, (n, 7))

    def criterion(outputs: tuple[Tensor, None], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0].reshape(-1, 13), targets.reshape(-1))

    return Problem(GPT(2 * width, 13, 8, True).eval(), criterion, tokens[:, :-1], tokens[:, 1:])


def nano_gpt_with_loss(n: int, width: int) -> Problem:
    tokens = torch.randint(13, (n, 7))
    model = GPT(2 * width, 13, 8, False).eval()
    inputs = {"idx": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    return Problem(model, lambda outputs, _: outputs[1], inputs, None)


def nano_gpt_training(n: int, width: int) -> Problem:
    return nano_gpt_with_loss(n, width)._replace(model=GPT(2 * width, 13, 8, False))


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


class LSTMTagger(nn.Module):
    """Sentences padded to one length; packed for the LSTM, as public code does."""

    def __init__(self, width: int, packed: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.hidden2tag = nn.Linear(2 * width, 3)
        self.packed = packed

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = self.lstm(x)
        if self.packed:
            x, _ = nn.utils.rnn.pad_packed_sequence(x, batch_first=True, total_length=tokens.size(1))
        return self.hidden2tag(x)


def lstm_tagger(packed: bool):
    def make(n: int, width: int) -> Problem:
        lengths = torch.randint(2, 6, (n,))
        lengths[0] = 5
        tokens = torch.randint(1, 12, (n, 5)) * (torch.arange(5) < lengths[:, None])
        tags = labels(n, 3, 5).masked_fill(tokens == 0, -100)

        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs.view(-1, 3), targets.view(-1), ignore_index=-100)

        return Problem(LSTMTagger(width, packed), criterion, (tokens, lengths), tags)

    return make


class TutorialTagger(nn.Module):
    """One sentence at a time: the words are the first dimension, and the LSTM carries each to the next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(12, width)
        self.lstm = nn.LSTM(width, width)
        self.hidden2tag = nn.Linear(width, 3)

    def forward(self, sentence: Tensor) -> Tensor:
        embeds = self.word_embeddings(sentence)
        lstm_out, _ = self.lstm(embeds.view(len(sentence), 1, -1))
        return F.log_softmax(self.hidden2tag(lstm_out.view(len(sentence), -1)), dim=1)


def tutorial_tagger(n: int, width: int) -> Problem:
    return Problem(TutorialTagger(2 * width), nn.NLLLoss(), torch.randint(12, (n,)), labels(n, 3))


class Experts(nn.Module):
    """The two best of four experts for each token, gathered and put back as Mixtral's reference code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(3, width), nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
                for _ in range(4)
            ]
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        tokens = h.view(-1, h.shape[-1])
        weights, chosen = torch.topk(self.gate(tokens).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        results = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            index, nth = torch.where(chosen == i)
            results[index] += weights[index, nth, None] * expert(tokens[index])
        return self.head(results.view_as(h).mean(1))


def experts(n: int, width: int) -> Problem:
    return Problem(Experts(2 * width), nn.MSELoss(), torch.randn(n, 4, 3), torch.randn(n, 2))


class EinsumAttention(nn.Module):
    """Weights of heads as tensors of three dimensions, all maps by einsum, as in code written after JAX."""

    def __init__(self, width: int, num_heads: int = 2) -> None:
        super().__init__()
        size = width // num_heads
        self.embed = nn.Parameter(torch.randn(9, width) / 3)
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, num_heads, size) / width**0.5) for _ in range(3)
        )
        self.out = nn.Parameter(torch.randn(num_heads, size, width) / width**0.5)
        self.scale = nn.Parameter(torch.ones(width))
        self.up, self.down = (
            nn.Parameter(torch.randn(a, b) / a**0.5) for a, b in ((width, 2 * width), (2 * width, width))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens]
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = (torch.einsum("btd,dhk->bthk", h, w) for w in (self.query, self.key, self.value))
        scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v)
        x = x + torch.einsum("bthk,hkd->btd", mixed, self.out)
        x = x + F.gelu(x @ self.up) @ self.down
        return torch.einsum("btd,vd->btv", x, self.embed)


def einsum_attention(n: int, width: int) -> Problem:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets)

    tokens = torch.randint(9, (n, 6))
    return Problem(EinsumAttention(2 * width), criterion, tokens[:, :-1], tokens[:, 1:])


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
