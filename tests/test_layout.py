from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.layout import Layout


def test_order_sizes_and_offsets() -> None:
    layout = Layout.of(dict(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False)).named_parameters()))
    assert layout.names == ("0.weight", "0.bias", "1.weight")
    assert layout.shapes == ((5, 3), (5,), (2, 5))
    assert layout.sizes == (15, 5, 10)
    assert layout.offsets == (0, 15, 20, 30)
    assert layout.num_parameters == 30
    assert layout.slices() == {"0.weight": slice(0, 15), "0.bias": slice(15, 20), "1.weight": slice(20, 30)}


def test_arrays_without_dimensions_and_without_entries() -> None:
    layout = Layout.of({"scale": np.float64(1.0), "none": np.zeros((0, 3)), "last": torch.zeros(2)})
    assert layout.shapes == ((), (0, 3), (2,))
    assert layout.offsets == (0, 1, 1, 3)


def test_no_parameters() -> None:
    layout = Layout.of({})
    assert (layout.num_parameters, layout.offsets, layout.slices()) == (0, (0,), {})


def test_slices_cut_the_flat_vector_into_parameters() -> None:
    params = {name: torch.randn(shape) for name, shape in (("a", (2, 3)), ("b", ()), ("c", (4,)))}
    layout = Layout.of(params)
    flat = torch.cat([value.flatten() for value in params.values()])
    for (name, span), shape in zip(layout.slices().items(), layout.shapes, strict=True):
        assert torch.equal(flat[span].reshape(shape), params[name])
