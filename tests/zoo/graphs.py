"""Graph nets, and nets on dictionaries, as they stand in public code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.problem import Problem, labels


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
