// How wgrad is divided among threads: into chunks of output rows, each with sums of its own that are added in a fixed
// order, or into blocks of map vectors, which need no reduction. The result depends on the number of threads, never on
// timing.
#pragma once

#include <algorithm>
#include <cstring>

#include "microkernels/group_tile.h"
#include "packing.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

enum class Divide { maps, rows };  // maps: where their vectors divide evenly, else rows

struct WgradSplit {
  int64_t rows, vectors, blocks, chunks;

  WgradSplit(int64_t rows, int64_t vectors, Divide divide) : rows(rows), vectors(vectors) {
    const int64_t threads = std::min(thread_count(), std::max<int64_t>(rows, 1));
    blocks = divide == Divide::maps && vectors % threads == 0 ? threads : 1;
    chunks = threads / blocks;
  }

  // body(chunk, row_begin, row_end, vector_begin, vector_end)
  template <class Body> void run(const Body& body) const {
    parallel_for(blocks * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = task % blocks, chunk = task / blocks;
        body(chunk, chunk * rows / chunks, (chunk + 1) * rows / chunks, block * vectors / blocks,
             (block + 1) * vectors / blocks);
      }
    });
  }
};

// Zeroed sums of all chunks, `elements` each.
template <class A> A* zeroed_sums(const WgradSplit& split, int64_t elements) {
  A* sums = scratch<A>(Scratch::packed, split.chunks * elements);
  std::memset(sums, 0, static_cast<size_t>(split.chunks * elements) * sizeof(A));
  return sums;
}

// A row of zeros, which stands for the rows outside the image.
template <class T> const T* zero_row(int64_t elements) {
  T* zeros = scratch<T>(Scratch::local, elements);
  std::memset(static_cast<void*>(zeros), 0, static_cast<size_t>(elements) * sizeof(T));
  return zeros;
}

// sums[k] += dy[q][k] over the pixels of a row, for the maps k of some vectors.
template <class T>
void add_bias(const T* dy, int64_t dy_stride, int64_t pixels, acc_t<T>* sums, int64_t map_begin, int64_t map_end) {
  for (int64_t k = map_begin; k < map_end; k += kLanes<T>) {
    const int n = static_cast<int>(std::min<int64_t>(map_end - k, kLanes<T>));
    Vec<acc_t<T>> sum = load_n(sums + k, n);
    for (int64_t q = 0; q < pixels; ++q) sum += load_n(dy + q * dy_stride + k, n);
    store_n(sums + k, sum, n);
  }
}

// The sum over the chunks of one element, in order.
template <class A> A total(const WgradSplit& split, const A* sums, int64_t elements, int64_t at) {
  A value = 0;
  for (int64_t chunk = 0; chunk < split.chunks; ++chunk) value += sums[chunk * elements + at];
  return value;
}

// sums [tap][d][lanes] of one vector, of all chunks -> dw[k][tap][d]. The last vector overlaps the one before it: its
// first lanes are left to that.
template <class T>
void write_filters(const WgradSplit& split, const acc_t<T>* sums, int64_t elements, int64_t vector, int64_t maps,
                   int64_t taps, int64_t depth, T* dw) {
  constexpr int kLane = kLanes<T>;
  const int64_t start = vector_start<acc_t<T>>(vector, maps);
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t d = 0; d < depth; d += kLane) {
      const int n = static_cast<int>(std::min<int64_t>(depth - d, kLane));
      for (int b = 0; n < kLane / 2 && b < n; ++b)
        for (int64_t l = vector * kLane - start; l < kLane; ++l)
          dw[((start + l) * taps + t) * depth + d + b] =
              from_acc<T>(total(split, sums, elements, (t * depth + d + b) * kLane + l));
      if (n < kLane / 2) continue;
      Vec<acc_t<T>> block[kLane] = {};
      for (int b = 0; b < n; ++b)
        for (int64_t chunk = 0; chunk < split.chunks; ++chunk)
          block[b] += load(sums + chunk * elements + (t * depth + d + b) * kLane);
      transpose<Vec<acc_t<T>>, kLane>(block);
      for (int64_t l = vector * kLane - start; l < kLane; ++l)
        store_n(dw + ((start + l) * taps + t) * depth + d, block[l], n);
    }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
