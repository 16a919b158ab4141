// Sums over a list of taps, for vectors of outputs whose inputs lie at even distances:
//
//   sum[t][l] = sum over taps of tap.in[offset + t * step + l] * w[tap.w + l]
//
// A tap's weights are loaded once for the P outputs whose sums are in registers; each FMA reads its input from memory.
#pragma once

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kTapOutputs = 8;

template <class In> struct Tap {
  const In* in;
  int64_t w;
};

template <class In> struct TapList {
  const Tap<In>* taps;
  int64_t count;
};

// store(t, sum) for t < outputs; step: from the input of an output to the next one's.
template <int P = kTapOutputs, class In, class Store>
CNNKERN_INLINE void sum_taps(const TapList<In>& list, const acc_t<In>* w, int64_t offset, int64_t step, int64_t outputs,
                             const Store& store_sum) {
  int64_t first = 0;
  for (; first + P <= outputs; first += P, offset += P * step) {
    Vec<acc_t<In>> sum[P];
#pragma GCC unroll 8
    for (int t = 0; t < P; ++t) sum[t] = Vec<acc_t<In>>{};
#pragma GCC unroll 1
    for (const Tap<In>* tap = list.taps; tap != list.taps + list.count; ++tap) {
      const auto weights = in_register(load(w + tap->w));
      const In* in = tap->in + offset;
#pragma GCC unroll 8
      for (int t = 0; t < P; ++t) sum[t] += load(in + t * step) * weights;
    }
#pragma GCC unroll 8
    for (int t = 0; t < P; ++t) store_sum(first + t, sum[t]);
  }
  if constexpr (P > 1) {
    if (first < outputs)
      sum_taps<P / 2>(list, w, offset, step, outputs - first,
                      [&](int64_t t, Vec<acc_t<In>> sum) { store_sum(first + t, sum); });
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
