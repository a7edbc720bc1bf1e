"""What a product costs, in matrix products and convolutions counted exactly: in gradients of the same objective."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.objective import Batch, objective_of
from pipeline.operator.central_difference import CentralDifference
from pipeline.operator.forward_over_reverse import ForwardOverReverse
from pipeline.operator.reverse_over_reverse import ReverseOverReverse


def mlp():
    layers = nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)
    return nn.Sequential(*layers), torch.randn(8, 20)


def convolutions():
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), torch.randn(
        8, 2, 6, 6
    )


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(8, 5, 8)


def flop(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


WAYS = {  # the way, vectors at once, whether the graph is there, and the most gradients a vector
    "kept": (ReverseOverReverse(), 1, True, 2.3),
    "fresh": (ReverseOverReverse(is_kept=False), 1, False, 3.3),
    "block": (ForwardOverReverse(8), 8, True, 2.3),
    "alone": (ForwardOverReverse(1), 1, True, 3.3),
    "differences": (CentralDifference(), 1, True, 2.01),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("net", [mlp, convolutions, transformer])
def test_a_product_costs_so_many_gradients(net, name):
    torch.manual_seed(0)
    (model, inputs), (way, width, is_there, most) = net(), WAYS[name]
    targets, criterion = torch.randint(3, (8,)), nn.CrossEntropyLoss()

    objective, params = objective_of(model, criterion)
    batch = Batch.of(inputs, targets)
    vectors = torch.randn(sum(value.numel() for value in params.values()), width)
    product = way.product(objective, params, batch)
    counted = flop(lambda: (product if is_there else way.product(objective, params, batch))(vectors))
    assert 0.9 <= counted / width / flop(lambda: objective.gradient(params, batch)) <= most
