"""A pooling window, and the output-size formula of pooling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A pooling window; pairs are (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def output_size(self, size: int, axis: int) -> int:
        """torch's number of windows along an axis: in ceil_mode a last one is added if it starts inside the image."""
        stride, pad = self.stride[axis], self.padding[axis]
        slack = size + 2 * pad - self.extent(axis)
        if slack < 0:
            return 0
        windows = (slack + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        return windows - 1 if self.ceil_mode and (windows - 1) * stride >= size + pad else windows

    def extent(self, axis: int) -> int:
        """Pixels from the first tap to the last."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1
