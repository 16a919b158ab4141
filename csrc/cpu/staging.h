// Operands as kernels take them, NHWC, from tensors of any layout: in place where that is possible, else by a copy to
// scratch memory and, for results, a copy back.
#pragma once

#include "../poison.h"
#include "../tensor.h"
#include "layout.h"
#include "threads.h"

namespace cnnkern::cpu {

inline size_t element_size(DType dtype) { return static_cast<size_t>(kDTypeSizes[static_cast<int>(dtype)]); }

inline int64_t element_count(const int64_t* sizes) { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }

// A fresh dense 4-d tensor.
inline OwnedTensor dense_tensor(const int64_t* sizes, bool channels_last, int32_t torch_dtype) {
  int64_t strides[4];
  dense_strides(sizes, channels_last, strides);
  return empty_strided(4, sizes, strides, torch_dtype);
}

// `pixel_stride` is what nhwc_pixel_stride says of the tensor, or 0 to have it copied all the same.
inline void* stage(const Tensor4& tensor, int64_t pixel_stride, size_t element_size, Scratch slot) {
  if (pixel_stride) return tensor.data;
  void* copy = scratch_bytes(slot, static_cast<size_t>(element_count(tensor.sizes)) * element_size);
  copy_to_nhwc(tensor.data, tensor.sizes, tensor.strides, element_size, copy);
  return copy;
}

// The tensor's elements as dense NHWC.
inline void* stage_dense(const Tensor4& tensor, size_t element_size, Scratch slot) {
  const int64_t pixel_stride = nhwc_pixel_stride(tensor.sizes, tensor.strides);
  return stage(tensor, pixel_stride == tensor.sizes[1] ? pixel_stride : 0, element_size, slot);
}

// A tensor to be returned: a kernel writes dense NHWC to data(), finish() hands the tensor over in its own layout.
class Result {
 public:
  Result(const int64_t* sizes, bool channels_last, int32_t torch_dtype, size_t element_size, Scratch slot)
      : owner_(dense_tensor(sizes, channels_last, torch_dtype)),
        tensor_(read_tensor(owner_.get(), "result")),
        element_size_(element_size),
        slot_(slot),
        in_place_(tensor_.empty() || nhwc_pixel_stride(tensor_.sizes, tensor_.strides)) {
    poison(tensor_.data, static_cast<size_t>(element_count(sizes)) * element_size);
  }

  bool in_place() const { return in_place_; }
  bool empty() const { return tensor_.empty(); }

  void* data() const {
    if (in_place_) return tensor_.data;
    return scratch_bytes(slot_, static_cast<size_t>(element_count(tensor_.sizes)) * element_size_);
  }

  // `written`: what data() returned.
  OwnedTensor finish(const void* written) {
    if (!in_place_) copy_to_nchw(written, tensor_.sizes, element_size_, tensor_.data);
    return std::move(owner_);
  }

 private:
  OwnedTensor owner_;
  Tensor4 tensor_;
  size_t element_size_;
  Scratch slot_;
  bool in_place_;
};

}  // namespace cnnkern::cpu
