"""A program that is wrong, for laws to find out."""

import pytest


@pytest.fixture
def wrong(monkeypatch):
    """Let a law get matrices with an error; by default of a thousandth of the largest entry, in one pair of entries."""

    def one_pair(matrix):
        matrix[0, -1] = matrix[-1, 0] = matrix[0, -1] + 1e-3 * matrix.abs().max()
        return matrix

    def spoil(module, change=one_pair):
        right = module.matrix
        monkeypatch.setattr(
            module, "matrix", lambda *args, **options: change(right(*args, **options).clone())
        )

    return spoil


@pytest.fixture
def held():
    """Whether each check of an outcome holds, by its key."""
    return lambda outcome: {check.key: check.held for check in outcome.checks}
