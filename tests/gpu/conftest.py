"""Processes that share the tests: each compiles what it runs, and loses only its own part to a broken CUDA context.

Each is told which part is its own by `--shard 2/8`.
"""

import pytest


def pytest_addoption(parser):
    parser.addoption("--shard", default="0/1", help="which part of the tests to run, counted from 0, and of how many")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    own, count = map(int, config.getoption("--shard", "0/1").split("/"))
    items[:] = items[own::count]
