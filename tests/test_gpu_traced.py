"""torch.compile of calls on CUDA tensors, without a GPU: on fake ones, which have a device and no memory."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import cnnkern
from cnnkern import backends, functional

W = (24, 16, 3, 3)
CALLS = {
    "conv2d_fprop": lambda x, w: functional.conv2d(x, w, padding=1),
    "conv2d_shuffled": lambda x, w: functional.shuffled_conv2d(x, w, padding=1, shuffle=2),
    "conv2d_max_pool2d": lambda x, w: functional.conv2d_max_pool2d(x, w, pool_size=2, pool_stride=2, pool_padding=0),
    "channel_shuffle": lambda x, w: functional.channel_shuffle(x, 4),
    "max_pool2d": lambda x, w: functional.max_pool2d(x, 3, 2),
    "global_avg_pool2d": lambda x, w: functional.global_avg_pool2d(x),
}


@pytest.mark.parametrize("operator", CALLS)
def test_a_call_is_one_operator_of_one_graph(operator, monkeypatch):
    """What asks for packages, drivers and torch's settings is not traced: a graph would break at every layer."""
    monkeypatch.setattr(backends, "_why_no_gpu", lambda device: "")
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph

    with FakeTensorMode(), torch.no_grad(), cnnkern.use(fallback="raise"):
        x, w = torch.empty(2, 16, 9, 9, device="cuda"), torch.empty(W, device="cuda")
        y = torch.compile(CALLS[operator], backend=backend, fullgraph=True)(x, w)
    assert y.is_cuda
    (graph,) = found
    assert [str(node.target) for node in graph.graph.nodes].count(f"cnnkern.{operator}.default") == 1
