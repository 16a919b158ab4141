// Which tile of a family's list is expected to be the fastest for a product.
#pragma once

#include "../conv_problem.h"
#include "gemm_tile.h"

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

// Empty if `tile` is the best of `tiles`, else a clause that names the better one.
template <class Tiles>
std::string better_tile(const GemmTile& tile, const Tiles& tiles, int64_t m, int64_t n, int64_t products) {
  const GemmTile* best = &tile;
  for (const GemmTile& other : tiles) {
    if (expected_time(other, m, n, products) < expected_time(*best, m, n, products)) best = &other;
  }
  return best == &tile ? "" : "tiles of " + best->to_string() + " fill the multiprocessors better";
}

}  // namespace cnnkern::cuda
