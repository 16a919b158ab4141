// Which tile of a family's list is expected to be the fastest for a product.
#pragma once

#include <algorithm>

#include "gemm_tile.h"
#include "kernel.h"

namespace cnnkern::cuda {

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200; choices are made for them, so that bits do not vary

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How much of a multiprocessor's rate a tile reaches: a smaller one loads more for each multiplication.
constexpr double efficiency(const GemmTile& tile) {
  const double loads = 1.0 / tile.block_m + 1.0 / tile.block_n;
  return 1 / (1 + 24 * loads);
}

// Expected time of `products` products [m][n], in units of one multiplication and step of k on a multiprocessor: blocks
// are dealt out to the multiprocessors, and the one with the most of them counts.
constexpr double expected_time(const GemmTile& tile, int64_t m, int64_t n, int64_t products) {
  const int64_t blocks = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n) * products;
  return static_cast<double>(ceil_div(blocks, kMultiprocessors)) * tile.block_m * tile.block_n / efficiency(tile);
}

// How k is split into ranges: enough of them for two blocks on each multiprocessor, each of at least eight steps of k,
// as long as their float slices fill no more than a quarter of the workspace.
struct Split { int64_t range, ranges; };

inline Split split(int64_t m, int64_t n, int64_t k, int64_t products, const GemmTile& tile) {
  const int64_t tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n) * products;
  const int64_t most = std::min(ceil_div(k, int64_t{8} * tile.block_k),
                                kMostWorkspace / 4 / (products * m * n * int64_t{sizeof(float)}));
  const int64_t ranges = std::clamp<int64_t>(2 * kMultiprocessors / tiles, 1, std::max<int64_t>(most, 1));
  const int64_t range = ceil_div(ceil_div(k, ranges), tile.block_k) * tile.block_k;
  return {range, ceil_div(k, range)};
}

// The same where tiles are many as a rule, as those of pixels are: k is split only where they leave half of the
// multiprocessors without work.
inline Split split_of_few(int64_t m, int64_t n, int64_t k, int64_t products, const GemmTile& tile) {
  const int64_t tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n) * products;
  return 2 * tiles > kMultiprocessors ? Split{k, 1} : split(m, n, k, products, tile);
}

// Of the slices of a result, in bytes; one range needs none.
inline int64_t slices_bytes(int64_t elements, const Split& split) {
  return split.ranges == 1 ? 0 : split.ranges * elements * int64_t{sizeof(float)};
}
inline int64_t slices_bytes(const ConvProblem& p, const Split& split) {  // of wgrad
  return slices_bytes(p.k * p.r * p.s * p.c_per_group(), split);
}

}  // namespace cnnkern::cuda
