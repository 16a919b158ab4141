// The host twin of csrc/cuda/primitives/launcher.h: a launch runs the whole grid before it returns.
#pragma once

#include <kernel.h>
#include <primitives/cuda.h>

#include <stdexcept>
#include <string>

namespace cnnkern::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  int threads = 128;
  int shared_bytes = 0;
  int cluster = 1;
};

constexpr int64_t kMostBlocks[] = {(int64_t{1} << 31) - 1, 65535, 65535};

[[noreturn]] inline void fail(const Call& call, const std::string& reason) {
  throw std::runtime_error(call.kernel + " failed on " + call.problem.to_string() + ": " + reason);
}

template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, const Params& params, const Call& call) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > kMostBlocks[0] || grid.y > kMostBlocks[1] || grid.z > kMostBlocks[2])
    fail(call, "the grid is too large");
  struct Task {
    void (*kernel)(Params);
    const Params& params;
  } task{kernel, params};
  simt::run(
      {.name = call.kernel + " on " + call.problem.to_string(),
       .grid = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)),
       .block = dim3(static_cast<unsigned>(grid.threads)),
       .shared_bytes = static_cast<size_t>(grid.shared_bytes),
       .cluster = grid.cluster},
      [](const void* task) { static_cast<const Task*>(task)->kernel(static_cast<const Task*>(task)->params); }, &task);
}

}  // namespace cnnkern::cuda
