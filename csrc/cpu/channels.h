// Per-channel vectors of an epilogue, brought to the accumulator's type.
#pragma once

#include "../tensor.h"

namespace cnnkern::cpu {

// The type in which sums of `dtype` are kept: f64 for f64, else f32.
inline DType accumulator_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// The `count` elements of a 1-d tensor of `dtype` or its accumulator's type, in the latter: in place where possible,
// else at `room`, which has space for them. Null for a null tensor. Throws std::runtime_error naming `name`.
const void* channel_vector(AtenTensorHandle tensor, int64_t count, DType dtype, const char* name, void* room);

// Converts `count` elements of `dtype`'s accumulator type to `dtype`.
void from_accumulator(const void* source, int64_t count, DType dtype, void* target);

}  // namespace cnnkern::cpu
