// Statistics of maps over pixels, and how those of parts become those of the whole.
//
// M2 is the sum of squared deviations from the mean. A sum of squares would be without digits of the variance where the
// mean is large: at mean 100 and sigma 0.05 all of them. So parts are merged around their means (Chan, Golub and
// LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), always in the same
// order.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

struct Moments {
  float count = 0, mean = 0, m2 = 0;

  // One more value; `share` is 1 / (count + 1), the same for every map of a pixel.
  __device__ void add(float value, float share) {
    const float deviation = value - mean;
    count += 1;
    mean += deviation * share;
    m2 += deviation * (value - mean);
  }
  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const float all = count + other.count, share = other.count / all, difference = other.mean - mean;
    mean += difference * share;
    m2 += other.m2 + difference * difference * (count * share);
    count = all;
  }
};

// Of neighbouring maps over the same values.
template <int kMaps> struct MomentsOfMaps {
  Moments at[kMaps];

  template <class T> __device__ void add(const Vector<T, kMaps>& values) {
    const float share = 1 / (at[0].count + 1);
#pragma unroll
    for (int i = 0; i < kMaps; ++i) at[i].add(to_float(values[i]), share);
  }
  __device__ void merge(const MomentsOfMaps& other) {
#pragma unroll
    for (int i = 0; i < kMaps; ++i) at[i].merge(other.at[i]);
  }
};

// Of one map in partial statistics [partials][3][maps]: count, mean and M2.
__device__ inline Moments load_moments(const float* from, int64_t maps) {
  return {from[0], from[maps], from[2 * maps]};
}
__device__ inline void store_moments(float* to, int64_t maps, const Moments& moments) {
  to[0] = moments.count;
  to[maps] = moments.mean;
  to[2 * maps] = moments.m2;
}
template <int kMaps> __device__ void store_moments(float* to, int64_t maps, const MomentsOfMaps<kMaps>& moments) {
#pragma unroll
  for (int i = 0; i < kMaps; ++i) store_moments(to + i, maps, moments.at[i]);
}

// Merges the values of all rows of a block's threads [rows][lanes] into row 0's, the upper half into the lower until
// one is left. By all threads of the block; row >= rows: one without a value. Takes rows * lanes values of shared
// memory.
//
// One barrier a step: it makes the upper half known. What the next step puts there lies below what this one reads.
template <class Value> __device__ void merge_rows(Value& own, int row, int rows, int lane, int lanes) {
  const Shared<Value> values = shared_memory<Value>();
  while (rows > 1) {
    const int half = (rows + 1) / 2;
    if (row >= half && row < rows) values.store(row * lanes + lane, own);
    __syncthreads();
    if (row + half < rows) own.merge(values.load((row + half) * lanes + lane));
    rows = half;
  }
}

}  // namespace cnnkern::cuda
