"""Products row by row: what becomes of them when memory ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.criterion import SquaredError
from pipeline.layout import Layout
from pipeline.objective.batch import Batch
from pipeline.objective.objective import Params, objective_of
from pipeline.strategy import HVP, KhatriRao, Strategy, Triangular, hvp
from pipeline.strategy.blocks import assemble


class Curved(nn.Module):
    """The first weight does not enter linearly, so that khatri_rao takes products for its rows too."""

    def __init__(self) -> None:
        super().__init__()
        self.cubic = nn.Parameter(torch.randn(2, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.cubic**3))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("can't allocate memory")])
@pytest.mark.parametrize("strategy", [HVP(), HVP(chunk_size=5), KhatriRao()])
def test_out_of_memory_halves_the_rows(
    strategy: Strategy, error: RuntimeError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    objective, params = objective_of(Curved().double(), SquaredError())
    batch = Batch(torch.randn(6, 2).double(), torch.randn(6, 2).double())
    num_weights = Layout.of(params).num_parameters
    expected = assemble(Triangular().blocks(objective, params, batch), num_weights)
    whole, sizes = hvp._tangents, []

    def limited(params: Params, together: list[hvp.Rows]) -> Params:
        sizes.append(sum(rows.number for rows in together))
        if sizes[-1] > 3:
            raise error
        return whole(params, together)

    def no_room(*_: object) -> None:
        raise error

    monkeypatch.setattr(hvp, "_tangents", limited)
    monkeypatch.setattr(hvp, "_all_rows", no_room)
    found = assemble(strategy.blocks(objective, params, batch), num_weights)
    assert (found - expected).abs().max() <= 1e-14 * expected.abs().max()
    assert max(sizes) > 3
    assert any("going on with" in message for message in caplog.messages)


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(hvp, "_tangents", no_room)
    monkeypatch.setattr(hvp, "_all_rows", no_room)
    objective, params = objective_of(nn.Linear(2, 2), SquaredError())
    with pytest.raises(torch.OutOfMemoryError):
        list(HVP().blocks(objective, params, Batch(torch.randn(3, 2), torch.randn(3, 2))))
