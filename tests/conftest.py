"""For all tests: without it Python's search for garbage takes a fifth of their time.

A million objects are there when all tests are collected (PyTorch, what it imports, ten thousand tests), and stay.
"""

import gc

gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
