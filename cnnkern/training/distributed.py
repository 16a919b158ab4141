"""One run on several processes, each with its part of every batch.

``torchrun --no-python --nproc-per-node 2 cnnkern train ...`` starts them. Gradients are averaged by torch's
DistributedDataParallel, batch statistics are those of the whole batch, and a sampler deals every batch out: what is
computed is what one process computes with the same batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cnnkern.models.fractalnet import FractalNet
from cnnkern.training.sync_batch_norm import convert_sync_batch_norm


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group() -> Iterator[torch.device]:
    """The processes that torchrun started, joined while the context lasts; the device of this one.

    Without torchrun there is one process, and nothing to join.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module) -> nn.Module:
    """The model as this process's part of a run: itself where there is one process.

    Its batch normalisation is converted in place, and the weights become those of rank 0. All processes have to run the
    same layers: ValueError for a FractalNet with drop-path, which draws those that run.
    """
    if world_size() == 1:
        return model
    if isinstance(model, FractalNet) and (model.drop_path or model.global_drop_path):
        raise ValueError("it draws which layers run: several processes need it with drop_path=0 and global_drop_path=0")
    return DistributedDataParallel(convert_sync_batch_norm(model))


def batches(dataset: Dataset, batch: int | None, seed: int, epoch: int, workers: int = 0) -> DataLoader[list[Tensor]]:
    """This process's parts of the batches of one epoch, in an order that follows from the seed and the epoch.

    ``batch`` counts the images of all processes; None is all of the set. Raises ValueError where it does not divide
    among them. Where the set does not, the sampler deals the first images out again, so that all have as many.
    """
    total = len(dataset)  # type: ignore[arg-type]
    processes = world_size()
    if batch is not None and batch % processes:
        raise ValueError(f"a batch of {batch} does not divide among {processes} processes")
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, processes, rank(), shuffle=True, seed=seed)
    sampler.set_epoch(epoch)
    part = (total + processes - 1 if batch is None else batch) // processes
    return DataLoader(dataset, part, sampler=sampler, num_workers=workers)


def share(dataset: Dataset, batch: int, workers: int = 0) -> DataLoader[list[Tensor]]:
    """This process's images for an evaluation, every image with one process."""
    mine = list(range(rank(), len(dataset), world_size()))  # type: ignore[arg-type]
    return DataLoader(dataset, batch, sampler=mine, num_workers=workers)


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
