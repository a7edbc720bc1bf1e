"""How the matrix is computed: each strategy is a generator of blocks of the lower triangle.

To add one: a file here with a frozen dataclass that has `blocks`, `cost` and `memory`, and `tolerance` if it is not
exact to rounding; its name in `STRATEGIES`, and `conf/strategy/<name>.yaml`. The tests find it there and hold it to
every case. Where no matrix is computed, `WITHOUT_MATRIX` holds the choice.
"""

from __future__ import annotations

from pipeline.strategy.attempt import LOOK, Failures, blocks_by, choices_of, refusal
from pipeline.strategy.auto import Auto, log_choice, with_reasons
from pipeline.strategy.autograd import Autograd
from pipeline.strategy.block_filter import BlockFilter, all_blocks
from pipeline.strategy.blocks import Block, assemble, check_finite
from pipeline.strategy.forward_mode import directional_derivative
from pipeline.strategy.func import Func
from pipeline.strategy.gram import Gram
from pipeline.strategy.hvp import HVP, count_numbers
from pipeline.strategy.khatri_rao import KhatriRao
from pipeline.strategy.khatri_rao.gram import GramMatrix, gram_matrix
from pipeline.strategy.matrix_free import MatrixFree
from pipeline.strategy.per_sample import hessians_of_samples
from pipeline.strategy.protocol import Approximate, Cost, Strategy, tolerance_of
from pipeline.strategy.triangular import Triangular

STRATEGIES: dict[str, type[Strategy]] = {
    "auto": Auto,
    "autograd": Autograd,
    "triangular": Triangular,
    "func": Func,
    "hvp": HVP,
    "khatri_rao": KhatriRao,
}
WITHOUT_MATRIX: dict[str, type[MatrixFree | Gram]] = {"matrix_free": MatrixFree, "gram": Gram}
"""Choices of the same group that compute no matrix: spectra alone."""
