// The shape of a launch, and how a failing one is told.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../kernel.h"

namespace cnnkern::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;  // blocks; what has no bound belongs in x
  int threads = 128;
  int shared_bytes = 0;
  int cluster = 1;  // neighbouring blocks in x that run together
};

// Shared memory that a block may have (CUDA Programming Guide, "Compute Capabilities"). A kernel that takes more than
// every GPU has refuses where there is less.
constexpr int most_shared_bytes(int capability) {
  return capability >= 90 && capability < 120 ? 227 << 10 : capability == 80 ? 163 << 10 : 99 << 10;
}
constexpr int kSharedOfEveryGpu = most_shared_bytes(86);

constexpr int64_t kMostBlocks[] = {(int64_t{1} << 31) - 1, 65535, 65535};

[[noreturn]] inline void fail(const Call& call, const std::string& reason) {
  throw std::runtime_error(call.kernel + " failed on " + call.problem.to_string() + ": " + reason);
}

// Whether there is anything to launch. A grid beyond the limits fails.
inline bool has_blocks(const Grid& grid, const Call& call) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return false;
  if (grid.x > kMostBlocks[0] || grid.y > kMostBlocks[1] || grid.z > kMostBlocks[2])
    fail(call, "the grid is too large");
  return true;
}

}  // namespace cnnkern::cuda
