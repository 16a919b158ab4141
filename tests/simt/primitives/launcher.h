// The host twin of csrc/cuda/primitives/launcher.h: a launch runs the whole grid before it returns.
#pragma once

#include <primitives/cuda.h>
#include <primitives/grid.h>

namespace cnnkern::cuda {

template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, const Params& params, const Call& call) {
  if (!has_blocks(grid, call)) return;
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
