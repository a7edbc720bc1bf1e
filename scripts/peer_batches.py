"""How other libraries weight batches: the error of a product with the Hessian of the loss over all samples.

`python scripts/peer_batches.py` needs curvlinops-for-pytorch, hessian-eigenthings and pyhessian; what is not installed
is left out. docs/comparison.md has the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import pipeline

Batches = list[tuple[Tensor, Tensor]]
Product = Callable[[nn.Module, nn.Module, Batches, Tensor], Tensor]
IGNORED = -100  # the label that cross-entropy leaves out


def this_one(model: nn.Module, loss: nn.Module, batches: Batches, vector: Tensor) -> Tensor:
    return pipeline.curvature_operator(model, loss, batches) @ vector


def curvlinops(model: nn.Module, loss: nn.Module, batches: Batches, vector: Tensor) -> Tensor:
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(model, loss, list(model.parameters()), batches) @ vector


def eigenthings(model: nn.Module, loss: nn.Module, batches: Batches, vector: Tensor) -> Tensor:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    return HessianOperator(model, batches, supervised_loss(loss)) @ vector


def pyhessian(model: nn.Module, loss: nn.Module, batches: Batches, vector: Tensor) -> Tensor:
    from pyhessian import hessian

    tool = hessian(model, loss, data=batches[0], cuda=False)
    tool.data = batches  # its constructor takes no DataLoader before a backward pass has been made
    sizes = [weight.numel() for weight in model.parameters()]
    parts = [
        part.view_as(weight) for part, weight in zip(vector.split(sizes), model.parameters(), strict=True)
    ]
    product = tool.dataloader_hv_product(parts)[1]
    return torch.cat([part.reshape(-1) for part in product])


PRODUCTS: dict[str, Product] = {
    "this one": this_one,
    "curvlinops": curvlinops,
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
}


def cases() -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """A name, where the samples are divided, inputs and labels."""
    inputs, labels = torch.randn(10, 3), torch.randint(2, (10,))
    partly = torch.cat([torch.full((3,), IGNORED), labels[3:]])
    yield "5 and 5", 5, inputs, labels
    yield "8 and 2", 8, inputs, labels
    yield "5 and 5, three labels ignored", 5, inputs, partly


def main() -> int:
    warnings.simplefilter("ignore")  # of backward(create_graph=True), in PyHessian
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model, loss = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.CrossEntropyLoss()
    for case, cut, inputs, labels in cases():
        exact = torch.func.hessian(
            lambda weights, x=inputs, y=labels: loss(torch.func.functional_call(model, weights, (x,)), y)
        )(dict(model.named_parameters()))
        sizes = {name: weight.numel() for name, weight in model.named_parameters()}
        rows = [torch.cat([exact[a][b].reshape(m, n) for b, n in sizes.items()], 1) for a, m in sizes.items()]
        vector = torch.randn(sum(sizes.values()))
        expected = torch.cat(rows) @ vector
        batches = [(inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])]
        for name, product in PRODUCTS.items():
            try:
                found = product(model, loss, batches, vector)
            except ImportError as error:
                print(f"{case:<32} {name:<20} left out: {error}")
                continue
            print(f"{case:<32} {name:<20} {float((found - expected).norm() / expected.norm()):.2g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
