// combine_rows: linear combinations of rows of memory.
//
//   out[o][d] = sum over i of coefficients[o][i] * in[i][d]  (+ out[o][d]),  d < length
//
// The core of a convolution's gradients with few pixels: coefficients are values of dy, rows are pixels of x or of dx
// and filters of w or of dw, all where they lie. The coefficients stay in registers, a row is read or written by the
// vector. Bound: moving the filters, of which each value is used once per pixel.
#pragma once

#include <algorithm>

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// As many of either as leave room for the rows of a step.
constexpr int kCoefficients = kRegisters == 32 ? 16 : 8, kMostCombined = kRegisters == 32 ? 8 : 4;

// Rows of filters that are combined with so many pixels.
constexpr int combined_filters(int pixels) { return std::max(1, std::min(kMostCombined, kCoefficients / pixels)); }

template <class In, class Out, class T> struct Combination {
  const In* in;
  int64_t in_stride;
  Out* out;
  int64_t out_stride;
  const T* coefficients;
  int64_t coefficient_out, coefficient_in;  // elements from one to the next
  int64_t length;
};

template <class In, class Out, class T, int kOut, int kIn, bool kAdd>
__attribute__((noinline)) void combine_tile(const Combination<In, Out, T>& rows) {
  using V = Vec<acc_t<Out>>;
  constexpr int kLane = kLanes<Out>;
  V coefficients[kOut][kIn];
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o)
#pragma GCC unroll 8
    for (int i = 0; i < kIn; ++i)
      coefficients[o][i] = broadcast(to_acc(rows.coefficients[o * rows.coefficient_out + i * rows.coefficient_in]));
  const auto step = [&](int64_t d, int lanes) __attribute__((always_inline)) {
    V sums[kOut];
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) sums[o] = kAdd ? load_n(rows.out + o * rows.out_stride + d, lanes) : V{};
#pragma GCC unroll 8
    for (int i = 0; i < kIn; ++i) {
      const V value = load_n(rows.in + i * rows.in_stride + d, lanes);
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) sums[o] = sums[o] + coefficients[o][i] * value;
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) store_n(rows.out + o * rows.out_stride + d, sums[o], lanes);
  };
  const int rest = static_cast<int>(rows.length % kLane);
  const int64_t whole = rows.length - rest;
#pragma GCC unroll 1
  for (int64_t d = 0; d < whole; d += kLane) step(d, kLane);
  if (rest) step(whole, rest);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
