"""Bits of every operator's ``flags``, on which the choice of a kernel depends besides the problem."""

STRICT = 1  # only kernels with direct convolution's numerics
DETERMINISTIC = 2  # the same bits from every run
TF32 = 4  # float32 may be multiplied as TF32
UNALIGNED = 8  # set where a kernel is chosen: an operand does not begin at a multiple of 16 bytes
ONLY = {"cuda": 16, "triton": 32}  # kernels of that backend alone
