"""Bits of every operator's ``flags``, on which the choice of a kernel depends besides the problem."""

import torch

STRICT = 1  # only kernels with direct convolution's numerics
DETERMINISTIC = 2  # the same bits from every run
TF32 = 4  # float32 may be multiplied as TF32
UNALIGNED = 8  # set where a kernel is chosen: an operand does not begin at a multiple of 16 bytes
ONLY = {"cuda": 16, "triton": 32}  # kernels of that backend alone
GPU = 8  # set as UNALIGNED is, from this bit on: the index of the operands' GPU, plus 1; 0 for the current one


def gpu_of(flags: int) -> int:
    """The index of the GPU that a kernel is chosen for, where there is one."""
    return (flags >> GPU) - 1 if flags >> GPU else torch.cuda.current_device()
