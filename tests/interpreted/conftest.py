"""Kernels run by Triton's interpreter, on CPU tensors.

Triton 3.7 multiplies the raw bits of bf16 operands in an interpreted tl.dot, and cuts float32 off where it is stored as
bf16. Here operands are widened first, in which every bf16 is exact, and results are rounded to the nearest, as a GPU
does both; the kernels stay as they are.

Triton 3.6's interpreter takes arrays of one element for numbers, which numpy refuses from 2.4 on: use an older one.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder


@pytest.fixture(autouse=True, scope="session")
def _exact_bf16():
    plain_dot, plain_trunc = Builder.create_dot, Builder.create_fp_trunc

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return plain_dot(self, widened(a), widened(b), *rest)

    def create_fp_trunc(self, value, dtype):
        if (value.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return plain_trunc(self, value, dtype)
        rounded = torch.from_numpy(np.array(value.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    Builder.create_dot, Builder.create_fp_trunc = create_dot, create_fp_trunc
    yield
    Builder.create_dot, Builder.create_fp_trunc = plain_dot, plain_trunc
