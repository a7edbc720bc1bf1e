"""Laws at reduced size, measured once each, and a program that is wrong."""

import pytest


@pytest.fixture
def wrong(monkeypatch):
    """The matrices of a law with an error of a thousandth of the largest entry in one pair of entries."""

    def spoil(module):
        right = module.matrix

        def spoiled(*arguments, **options):
            found = right(*arguments, **options).clone()
            found[0, -1] = found[-1, 0] = found[0, -1] + 1e-3 * found.abs().max()
            return found

        monkeypatch.setattr(module, "matrix", spoiled)

    return spoil
