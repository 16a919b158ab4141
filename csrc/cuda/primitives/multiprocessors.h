// How many multiprocessors a GPU has: as many blocks as a persistent kernel starts.
#pragma once

#include <primitives/launcher.h>

#include <array>
#include <atomic>

namespace cnnkern::cuda {

inline int multiprocessors(const Call& call) {
  static std::array<std::atomic<int>, 64> known{};  // by device; 0: not asked yet
  const auto ask = [&] {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, call.device), call);
    return count;
  };
  const auto device = static_cast<size_t>(call.device);
  if (device >= known.size()) return ask();
  int count = known[device].load(std::memory_order_relaxed);
  if (count == 0) known[device].store(count = ask(), std::memory_order_relaxed);
  return count;
}

}  // namespace cnnkern::cuda
