// How 4-d tensors lie in memory, and the copies that bring them into the kernels' layout and back.
//
// Sizes and strides are those of a torch tensor, four of each in the order n, c, h, w, strides in elements. Weights
// are tensors too: k filters of c maps and r x s taps, for which NHWC is KRSC.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cnnkern::cpu {

// Elements from pixel to pixel if the tensor can be read as NHWC with such a stride and no copy, else 0.
int64_t nhwc_pixel_stride(const int64_t* sizes, const int64_t* strides);

// Whether torch takes these strides for channels_last (Tensor.suggest_memory_format).
bool suggests_channels_last(const int64_t* sizes, const int64_t* strides);

// Whether the tensor is dense NCHW (Tensor.is_contiguous): the strides of dimensions of size 1 say nothing.
bool contiguous(const int64_t* sizes, const int64_t* strides);

// Strides of a dense tensor, as torch.empty gives them for either memory format.
void dense_strides(const int64_t* sizes, bool channels_last, int64_t* strides);

// Copies a tensor of any strides to dense NHWC.
void copy_to_nhwc(const void* source, const int64_t* sizes, const int64_t* strides, size_t element_size, void* target);

// Copies dense NHWC to contiguous NCHW.
void copy_to_nchw(const void* source, const int64_t* sizes, size_t element_size, void* target);

}  // namespace cnnkern::cpu
