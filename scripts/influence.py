"""Which training samples harm the test loss: digits, of which some have a wrong label, found by influence functions.

    python scripts/influence.py [--flipped 0.05] [--damping 0.05] [--seed 0]

A sample that is left out moves the weights by (G + damping)⁻¹ ∇ℓ / N, and so the loss of the test samples by
∇L_testᵀ (G + damping)⁻¹ ∇ℓ / N (Koh and Liang 2017, arXiv:1703.04730), with the GGN G of all training samples in place
of the Hessian. One system is solved for all samples, by products with G, which is never formed. How many of the samples
that harm most have a wrong label is printed, and how many would by chance.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import pipeline


def samples(share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training images, their labels as told, which of them are wrong, and test images with their labels."""
    images, labels = (torch.from_numpy(values) for values in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    images, labels = images[order].double() / 16, labels[order].long()
    train, test = slice(0, 1400), slice(1400, None)
    told = labels[train].clone()
    wrong = torch.zeros(len(told), dtype=torch.bool)
    wrong[torch.randperm(len(told), generator=generator)[: round(share * len(told))]] = True
    told[wrong] = (told[wrong] + torch.randint(1, 10, (int(wrong.sum()),), generator=generator)) % 10
    return images[train], told, wrong, images[test], labels[test]


def trained(images: Tensor, labels: Tensor, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net


def influences(
    net: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], damping: float
) -> tuple[Tensor, int]:
    """By how much the test loss would change without each training sample, times N; and the products that it took."""
    criterion = nn.CrossEntropyLoss()
    ggn = pipeline.curvature_operator(net, criterion, train, matrix="ggn")
    _, slope = pipeline.curvature_operator(net, criterion, test, verify=False).loss_and_gradient()
    solution = pipeline.solve(ggn, slope, damping=damping)
    layout = ggn.layout
    along = {
        name: torch.as_tensor(solution.x)[span].reshape(shape)
        for (name, span), shape in zip(layout.slices().items(), layout.shapes, strict=True)
    }
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return criterion(functional_call(net, params, (image[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, *train)
    change = sum((each[name] * along[name]).flatten(1).sum(1) for name in weights)
    return torch.as_tensor(change), ggn.num_products


def main() -> None:
    parser = argparse.ArgumentParser(description="Harmful training samples by influence functions.")
    parser.add_argument("--flipped", type=float, default=0.05, help="share of labels that are wrong")
    parser.add_argument("--damping", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=64, help="hidden units")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, told, wrong, test_images, test_labels = samples(options.flipped, options.seed)
    net = trained(images, told, options.width, options.seed)
    start = time.perf_counter()
    change, num_products = influences(net, (images, told), (test_images, test_labels), options.damping)
    seconds, number = time.perf_counter() - start, int(wrong.sum())
    first = change.argsort()[:number]  # without them the test loss would fall most
    found = int(wrong[first].sum())
    size = sum(value.numel() for value in net.parameters())
    print(f"{len(told)} training samples, {number} with a wrong label; P = {size:,} weights")
    print(f"{num_products} products with the GGN, {seconds:.1f} s")
    print(f"of the {number} most harmful samples {found} have a wrong label ({found / number:.0%}); ", end="")
    print(f"by chance {number**2 / len(told):.0f} would ({number / len(told):.0%})")


if __name__ == "__main__":
    main()
