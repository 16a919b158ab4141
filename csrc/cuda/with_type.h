// From the dtype of a call to the C++ type of a kernel.
#pragma once

#include <primitives/grid.h>
#include <primitives/numeric.h>

namespace cnnkern::cuda {

// function(T{}) for the C++ type of a dtype.
template <class Function> void with_type(DType dtype, const Call& call, Function function) {
  switch (dtype) {
    case DType::f32: return function(float{});
    case DType::bf16: return function(bf16{});
    case DType::f16: return function(f16{});
    default: fail(call, "its dtype is not float32, bfloat16 or float16");
  }
}

}  // namespace cnnkern::cuda
