"""Processes that share the tests: each compiles what it runs, and loses only its own part to a broken CUDA context.

Each is told which part is its own by `--shard 2/8`.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """Else a result that no kernel wrote may be the right one that another left there."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def pytest_addoption(parser):
    parser.addoption("--shard", default="0/1", help="which part of the tests to run, counted from 0, and of how many")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    own, count = map(int, config.getoption("--shard", "0/1").split("/"))
    items[:] = items[own::count]
