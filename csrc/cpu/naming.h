// A kernel's name by the grammar of csrc/README.md, and the DType of each storage type.
#pragma once

#include <string>
#include <string_view>

#include "../conv_problem.h"
#include "simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

template <class T> constexpr DType kDTypeOf = DType::f32;
template <> constexpr DType kDTypeOf<double> = DType::f64;
template <> constexpr DType kDTypeOf<bf16> = DType::bf16;
template <> constexpr DType kDTypeOf<f16> = DType::f16;

// cpu_<family>_<direction>_<dtype>_nhwc_<tile>__<isa>
inline std::string kernel_name(std::string_view family, Direction direction, DType dtype, std::string_view tile) {
  std::string name = "cpu_";
  name += family;
  name += '_';
  name += kDirectionNames[static_cast<int>(direction)];
  name += '_';
  name += kDTypeNames[static_cast<int>(dtype)];
  name += "_nhwc_";
  name += tile;
  return name += "__" CNNKERN_ISA_NAME;
}

// Calls body(T{}) with the storage type T of `dtype`.
template <class Body>
void with_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(float{});
    case DType::f64: return body(double{});
    case DType::bf16: return body(bf16{});
    case DType::f16: return body(f16{});
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
