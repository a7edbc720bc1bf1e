from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from pipeline.model.activation import activation_named
from pipeline.model.shapes import sample_shape
from pipeline.validation import check_bool, check_counts


class MLP(nn.Sequential):
    """A multilayer perceptron: affine layers fc1, fc2, ... with an activation between any two.

    Samples of any shape are flattened. `hidden_sizes=[]` is the linear model.
    P = Σ_l h_l (h_{l-1} + 1), where h_0 is the size of a sample and the last h the number of outputs:
    64-32-10 has 2,410 weights. Without `bias` the + 1 falls away.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        hidden_sizes: Sequence[int] = (32,),
        activation: str = "tanh",
        bias: bool = True,
    ) -> None:
        shape = sample_shape(input_shape, num_outputs)
        check_bool("model.bias", bias)
        sizes = (prod(shape), *check_counts("model.hidden_sizes", hidden_sizes), num_outputs)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{i}"] = nn.Linear(fan_in, fan_out, bias=bias)
            layers[f"activation{i}"] = activation_named(activation)
        layers.popitem()
        super().__init__(layers)
