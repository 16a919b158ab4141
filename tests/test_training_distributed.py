"""Two processes that torchrun starts compute what one process computes on all of the images."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnkern import models
from cnnkern.training import distributed
from cnnkern.training.model_parallel import Gather, split
from cnnkern.training.sync_batch_norm import merge

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """results(what): what both processes wrote, by rank."""
    out = tmp_path_factory.mktemp("two_processes")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*torchrun, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    return lambda what: [torch.load(out / f"{what}-{rank}.pt", weights_only=True) for rank in (0, 1)]


# Of float32's numbers near 100 few digits of a deviation of 0.05 are left.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_batch_norm_is_that_of_all_images(script, results, dtype, tolerance):
    x, dy = script["images_for_batch_norm"]()
    whole = script["results_of_batch_norm"](script["batch_norm"](torch.float64), x, dy)
    for number, (first, second, want) in enumerate(zip(*results(dtype), whole, strict=True)):
        if number in (0, 1, 7):  # y, dx and y in eval mode: each has those of its images
            got = torch.cat([first, second])
        elif number in (2, 3):  # the parameters' gradients, which DistributedDataParallel puts together
            got = first + second
        else:  # the running statistics
            assert torch.equal(first, second)
            got = first
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=30 * tolerance)


def test_parts_without_images_count_for_nothing():
    count, mean, m2 = (torch.tensor([float(value)]) for value in (4, 7, 3))
    part, nothing = torch.stack([count, mean, m2]), torch.zeros(3, 1)
    for parts in ([part, nothing], [nothing, part], [nothing, nothing, part]):
        assert torch.equal(torch.stack(merge(torch.stack(parts))), part)


def test_the_loss_curve_is_that_of_one_process(script, results):
    history, weights, averaged = script["results_of_training"]()
    (first, *first_weights), (second, *second_weights) = results("training")
    for part, whole in zip(first_weights, (weights, averaged), strict=True):
        for name, value in whole.items():
            torch.testing.assert_close(
                part[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    torch.testing.assert_close(first, history, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(first_weights, second_weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_of_two_processes_goes_on_bit_for_bit(results):
    for (_, weights, _), resumed in zip(results("training"), results("resumed"), strict=True):
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_network_that_draws_its_layers_is_for_one_process(monkeypatch):
    with torch.device("meta"):
        model = models.create("fractalnet20")
        assert distributed.parallel(model) is model
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        with pytest.raises(ValueError, match="with drop_path=0 and global_drop_path=0"):
            distributed.parallel(model)


def test_the_model_of_alexnet_is_halved():
    with torch.device("meta"):
        model = models.create("alexnet_two_gpu")
        layers = [*model.features, model.avgpool, nn.Flatten(), *model.classifier]
        halves = [split(layers, rank) for rank in (0, 1)]
    for half in halves:
        assert 2 * sum(tensor.numel() for tensor in half.parameters()) == models.cost("alexnet_two_gpu").parameters
        # Before conv3 and the three linear layers, and of the scores.
        assert sum(isinstance(layer, Gather) for layer in half) == 5


def test_alexnet_on_two_processes_is_the_grouped_one(script, results):
    logits, gradients = script["results_of_alexnet"](script["grouped_alexnet"]())
    halves = results("alexnet")
    for half_logits, _ in halves:
        torch.testing.assert_close(half_logits, logits, rtol=1e-9, atol=1e-9)
    for whole, *parts in zip(gradients, *(half for _, half in halves), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-9)
