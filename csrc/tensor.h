// Tensors through LibTorch's C interface, and the boxed arguments of an op.
//
// torch::stable::Tensor shares ownership through an allocation of its own, and TORCH_BOX turns every list and string
// into an allocated copy (of which it loses the string's, torch 2.13); a call on a small image costs less than that.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "conv_problem.h"

namespace cnnkern {

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

// A failing call has already said why on stderr, where torch reports what the C interface cannot carry.
#define CNNKERN_TORCH(call) \
  if (call) throw std::runtime_error("torch failed in " #call)

struct DeleteTensor {
  void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// What is read of a 4-d tensor, once. Borrowed from its handle.
struct Tensor4 {
  const int64_t* sizes = nullptr;    // n, c, h, w
  const int64_t* strides = nullptr;  // elements
  void* data = nullptr;              // written only where the tensor is an op's result
  int32_t torch_dtype = 0;

  bool empty() const { return !(sizes[0] && sizes[1] && sizes[2] && sizes[3]); }
};

inline int32_t dtype_code(AtenTensorHandle handle) {
  int32_t code = 0;
  CNNKERN_TORCH(aoti_torch_get_dtype(handle, &code));
  return code;
}

inline Tensor4 read_tensor(AtenTensorHandle handle, const char* name) {
  Tensor4 tensor;
  int64_t dim = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  const void* data = nullptr;
  CNNKERN_TORCH(aoti_torch_get_dim(handle, &dim));
  if (dim != 4) fail(std::string(name) + " has " + std::to_string(dim) + " dimensions where 4 are expected");
  CNNKERN_TORCH(aoti_torch_get_sizes(handle, &sizes));
  CNNKERN_TORCH(aoti_torch_get_strides(handle, &strides));
  CNNKERN_TORCH(torch_get_const_data_ptr(handle, &data));
  tensor.sizes = sizes;
  tensor.strides = strides;
  tensor.data = const_cast<void*>(data);
  tensor.torch_dtype = dtype_code(handle);
  return tensor;
}

inline OwnedTensor empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t torch_dtype) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  CNNKERN_TORCH(aoti_torch_empty_strided(dim, sizes, strides, torch_dtype, cpu, 0, &handle));
  return OwnedTensor(handle);
}

inline int32_t torch_dtype_of(DType dtype) {
  static const int32_t codes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16()};
  return codes[static_cast<int>(dtype)];
}

inline DType dtype_of(int32_t torch_dtype) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    if (torch_dtype_of(dtype) == torch_dtype) return dtype;
  }
  throw std::runtime_error("expected float32, float64, bfloat16 or float16");
}

// --- boxed arguments ------------------------------------------------------------------------------------------------

struct DeleteString {
  void operator()(StringHandle handle) const { torch_delete_string(handle); }
};

// A str argument, or the absence of a str? one.
class TextArgument {
 public:
  TextArgument() = default;
  explicit TextArgument(StringHandle handle) : handle_(handle) {
    size_t length = 0;
    const char* text = nullptr;
    CNNKERN_TORCH(torch_string_length(handle, &length));
    CNNKERN_TORCH(torch_string_c_str(handle, &text));
    view_ = {text, length};
  }
  std::string_view view() const { return view_; }

 private:
  std::unique_ptr<StringOpaque, DeleteString> handle_;
  std::string_view view_;
};

// Reads an op's arguments in the order of its schema; each call takes the next one and owns it. In a braced list of
// initialisers calls are made from left to right.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  template <class T> T value() { return torch::stable::detail::to<T>(*next_++); }
  int64_t integer() { return value<int64_t>(); }
  bool boolean() { return value<bool>(); }
  float number() { return static_cast<float>(value<double>()); }
  OwnedTensor tensor() { return OwnedTensor(value<AtenTensorHandle>()); }
  TextArgument text() { return TextArgument(value<StringHandle>()); }

  OwnedTensor optional_tensor() {
    const auto item = optional();
    return OwnedTensor(item ? torch::stable::detail::to<AtenTensorHandle>(*item) : nullptr);
  }
  TextArgument optional_text() {
    const auto item = optional();
    return item ? TextArgument(torch::stable::detail::to<StringHandle>(*item)) : TextArgument();
  }

  float optional_number() {  // 0 for None
    const auto item = optional();
    return item ? static_cast<float>(torch::stable::detail::to<double>(*item)) : 0;
  }

  template <size_t N> std::array<int64_t, N> integers(const char* name) {
    const std::unique_ptr<StableListOpaque, DeleteList> list(value<StableListHandle>());
    size_t size = 0;
    CNNKERN_TORCH(torch_list_size(list.get(), &size));
    if (size != N) {
      fail(std::string(name) + " has " + std::to_string(size) + " numbers where " + std::to_string(N) +
           " are expected");
    }
    std::array<int64_t, N> numbers;
    for (size_t i = 0; i < N; ++i) {
      StableIValue item;
      CNNKERN_TORCH(torch_list_get_item(list.get(), i, &item));
      numbers[i] = torch::stable::detail::to<int64_t>(item);
    }
    return numbers;
  }

 private:
  struct DeleteList {
    void operator()(StableListHandle handle) const { torch_delete_list(handle); }
  };
  std::unique_ptr<StableIValue> optional() { return std::unique_ptr<StableIValue>(value<StableIValue*>()); }

  StableIValue* next_;
};

inline StableIValue returned(OwnedTensor tensor) { return torch::stable::detail::from(tensor.release()); }

}  // namespace cnnkern
