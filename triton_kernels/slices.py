"""Weight gradients over a split grid: each split of the pixels writes a float32 slice, and a second kernel adds them.

They are added in order, so every run gives the same bits; there are no atomics. Bound: the slices, written and read.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.operands import Operands
from cnnkern.triton_kernels.launch import Config, Launch, cdiv

_BLOCK = 1024


@triton.jit
def add_slices_kernel(slices, out, count, splits, BLOCK: tl.constexpr):
    """out[i] = the sum over splits, in order, of slices[split][i]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    slice_ = slices + i
    for _ in range(splits):
        total += tl.load(slice_, mask=i < count, other=0.0)
        slice_ += count
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < count)


def slices_of(o: Operands, splits: int) -> dict[str, Tensor | None]:
    """The arguments ``slices`` [splits, elements of w] and ``bias_slices`` [splits, K], None without dbias."""

    def empty(count: int) -> Tensor:
        return torch.empty(splits, count, dtype=torch.float32, device=o.w.device)

    return {"slices": empty(o.w.numel()), "bias_slices": None if o.dbias is None else empty(o.w.shape[0])}


def added(launch: Launch, o: Operands) -> list[Launch]:
    """The launch that writes those slices, and what adds them into w and dbias."""
    pairs = ((launch.arguments["slices"], o.w), (launch.arguments["bias_slices"], o.dbias))
    return [launch, *(_add(slices, out) for slices, out in pairs if slices is not None)]


def _add(slices: Tensor, out: Any) -> Launch:
    splits, count = slices.shape
    arguments = {"slices": slices, "out": out, "count": count, "splits": splits, "BLOCK": _BLOCK}
    return Launch(add_slices_kernel, (cdiv(count, _BLOCK),), arguments, Config((_BLOCK,)))
