// A few elements a call: no instruction set beyond the generic one is worth having here.
#define CNNKERN_ISA generic
#include "channels.h"

#include "naming.h"

namespace cnnkern::cpu {

const void* channel_vector(AtenTensorHandle tensor, int64_t count, DType dtype, const char* name, void* room) {
  if (!tensor) return nullptr;
  int64_t dim = 0, size = 0, stride = 1;
  int32_t torch_dtype = 0;
  const void* data = nullptr;
  CNNKERN_TORCH(aoti_torch_get_dim(tensor, &dim));
  if (dim == 1) {
    CNNKERN_TORCH(aoti_torch_get_size(tensor, 0, &size));
    CNNKERN_TORCH(aoti_torch_get_stride(tensor, 0, &stride));
  }
  if (dim != 1 || size != count) fail(std::string(name) + " is no vector of " + std::to_string(count));
  CNNKERN_TORCH(aoti_torch_get_dtype(tensor, &torch_dtype));
  CNNKERN_TORCH(torch_get_const_data_ptr(tensor, &data));

  const bool converted = torch_dtype == torch_dtype_of(accumulator_of(dtype));
  if (converted && (stride == 1 || count == 1)) return data;
  if (!converted && torch_dtype != torch_dtype_of(dtype)) {
    fail(std::string(name) + " has neither the convolution's dtype nor its accumulator's");
  }
  generic::with_dtype(converted ? accumulator_of(dtype) : dtype, [&](auto element) {
    using T = decltype(element);
    auto* to = static_cast<generic::acc_t<T>*>(room);
    for (int64_t i = 0; i < count; ++i) to[i] = generic::to_acc(static_cast<const T*>(data)[i * stride]);
  });
  return room;
}

void from_accumulator(const void* source, int64_t count, DType dtype, void* target) {
  generic::with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const generic::acc_t<T>*>(source);
    for (int64_t i = 0; i < count; ++i) static_cast<T*>(target)[i] = generic::from_acc<T>(from[i]);
  });
}

}  // namespace cnnkern::cpu
